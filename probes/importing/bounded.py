"""What of a foreign file may be opened, and how much: sizes are checked before anything is allocated."""

import json
import os
import resource
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from probes.errors import ArtifactError, MalformedArtifact, OversizedArtifact

MAX_BYTES: Final = 1 << 30
"""Of a file, and of what an archive holds: the largest probes in the wild take some tens of megabytes."""
MAX_JSON: Final = 1 << 28
"""A CAST vector writes each number as text."""
MAX_MEMBERS: Final = 4096
MAX_NUMBERS: Final = MAX_BYTES // 8
"""Of one tensor: it is computed with in float64."""
_MEMORY: Final = 8 * MAX_BYTES
_SECONDS: Final = 120
_CHUNK: Final = 1 << 20


def read(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} is not a regular file; give the path of a probe")
            if status.st_size > limit:
                raise OversizedArtifact(
                    f"{path} has {status.st_size} bytes, the limit is {limit}; this is no probe"
                )
            return file.read(limit)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ArtifactError(f"{path} cannot be read ({reason}); check the path") from None


def check_regular(path: Path) -> None:
    """Refuse what another library would open by its path, and wait for: a pipe, a device."""
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is not a regular file; fetch it again")


@contextmanager
def limited() -> Iterator[None]:
    """At most 8 GiB more than there are now, and 120 seconds of processor time: what no check foresaw ends there.

    Memory ends in the error of the library that asked for it; time in SIGXCPU, for a loop in C hears nothing else.
    Elsewhere than on Linux, where nothing tells how much there is now, the checks are all there is.
    """
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + _MEMORY,
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + _SECONDS,
    }
    before = {kind: resource.getrlimit(kind) for kind in wanted}
    try:
        for kind, limit in wanted.items():
            allowed = [n for n in before[kind] if n != resource.RLIM_INFINITY]
            resource.setrlimit(kind, (min([limit, *allowed]), before[kind][1]))
        yield
    finally:
        for kind, limits in before.items():
            resource.setrlimit(kind, limits)


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Inside `limited`: room to map a file, which takes no memory: torch maps what safetensors has mapped."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        yield
        return
    wider = soft + 2 * path.stat().st_size
    try:
        resource.setrlimit(
            resource.RLIMIT_AS, (wider if hard == resource.RLIM_INFINITY else min(wider, hard), hard)
        )
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_json(path: Path, limit: int = 1 << 20) -> dict[str, object]:
    """The JSON object in a file."""
    try:
        found = json.loads(read(path, limit).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedArtifact(f"{path} is no JSON ({one_line(error)}); fetch the file again") from None
    if not isinstance(found, dict):
        raise MalformedArtifact(f"{path} holds a {type(found).__name__}, not an object; fetch the file again")
    return found


def check_zip(path: Path) -> list[str]:
    """The names in a zip archive (torch, npz), which may unpack to `MAX_BYTES` at most."""
    read(path, MAX_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise MalformedArtifact(
            f"{path} is a broken zip archive ({one_line(error)}); fetch the file again"
        ) from None
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES or len(members) > MAX_MEMBERS:
        raise OversizedArtifact(
            f"{path} unpacks to {len(members)} files of {total} bytes, the limits are {MAX_MEMBERS} and {MAX_BYTES}; "
            "this is no probe"
        )
    return [member.filename for member in members]


def inflate(data: bytes) -> bytes:
    """What a zlib or gzip stream (compressed joblib) unpacks to, `MAX_BYTES` at most."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: either header
    found = bytearray()
    try:
        pending = data
        while pending and not stream.eof:
            found += stream.decompress(pending, _CHUNK)
            pending = stream.unconsumed_tail
            if len(found) > MAX_BYTES:
                raise OversizedArtifact(f"the stream unpacks to over {MAX_BYTES} bytes; this is no probe")
    except zlib.error as error:
        raise MalformedArtifact(
            f"the compressed stream is broken ({one_line(error)}); fetch the file again"
        ) from None
    if not stream.eof:
        raise MalformedArtifact("the compressed stream ends early; fetch the file again")
    return bytes(found)


def one_line(error: Exception) -> str:
    """What an error says, in one line of 120 characters."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer
