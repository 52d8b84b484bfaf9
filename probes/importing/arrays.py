"""Stand-ins for numpy's array and dtype while a pickle is read: numpy itself never sees a state from a file."""

import math
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import NonFinite, OversizedArtifact, TensorInvalid
from probes.importing.bounded import MAX_NUMBERS
from probes.importing.foreign import Floats

MAX_LISTED: Final = 1 << 24
"""Numbers in lists, which are counted one by one: a CAST vector has a list a layer."""
_CODES: Final = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


_TEXT: Final = re.compile(r"U[1-9]\d{0,3}")


class DType:
    """A numpy dtype, of numbers or text alone."""

    def __init__(self, code: object = "", *_: object) -> None:
        self._code, self._order = code if isinstance(code, str) else "", "<"

    @property
    def of_objects(self) -> bool:
        """Whether an array of it is a pickle of its own."""
        return self._code[:1] == "O"

    def restore(self, state: Any) -> None:
        """state (version, byte order, ...)"""
        self._order = ">" if state[1] == ">" else "<"

    def numpy(self) -> "np.dtype[Any]":
        """The dtype, or `ValueError` for objects and records."""
        if self._code not in _CODES and not _TEXT.fullmatch(self._code):
            raise ValueError(f"an array of {self._code[:16]!r}, which are no numbers")
        return np.dtype(self._order + self._code)


def numbers(dtype: object) -> "np.dtype[Any]":
    """The numpy dtype that a file means; `ValueError` where it is none of numbers or text."""
    if not isinstance(dtype, DType):
        raise ValueError(f"an array of a {type(dtype).__name__}")
    return dtype.numpy()


class Array:
    """A numpy array that is being rebuilt; `value` is it once its state was read."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None
        """None: an array of objects, which no probe needs."""

    def restore(self, state: Any) -> None:
        """state (version, shape, dtype, Fortran order, bytes)"""
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):
            return
        try:
            numbers(dtype)
        except ValueError:
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = frombuffer(raw, dtype, shape, "F" if fortran else "C")


def reconstruct(_kind: object, _shape: object, _code: object) -> Array:
    """What numpy's pickles call first; the state comes later."""
    return Array()


def sizes(shape: object) -> tuple[int, ...]:
    """A shape, or strides: at most 8 whole numbers, none of them negative."""
    if not isinstance(shape, tuple | list) or len(shape) > 8:
        raise ValueError("an array whose shape is none")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError("an array whose shape is no list of sizes")
    return tuple(shape)


def frombuffer(data: object, dtype: object, shape: Sequence[int], order: str) -> NDArray[Any]:
    """The array in `data`; `ValueError` where it is not exactly of that shape."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"the bytes of an array are a {type(data).__name__}")
    flat = _flat(bytes(data), dtype)
    return flat.reshape(sizes(shape), order="F" if order == "F" else "C")


def _flat(data: bytes, dtype: object) -> NDArray[Any]:
    flat = np.frombuffer(data, numbers(dtype))
    if flat.dtype.kind == "U" and (flat.view(f"{flat.dtype.byteorder}u4") > sys.maxunicode).any():
        raise ValueError("an array of text that is none")
    return flat


def scalar(dtype: DType, data: bytes | str = b"") -> float | str:
    """A numpy scalar."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    found = _flat(raw, dtype)[0]
    return str(found) if found.dtype.kind == "U" else float(found)


def floats(found: object, name: str) -> Floats:
    """Any array, tensor, list or number as finite float64; `TensorInvalid` or `NonFinite` naming it."""
    try:
        value = _plain(found)
    except (ValueError, TypeError, OverflowError):
        raise TensorInvalid(
            f"{name} is a {type(found).__name__}, not numbers; fetch the file again"
        ) from None
    except (MemoryError, RuntimeError):
        raise OversizedArtifact(f"{name} does not fit into memory; this is no probe") from None
    if not value.size:
        raise TensorInvalid(f"{name} has shape {list(value.shape)}; it holds nothing")
    if not np.isfinite(value).all():
        raise NonFinite(f"{name} holds NaN or infinity; fetch the file again")
    return value


def _plain(found: object) -> Floats:
    if isinstance(found, Array):
        found = found.value
    count = _count(found)
    if count > MAX_NUMBERS:
        raise OversizedArtifact(f"over {MAX_NUMBERS} numbers in one tensor; this is no probe")
    if isinstance(found, torch.Tensor):
        if found.layout != torch.strided or found.is_quantized or found.is_complex() or found.is_meta:
            raise TypeError("no dense tensor")
        return np.asarray(found.detach().cpu().double().numpy(), np.float64)
    if isinstance(found, np.ndarray) and found.dtype.kind not in "fiub":
        raise TypeError("no numbers")
    if not isinstance(found, np.ndarray | list | tuple | int | float) or isinstance(found, bool):
        raise TypeError("no numbers")
    return np.asarray(found, np.float64)


def _count(found: object, depth: int = 8) -> int:
    """How many numbers; of lists, which may hold each other many times over, as many as were counted until too many."""
    if isinstance(found, torch.Tensor | np.ndarray):
        return math.prod(found.shape)
    if not isinstance(found, list | tuple):
        return 1
    if not depth:
        raise ValueError("lists in lists in lists")
    total = 1
    for part in found:
        total += _count(part, depth - 1)
        if total > MAX_LISTED:
            raise OversizedArtifact(f"over {MAX_LISTED} numbers in lists; this is no probe")
    return total
