"""A missing score is NaN, never 0, and the NaN says why.

Scores travel as float32. IEEE 754 leaves 22 payload bits in a quiet NaN; the reason lives there and
survives every copy of the bytes. Arithmetic may drop the payload, so reasons are written last.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from monitor.events import FloatArray

_QUIET_NAN = 0x7FC00000
_PAYLOAD = 0x003FFFFF


class Reason(IntEnum):
    """Why a token has no score. The lower-case name is the ``reason`` label of the metric."""

    NON_FINITE = 0  # the hardware's own NaN carries payload 0
    BEFORE_ATTACH = 1
    TAP_SILENT = 2
    NOT_DELIVERED = 3
    OTHER_ADAPTER = 4
    DETACHED = 5
    SKIPPED = 6

    @property
    def label(self) -> str:
        """Value of the metric's label."""
        return self.name.lower()


def nan_for(reason: Reason) -> np.float32:
    """The NaN that means ``reason``."""
    return np.uint32(_QUIET_NAN | int(reason)).view(np.float32)


def fill(array: FloatArray, reason: Reason) -> None:
    """Marks every entry of a contiguous array as unscored."""
    array.view(np.uint32)[...] = _QUIET_NAN | int(reason)


def marked(scores: FloatArray, why: npt.NDArray[np.int64]) -> FloatArray:
    """A copy of ``scores [T]`` that holds the NaN of its reason wherever ``why [T]`` is not -1."""
    found = np.array(scores, np.float32)
    bad = why >= 0
    found.view(np.uint32)[bad] = _QUIET_NAN | why[bad].astype(np.uint32)
    return found


def explain(states: FloatArray, projections: FloatArray) -> None:
    """Gives every state that is not finite its reason, in place.

    ``states [T, K]`` come from ``projections [L, T, C]``, where a row that no tap wrote still holds the mark
    of ``TAP_SILENT``.
    """
    finite = np.isfinite(states)
    if np.logical_and.reduce(finite, axis=None):  # as all(), without its detour through Python
        return
    bad = ~finite
    silent = (projections.view(np.uint32) == (_QUIET_NAN | Reason.TAP_SILENT)).any(axis=(0, 2))  # [T]
    bits = states.view(np.uint32)
    bits[bad] = _QUIET_NAN | Reason.NON_FINITE
    bits[bad & silent[:, None]] = _QUIET_NAN | Reason.TAP_SILENT


def reasons(states: FloatArray) -> npt.NDArray[np.int64]:
    """The reason of every entry; -1 where there is a finite score. Infinite scores count as NON_FINITE."""
    codes = (np.ascontiguousarray(states).view(np.uint32) & _PAYLOAD).astype(np.int64)
    codes[np.isinf(states)] = Reason.NON_FINITE
    codes[codes > max(Reason)] = Reason.NON_FINITE
    codes[np.isfinite(states)] = -1
    return codes
