"""One `.safetensors` file a probe: its tensors, golden inputs and scores, and the manifest as JSON metadata.

Reading treats the file as hostile: nothing is unpickled, sizes are bounded before anything is allocated, and
every fault ends in an `ArtifactError` with one line.
"""

import hashlib
import json
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from probes import kinds
from probes.atomic import write_bytes
from probes.errors import (
    ArtifactError,
    DigestMismatch,
    MalformedArtifact,
    ManifestInvalid,
    NonFinite,
    OversizedArtifact,
    TensorInvalid,
    TruncatedArtifact,
    UnsafeFormat,
)
from probes.kinds import GOLDEN_INPUTS, GOLDEN_SCORES
from probes.manifest import ProbeManifest, parse, revise

METADATA_KEY: Final = "probewatch"
MAX_FILE_BYTES: Final = 256 * 2**20
MAX_HEADER_BYTES: Final = 2 * 2**20
MAX_TENSORS: Final = 64
MAX_NAME: Final = 64
"""Characters in the name of a tensor."""
MAX_DIMENSIONS: Final = 8

_UNSAFE: Final[Mapping[bytes, str]] = {
    b"PK\x03\x04": "a zip archive (torch.save or npz)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip stream",
    b"x\x9c": "a zlib stream (joblib)",
}


def write(path: Path, manifest: ProbeManifest, tensors: Mapping[str, Tensor]) -> ProbeManifest:
    """Write the artifact in one rename, so that no reader ever sees half of it.

    `tensors`: those of the kind, plus `golden_inputs` [N, L, d] and `golden_scores` [N]. The digest is
    computed here; the manifest as written is returned.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written = revise(manifest, tensors_sha256=tensors_digest(held))
    _check_tensors(written, held)
    payload = dump_safetensors(held, metadata={METADATA_KEY: written.model_dump_json()})
    write_bytes(path, payload)
    return written


def read(path: Path) -> tuple[ProbeManifest, dict[str, Tensor]]:
    """The manifest and all tensors of an artifact; every fault is an `ArtifactError` that names the file."""
    try:
        return parse_bytes(_read_bounded(Path(path)))
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from None


def parse_bytes(data: bytes) -> tuple[ProbeManifest, dict[str, Tensor]]:
    """The manifest and all tensors in the bytes of an artifact."""
    header = _header(data)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise ManifestInvalid(f"no metadata key {METADATA_KEY!r}; convert the file with `probewatch import`")
    _check_entries(header)
    manifest = parse(metadata[METADATA_KEY])
    try:
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise MalformedArtifact(
            f"safetensors cannot read it ({_one_line(error)}); fetch the file again"
        ) from None
    _check_tensors(manifest, tensors)
    found = tensors_digest(tensors)
    if found != manifest.tensors_sha256:
        raise DigestMismatch(
            f"tensors have sha256 {found[:12]}.., the manifest says {manifest.tensors_sha256[:12]}..; "
            "fetch the file again"
        )
    return manifest, tensors


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and little-endian bytes of each tensor, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def split_golden(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(tensors of the kind, golden_inputs [N, L, d], golden_scores [N])"""
    own = {name: tensor for name, tensor in tensors.items() if name not in (GOLDEN_INPUTS, GOLDEN_SCORES)}
    return own, tensors[GOLDEN_INPUTS], tensors[GOLDEN_SCORES]


