"""Paired ratios to stock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from probes.estimate import Estimate, median

MEASURES = {
    "tokens_per_second": "throughput",
    "inter_token_seconds": "inter-token latency, median",
    "inter_token_p99_seconds": "inter-token latency, 99th percentile",
    "first_token_seconds": "time to first token, median",
    "cpu_seconds": "CPU seconds",
    "memory_mib": "peak resident memory",
}
Rounds = Sequence[dict[str, float]]
Found = dict[str, dict[str, list[dict[str, float]]]]
"""Rounds by workload and arm."""


def pairs(starts: Sequence[Found]) -> Found:
    """What is compared: of a single start its rounds; of several the medians of each, by measure, for how an engine
    happens to lie in memory is in all of its rounds alike."""
    if len(starts) == 1:
        return starts[0]
    return {
        load: {arm: [_middle(start[load][arm]) for start in starts] for arm in arms}
        for load, arms in starts[0].items()
    }


def _middle(rounds: Rounds) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def ratio(arm: Rounds, stock: Rounds, measure: str) -> Estimate:
    """Median of an arm's rounds (or starts) over stock's of the same seeds."""
    return median(np.array([a[measure] for a in arm]) / np.array([s[measure] for s in stock]))
