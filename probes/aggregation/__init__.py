"""From token states to one value for a request: offline, and streaming with O(1) state.

A rule has two independent forms, held equal (to 1e-5) by a property test: `final`, the plain formula over
all in-mask tokens; and `running`, which continues from a carry of fixed size and gives the value after
each new token. Tokens outside the mask are dropped before a rule sees them: they are never counted as 0. No
token in the mask: NaN.

    mean, max, last, ema, cusum, softmax, rolling_mean     K = 1: one score a token
    multimax                                               K = H heads
    attention, rolling_attention                           K = 2 H: logits of the heads, then their values
    feature_max                                            K features times their weights, and the bias
    mean_log_odds, mean_level                              K = C classes
    gap                                                    K = 2: belief, assertion
    members                                                K = those of the members one after the other
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from probes.aggregation import attention, columns, gap, scalar, windows
from probes.aggregation.members import members_rule
from probes.aggregation.rule import Carry, Floats, Rule
from probes.manifest import Statistic
from probes.method import Aggregation

__all__ = ["RULES", "Carry", "Floats", "Rule", "Stream", "aggregate", "running", "statistic"]

_SIMPLE: Final[Mapping[str, Rule]] = {
    "mean": Rule(scalar.mean_final, scalar.mean_running),
    "max": Rule(scalar.max_final, scalar.max_running),
    "last": Rule(scalar.last_final, scalar.last_running),
    "ema": Rule(scalar.ema_final, scalar.ema_running),
    "cusum": Rule(scalar.cusum_final, scalar.cusum_running),
    "softmax": Rule(attention.softmax_final, attention.softmax_running),
    "rolling_mean": Rule(windows.rolling_mean_final, windows.rolling_mean_running),
    "multimax": Rule(columns.multimax_final, columns.multimax_running),
    "attention": Rule(attention.attention_final, attention.attention_running),
    "rolling_attention": Rule(windows.rolling_attention_final, windows.rolling_attention_running),
    "feature_max": Rule(columns.feature_max_final, columns.feature_max_running),
    "mean_log_odds": Rule(columns.mean_log_odds_final, columns.mean_log_odds_running),
    "mean_level": Rule(columns.mean_level_final, columns.mean_level_running),
    "gap": Rule(gap.gap_final, gap.gap_running),
}
RULES: Final[Mapping[str, Rule]] = MappingProxyType({**_SIMPLE, "members": members_rule(_SIMPLE)})


def aggregate(states: Floats, rule: Aggregation) -> float:
    """The request's value over its in-mask states [n, K]; NaN where there is none."""
    return RULES[rule.method].final(states, rule) if len(states) else math.nan


def running(states: Floats, rule: Aggregation) -> Floats:
    """The value after each in-mask token: [n, K] -> [n]."""
    if not len(states):
        return np.empty(0)
    return RULES[rule.method].running(states, (), rule)[0]


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
            self.value = float(values[-1])
            if len(eligible):
                highest = float(eligible.max())
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