def _read_bounded(path: Path) -> bytes:
    try:
        _check_status(path.stat())  # before it is opened: devices may act on that
        with open(path, "rb", opener=_open_at_once) as file:
            _check_status(os.fstat(file.fileno()))  # it may be another one by now
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ArtifactError(f"cannot be read ({reason or _one_line(error)}); check the path") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _check_status(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError("not a regular file; give the path of a .safetensors artifact")
    if status.st_size > MAX_FILE_BYTES:
        raise OversizedArtifact(
            f"{status.st_size} bytes, the limit is {MAX_FILE_BYTES}; this is no probe artifact"
        )


def _header(data: bytes) -> dict[str, object]:
    """The JSON header: 8 bytes of little-endian length N, then N bytes of JSON object."""
    if data[8:9] != b"{":  # a header length may start with pickle's 0x80, so the brace decides first
        for magic, what in _UNSAFE.items():
            if data.startswith(magic):
                raise UnsafeFormat(
                    f"this is {what}, which is never opened; convert it with `probewatch import`"
                )
    if len(data) < 9:
        raise TruncatedArtifact(f"{len(data)} bytes, too short for a header; fetch the file again")
    (length,) = struct.unpack("<Q", data[:8])
    if data[8:9] != b"{":
        raise MalformedArtifact("no safetensors header; convert the file with `probewatch import`")
    if length > MAX_HEADER_BYTES:
        raise OversizedArtifact(
            f"header of {length} bytes, the limit is {MAX_HEADER_BYTES}; this is no probe artifact"
        )
    if length > len(data) - 8:
        raise TruncatedArtifact(f"header of {length} bytes in a file of {len(data)}; fetch the file again")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedArtifact(f"the header is no JSON ({_one_line(error)}); fetch the file again") from None
    if not isinstance(header, dict):
        raise MalformedArtifact(
            f"the header is a {type(header).__name__}, not an object; fetch the file again"
        )
    _check_extent(header, len(data) - 8 - length)
    return header


def _check_extent(header: Mapping[str, object], available: int) -> None:
    ends = [
        entry["data_offsets"][1]
        for entry in header.values()
        if isinstance(entry, dict)
        and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2
    ]
    needed = max((end for end in ends if isinstance(end, int)), default=0)
    if needed > available:
        raise TruncatedArtifact(
            f"{available} bytes of tensors where the header says {needed}; fetch the file again"
        )


def _check_entries(entries: Mapping[str, object]) -> None:
    if len(entries) > MAX_TENSORS:
        raise OversizedArtifact(
            f"{len(entries)} tensors, the limit is {MAX_TENSORS}; this is no probe artifact"
        )
    for name, entry in entries.items():
        if len(name) > MAX_NAME:
            raise TensorInvalid(
                f"tensor {name[:16]!r}... has a name of {len(name)} characters, the limit is {MAX_NAME}; rename it"
            )
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if dtype != "F32":
            shown = repr(dtype[:16]) if isinstance(dtype, str) else type(dtype).__name__
            raise TensorInvalid(f"tensor {name!r} has dtype {shown}; store it as F32")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > MAX_DIMENSIONS:
            raise TensorInvalid(
                f"tensor {name!r} has {len(shape)} dimensions, the limit is {MAX_DIMENSIONS}; fetch the file again"
            )


def _check_tensors(manifest: ProbeManifest, tensors: Mapping[str, Tensor]) -> None:
    missing = sorted({GOLDEN_INPUTS, GOLDEN_SCORES} - set(tensors))
    if missing:
        raise TensorInvalid(
            f"tensors {missing} are missing; write the artifact with golden inputs and scores"
        )
    own, inputs, scores = split_golden(tensors)
    kinds.check_shapes(kinds.of(manifest), own, len(manifest.layers), manifest.d_model)
    expected = (len(scores) if scores.ndim == 1 else -1, len(manifest.layers), manifest.d_model)
    if tuple(inputs.shape) != expected or not len(inputs):
        raise TensorInvalid(
            f"golden_inputs {list(inputs.shape)} and golden_scores {list(scores.shape)} do not fit; "
            f"store [N, {expected[1]}, {expected[2]}] and [N], N >= 1"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TensorInvalid(f"tensor {name!r} is {tensor.dtype}; store it as torch.float32")
        if not bool(torch.isfinite(tensor).all()):
            raise NonFinite(f"tensor {name!r} holds NaN or infinity; train or fetch the probe again")
    kinds.check_values(manifest, own)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
