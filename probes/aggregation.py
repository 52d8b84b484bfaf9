"""From token states to one value for a request: offline, and streaming with O(1) state.

A rule has two independent forms, held equal (to 1e-5) by a property test: `final`, the plain formula over
all in-mask tokens; and `running`, which continues from a carry of a few floats and gives the value after
each new token. Tokens outside the mask are dropped before a rule sees them: they are never counted as 0. No
token in the mask: NaN.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.manifest import Aggregation, Statistic

Floats = NDArray[np.float64]
Carry = tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """One aggregation. States are [n, K] with n >= 1 in-mask tokens; the rules below take K = 1."""

    final: Callable[[Floats, Aggregation], float]
    """states of the whole request -> value"""
    running: Callable[[Floats, Carry, Aggregation], tuple[list[float], Carry]]
    """next states, carry (empty at the start) -> (value after each of them, new carry)"""


def _scalar(states: Floats) -> Floats:
    if states.shape[1] != 1:
        raise ValueError(f"state has K={states.shape[1]} numbers a token; this aggregation takes K=1")
    return states[:, 0]


def _mean_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[list[float], Carry]:
    total, n = carry or (0.0, 0.0)
    values = []
    for score in _scalar(states).tolist():
        total, n = total + score, n + 1
        values.append(total / n)
    return values, (total, n)


def _max_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[list[float], Carry]:
    values = list(accumulate(_scalar(states).tolist(), max, initial=carry[0] if carry else -math.inf))[1:]
    return values, (values[-1],)


def _last_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[list[float], Carry]:
    return _scalar(states).tolist(), ()


def _ema(scores: list[float], carry: Carry, alpha: float) -> list[float]:
    # The first token starts the average: an average started at 0 would count a token that was never there.
    seeded = scores if not carry else [carry[0], *scores]
    return list(accumulate(seeded, lambda mean, score: mean + alpha * (score - mean)))[len(carry) :]


def _ema_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[list[float], Carry]:
    values = _ema(_scalar(states).tolist(), carry, rule.alpha or 1.0)
    return values, (values[-1],)


def _ema_final(states: Floats, rule: Aggregation) -> float:
    """sum_t a (1-a)^(n-t) z_t, the first token with the whole remaining weight (1-a)^(n-1)."""
    scores, alpha = _scalar(states), rule.alpha or 1.0
    weights = alpha * (1 - alpha) ** np.arange(len(scores) - 1, -1, -1, dtype=np.float64)
    weights[0] = (1 - alpha) ** (len(scores) - 1)
    return float(weights @ scores)


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "mean": Rule(lambda states, _: float(_scalar(states).mean()), _mean_running),
        "max": Rule(lambda states, _: float(_scalar(states).max()), _max_running),
        "last": Rule(lambda states, _: float(_scalar(states)[-1]), _last_running),
        "ema": Rule(_ema_final, _ema_running),
    }
)


def aggregate(states: Floats, rule: Aggregation) -> float:
    """The request's value over its in-mask states [n, K]; NaN where there is none."""
    return RULES[rule.method].final(states, rule) if len(states) else math.nan


def running(states: Floats, rule: Aggregation) -> Floats:
    """The value after each in-mask token: [n, K] -> [n]."""
    if not len(states):
        return np.empty(0)
    return np.asarray(RULES[rule.method].running(states, (), rule)[0])


def statistic(states: Floats, rule: Aggregation, which: Statistic) -> float:
    """The deployed statistic over in-mask states [n, K].

    `final`: the value after the last token. `running_sup`: the highest running value from the
    `min_tokens`-th in-mask token on, which is what a live alert latches on; a shorter request uses its final
    value. NaN without any token.
    """
    if which == "final" or len(states) < rule.min_tokens:
        return aggregate(states, rule)
    return float(running(states, rule)[rule.min_tokens - 1 :].max())


class Stream:
    """The same values for one request while its tokens arrive, in any chunking. Holds a few floats."""

    __slots__ = ("_carry", "_rule", "_running", "_which", "count", "sup", "value")

    def __init__(self, rule: Aggregation, which: Statistic) -> None:
        self._rule = rule
        self._which = which
        self._running = RULES[rule.method].running
        self._carry: Carry = ()
        self.count: int = 0
        """In-mask tokens so far."""
        self.value: float = math.nan
        """Running value after the latest in-mask token; NaN before the first."""
        self.sup: float = math.nan
        """Highest running value from the `min_tokens`-th in-mask token on; NaN before it."""

    def push(self, states: Floats) -> float:
        """Continue with in-mask states [n, K]; returns the running value."""
        if len(states):
            values, self._carry = self._running(states, self._carry, self._rule)
            eligible = values[max(0, self._rule.min_tokens - 1 - self.count) :]
            self.count += len(values)
            self.value = values[-1]
            if eligible:
                highest = max(eligible)
                self.sup = highest if math.isnan(self.sup) else max(self.sup, highest)
        return self.value

    @property
    def statistic(self) -> float:
        """The deployed statistic if the request ended now."""
        return self.value if self._which == "final" or math.isnan(self.sup) else self.sup

    @property
    def live(self) -> float:
        """What an alert may latch on before the request has ended; NaN while it may not."""
        return self.sup if self._which == "running_sup" else math.nan
