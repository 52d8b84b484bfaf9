"""GGUF, llama.cpp's container, as far as control vectors need it: read as hostile, and written.

"GGUF", version u32 (2 or 3), tensors u64, pairs u64, pairs (key, type u32, value), tensors (name, axes u32, sizes
u64 each, type u32, offset u64), padding to the alignment, data. Little-endian; text is a length u64 and UTF-8.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.errors import MalformedArtifact, OversizedArtifact, TruncatedArtifact
from probes.importing.bounded import MAX_NUMBERS
from probes.importing.foreign import Floats

MAGIC: Final = b"GGUF"
MAX_ENTRIES: Final = 4096
"""Tensors, pairs, and values of one array: a control vector has a tensor a layer and three pairs."""
MAX_TEXT: Final = 1 << 16
_ALIGNMENT: Final = 32
_NUMBERS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY, _U32 = 8, 9, 4
_F32: Final = 0
_DTYPES: Final = {_F32: "<f4", 1: "<f2", 28: "<f8", 30: "bf16"}


def read(data: bytes) -> tuple[dict[str, Any], dict[str, Floats]]:
    """The pairs and the tensors in a file; `ArtifactError` for anything that is not exactly as said above."""
    if data[:4] != MAGIC:
        raise MalformedArtifact("no GGUF magic at its start; fetch the file again")
    cursor = _Cursor(data, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise MalformedArtifact(f"GGUF version {version}; versions 2 and 3 are read, write it again")
    n_tensors, n_pairs = _counted(cursor.number("Q")), _counted(cursor.number("Q"))
    pairs = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(n_pairs)}
    entries = [_entry(cursor) for _ in range(n_tensors)]
    if len({name for name, *_ in entries}) < len(entries):
        raise MalformedArtifact("two tensors of one name; write the file again")
    if sum(math.prod(shape) for _, shape, *_ in entries) > MAX_NUMBERS:  # they may share bytes
        raise OversizedArtifact(f"over {MAX_NUMBERS} numbers; this is no control vector")
    step = pairs.get("general.alignment", _ALIGNMENT)
    if not isinstance(step, int) or not 1 <= step <= 4096:
        raise MalformedArtifact(f"alignment {str(step)[:20]}; fetch the file again")
    start = cursor.at + -cursor.at % step
    return pairs, {name: _tensor(data, start + at, sizes, kind, name) for name, sizes, kind, at in entries}


def write(pairs: Mapping[str, str | int], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """A file of version 3; pairs are text or u32, tensors float32."""
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for key, value in pairs.items():
        said = struct.pack("<I", _U32) + struct.pack("<I", value) if isinstance(value, int) else None
        head += [_packed(key), said or struct.pack("<I", _TEXT) + _packed(str(value))]
    offset, body = 0, []
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor, "<f4").tobytes()
        sizes = tensor.shape[::-1]  # GGUF names the fastest axis first
        head += [_packed(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, _F32, offset)]
        body.append(raw + bytes(-len(raw) % _ALIGNMENT))
        offset += len(body[-1])
    joined = b"".join(head)
    return joined + bytes(-len(joined) % _ALIGNMENT) + b"".join(body)


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _counted(found: int) -> int:
    if found > MAX_ENTRIES:
        raise OversizedArtifact(f"{found} entries, the limit is {MAX_ENTRIES}; this is no control vector")
    return found


class _Cursor:
    """Reads on from a place, and never beyond the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.at = data, at

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise TruncatedArtifact(f"{len(self._data)} bytes, and more are announced; fetch the file again")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        size = self.number("Q")
        if size > MAX_TEXT:
            raise OversizedArtifact(
                f"text of {size} bytes, the limit is {MAX_TEXT}; this is no control vector"
            )
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY and not nested:
            inner = self.number("I")
            return [self.value(inner, nested=True) for _ in range(_counted(self.number("Q")))]
        raise MalformedArtifact(f"a value of type {kind}; fetch the file again")


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = cursor.text(), cursor.number("I")
    if axes > 4:
        raise MalformedArtifact(
            f"tensor {name[:40]!r} has {axes} axes, GGUF has 4 at most; fetch the file again"
        )
    sizes = tuple(cursor.number("Q") for _ in range(axes))
    return name, sizes, cursor.number("I"), cursor.number("Q")


def _tensor(data: bytes, start: int, sizes: tuple[int, ...], kind: int, name: str) -> Floats:
    code = _DTYPES.get(kind)
    if code is None:
        raise MalformedArtifact(
            f"tensor {name[:40]!r} has GGML type {kind}; store it as F32, F16, BF16 or F64"
        )
    dtype = np.dtype("<u2" if code == "bf16" else code)
    count = math.prod(sizes)
    if start + count * dtype.itemsize > len(data):
        raise TruncatedArtifact(f"tensor {name[:40]!r} lies beyond the file's end; fetch the file again")
    flat = np.frombuffer(data, dtype, count, start)
    if code == "bf16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(sizes[::-1]).astype(np.float64)
