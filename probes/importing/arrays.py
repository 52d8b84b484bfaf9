"""Stand-ins for numpy's array and dtype while a pickle is read: numpy itself never sees a state from a file."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import NonFinite, TensorInvalid
from probes.importing.foreign import Floats

_CODES: Final = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


class DType:
    """A numpy dtype, of numbers alone."""

    def __init__(self, code: str = "", *_: object) -> None:
        self._code, self._order = str(code), "<"

    def restore(self, state: Any) -> None:
        """state (version, byte order, ...)"""
        self._order = ">" if state[1] == ">" else "<"

    def numpy(self) -> "np.dtype[Any]":
        """The dtype, or `ValueError` for objects, text and records."""
        if self._code not in _CODES:
            raise ValueError(f"an array of {self._code[:16]!r}, which are no numbers")
        return np.dtype(self._order + self._code)


def numbers(dtype: object) -> "np.dtype[Any]":
    """The numpy dtype that a file means; `ValueError` where it is none of numbers."""
    if not isinstance(dtype, DType):
        raise ValueError(f"an array of a {type(dtype).__name__}")
    return dtype.numpy()


class Array:
    """A numpy array that is being rebuilt; `value` is it once its state was read."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None
        """None: an array of objects or text, which no probe needs."""

    def restore(self, state: Any) -> None:
        """state (version, shape, dtype, Fortran order, bytes)"""
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):
            return
        try:
            numbers(dtype)
        except ValueError:
            return  # class names, feature names: said elsewhere too, or not needed
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = frombuffer(raw, dtype, shape, "F" if fortran else "C")


def reconstruct(_kind: object, _shape: object, _code: object) -> Array:
    """What numpy's pickles call first; the state comes later."""
    return Array()


def frombuffer(data: bytes | bytearray, dtype: DType, shape: Sequence[int], order: str) -> NDArray[Any]:
    """The array in `data`; `ValueError` where it is not exactly of that shape."""
    flat = np.frombuffer(bytes(data), numbers(dtype))
    if any(n < 0 for n in shape) or len(shape) > 8:
        raise ValueError(f"an array of shape {list(shape)[:8]}")
    return flat.reshape(tuple(shape), order="F" if order == "F" else "C")


def scalar(dtype: DType, data: bytes | str = b"") -> float:
    """A numpy scalar."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    return float(np.frombuffer(raw, numbers(dtype))[0])


def floats(found: object, name: str) -> Floats:
    """Any array, tensor, list or number as finite float64; `TensorInvalid` or `NonFinite` naming it."""
    try:
        value = _plain(found)
    except (ValueError, TypeError, OverflowError):
        raise TensorInvalid(
            f"{name} is a {type(found).__name__}, not numbers; fetch the file again"
        ) from None
    if not value.size:
        raise TensorInvalid(f"{name} has shape {list(value.shape)}; it holds nothing")
    if not np.isfinite(value).all():
        raise NonFinite(f"{name} holds NaN or infinity; fetch the file again")
    return value


def _plain(found: object) -> Floats:
    if isinstance(found, Array):
        found = found.value
    if isinstance(found, torch.Tensor):
        if found.layout != torch.strided or found.is_quantized or found.is_complex():
            raise TypeError("no dense tensor")
        return np.asarray(found.detach().cpu().double().numpy(), np.float64)
    if isinstance(found, np.ndarray) and found.dtype.kind not in "fiub":
        raise TypeError("no numbers")
    if not isinstance(found, np.ndarray | list | tuple | int | float) or isinstance(found, bool):
        raise TypeError("no numbers")
    return np.asarray(found, np.float64)
