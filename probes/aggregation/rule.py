"""What an aggregation is: two independent forms of one formula."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.method import Aggregation

Floats = NDArray[np.float64]
Carry = tuple[Any, ...]
"""What a rule remembers of a request: empty at the start, later some numbers or arrays of fixed size."""


@dataclass(frozen=True)
class Rule:
    """One aggregation. States are [n, K] with n >= 1 in-mask tokens."""

    final: Callable[[Floats, Aggregation], float]
    """states of the whole request -> value"""
    running: Callable[[Floats, Carry, Aggregation], tuple[Floats, Carry]]
    """next states [n, K], carry -> (value after each of them [n], new carry)"""


def scalar(states: Floats) -> Floats:
    """[n, 1] -> [n]; `ValueError` for another width."""
    if states.shape[1] != 1:
        raise ValueError(f"state has K={states.shape[1]} numbers a token; this aggregation takes K=1")
    return states[:, 0]


def halves(states: Floats) -> tuple[Floats, Floats]:
    """[n, 2 H] -> two of [n, H]; `ValueError` for an odd width."""
    if states.shape[1] % 2:
        raise ValueError(f"state has K={states.shape[1]} numbers a token; this aggregation takes an even K")
    return states[:, : states.shape[1] // 2], states[:, states.shape[1] // 2 :]


def softmax_average(logits: Floats, values: Floats) -> Floats:
    """sum_t softmax_t(logits) values of each column: [n, H] and [n, H] -> [H]"""
    weights = np.exp(logits - logits.max(0))
    return np.asarray((weights * values).sum(0) / weights.sum(0), np.float64)


def log_sum(logits: Floats) -> Floats:
    """log sum exp over the last axis."""
    return np.asarray(np.logaddexp.reduce(logits, axis=-1), np.float64)
