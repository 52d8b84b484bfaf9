"""Paired ratios to stock, and what may be said of a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MEASURES = {
    "tokens_per_second": "throughput",
    "inter_token_seconds": "inter-token latency, median",
    "inter_token_p99_seconds": "inter-token latency, 99th percentile",
    "first_token_seconds": "time to first token, median",
    "cpu_seconds": "CPU seconds",
    "memory_mib": "peak resident memory",
}
Rounds = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios with its 95% bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def against(self, target: float, larger_is_better: bool) -> str:
        """``met`` if the interval excludes a larger loss, ``missed`` if it excludes the target, else ``unresolved``."""
        low, high = (self.low, self.high) if larger_is_better else (-self.high, -self.low)
        goal = target if larger_is_better else -target
        return "met" if low >= goal else "missed" if high < goal else "unresolved"


def ratio(arm: Rounds, stock: Rounds, measure: str) -> Ratio:
    """Of an arm's rounds to stock's of the same seeds, resampled by round."""
    paired = np.array([a[measure] for a in arm]) / np.array([s[measure] for s in stock])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(paired, (10_000, len(paired))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(float(np.median(paired)), float(low), float(high))
