"""Paired ratios to stock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.estimate import Estimate, bootstrap

MEASURES = {
    "tokens_per_second": "throughput",
    "inter_token_seconds": "inter-token latency, median",
    "inter_token_p99_seconds": "inter-token latency, 99th percentile",
    "first_token_seconds": "time to first token, median",
    "cpu_seconds": "CPU seconds",
    "memory_mib": "peak resident memory",
}
Rounds = Sequence[dict[str, float]]


def ratio(arm: Rounds, stock: Rounds, measure: str) -> Estimate:
    """Median of an arm's rounds over stock's of the same seeds, resampled by round."""
    return bootstrap(np.array([a[measure] for a in arm]) / np.array([s[measure] for s in stock]), np.median)
