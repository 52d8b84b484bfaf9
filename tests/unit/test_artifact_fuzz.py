"""Broken and hostile artifacts by the thousand: each is a sound probe or a refusal of one line, and no more happens.

    FUZZ_CASES=1000000 FUZZ_SEED=7 python -m pytest tests/unit/test_artifact_fuzz.py -s     (or: make fuzz)

A fault is told with the number of its case; the same seed makes the same cases.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import probes
from probes import ProbeManifest, artifact, manifest
from tests.unit.artifact_fuzzer import Fuzzer, vandalise

torch.set_num_threads(1)

CASES = int(os.environ.get("FUZZ_CASES", "10000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
PATIENCE_SECONDS = 20.0
"""For one case, which takes about a millisecond."""
MEMORY_MIB = 200.0
"""More than the process may grow; the cases themselves are a few KiB to 2 MiB large."""
LONGEST_MESSAGE = 1000
ACTS = {
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
}
"""Of Python's audit events: what a file must never bring about."""


class Watch:
    """Acts of this process while it is on. An audit hook stays for the life of the process, so there is one."""

    on = False
    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def hear(cls, event: str, _arguments: object) -> None:
        if cls.on and event in ACTS:
            cls.seen.append(event)


sys.addaudithook(Watch.hear)


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
    """Raises where the block takes longer than it can."""

    def late(*_: object) -> None:
        raise TimeoutError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory_mib(line: str) -> float:
    """``VmRSS`` or ``VmHWM`` (the highest so far) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(line + ":")[1].split()[0]) / 1024


def outcome(load: Callable[[], probes.Probe]) -> str:
    """The refusal's class, or ``sound``. Raises for whatever else happens."""
    try:
        probe = load()
    except probes.ProbeError as error:
        message = str(error)
        assert message, "an empty refusal"
        assert message.isprintable(), f"not one plain line: {message[:200]!r}"
        assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters"
        return type(error).__name__
    assert ProbeManifest.model_validate_json(probe.manifest.model_dump_json()) == probe.manifest
    positions = probe.manifest.token_mask
    assert (positions.last_k or 0) < 2**31
    assert math.isfinite(float(probe.score_tokens(probe.golden_inputs).abs().max()))
    stream = probe.stream()
    stream.update(probe.token_state(probe.golden_inputs))
    return "sound"


@pytest.mark.thorough
def test_ten_thousand_broken_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    fuzzer, found, faults = Fuzzer(SEED), Counter[str](), []
    in_memory = {Path(f"sound {i}"): data for i, data in enumerate(fuzzer.bytes)}
    monkeypatch.setattr(artifact, "_read_bounded", in_memory.__getitem__)  # a file each would take minutes
    for path in list(in_memory):
        assert outcome(lambda path=path: probes.load(path)) == "sound"  # type: ignore[misc]
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
    before = memory_mib("VmRSS")
    for number in range(CASES):
        maker, in_memory[Path("case")] = fuzzer.case()
        Watch.on = True
        try:
            with patience(f"case {number}"):
                found[outcome(lambda: probes.load("case"))] += 1
        except Exception as error:
            faults.append(f"case {number} ({maker}): {type(error).__name__}: {str(error)[:200]}")
        finally:
            Watch.on = False
    print(f"\nseed {SEED}, {CASES} cases: {dict(found.most_common())}")
    assert faults == [], f"seed {SEED}: {len(faults)} faults, the first: " + "\n".join(faults[:10])
    assert Watch.seen == []
    assert list(tmp_path.iterdir()) == []
    assert memory_mib("VmHWM") - before < MEMORY_MIB
    assert CASES < 5000 or (found["sound"] > 0 and len(found) > 8), "the cases are too much alike"


@pytest.mark.thorough
def test_a_thousand_broken_manifests_alone() -> None:
    rng, fields = random.Random(SEED), Fuzzer(SEED).sound[0][0]
    for _ in range(1000):
        text = vandalise(rng, copy.deepcopy(fields))
        for given in (text, text.encode("utf-8", "surrogatepass"), text[: rng.randrange(len(text))]):
            with contextlib.suppress(probes.ManifestInvalid):
                manifest.parse(given)


@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[2J", "bad\udcff", "‮", " ", "'\"`$(x)", "x" * 255, "%s{}", "-rf"]
)
@pytest.mark.parametrize("content", [b"not an artifact", None])
def test_odd_names_of_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    path.write_bytes(Fuzzer(0).bytes[0] if content is None else content)
    assert outcome(lambda: probes.load(path)) == ("sound" if content is None else "MalformedArtifact")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("to-pipe").symlink_to("pipe")
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("absent")
    Path("to-zero").symlink_to("/dev/zero")
    Path("unreadable").touch(mode=0o000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        names = [
            "pipe",
            "to-pipe",
            "loop",
            "dangling",
            "to-zero",
            "unreadable",
            "socket",
            ".",
            "/",
            "",
            "nul\0",
        ]
        names += [
            "/dev/zero",
            "/dev/random",
            "/dev/tty",
            "/dev/full",
            "/proc/self/mem",
            "x" * 300,
        ]
        names += ["/proc/self/cmdline", "/proc/self/fd"]
        for name in names:
            with patience(name):
                assert outcome(lambda name=name: probes.load(name)) != "sound", name  # type: ignore[misc]


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    assert outcome(lambda: probes.load(tmp_path / "sparse")) == "OversizedArtifact"


def test_a_file_that_turns_into_a_pipe_between_two_looks_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "sound"
    sound.write_bytes(Fuzzer(0).bytes[0])
    os.mkfifo(tmp_path / "pipe")
    status = sound.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)
    with patience("the pipe"):
        assert outcome(lambda: probes.load(tmp_path / "pipe")) == "ArtifactError"
