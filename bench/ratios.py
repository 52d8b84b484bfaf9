"""Paired ratios to stock."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.arms import AGAIN, STOCK
from probes.estimate import Estimate, hodges_lehmann

MEASURES = {
    "tokens_per_second": "throughput",
    "tokens_per_second_plain": "throughput, median round",
    "inter_token_seconds": "inter-token latency, median",
    "inter_token_p99_seconds": "inter-token latency, 99th percentile",
    "first_token_seconds": "time to first token, median",
    "cpu_seconds": "CPU seconds",
    "memory_mib": "peak resident memory",
}
STEPS = "step_seconds"
"""Of every step of a round, where arms take turns step by step."""
Rounds = Sequence[dict[str, Any]]
Found = dict[str, dict[str, list[dict[str, Any]]]]
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


def _middle(rounds: Rounds) -> dict[str, Any]:
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0] if name != STEPS}
    steps = [one[STEPS] for one in rounds if STEPS in one]
    if steps and len({len(one) for one in steps}) == 1:
        tokens = rounds[0]["tokens_per_second"] * sum(steps[0])
        found = {
            "tokens_per_second": tokens / undisturbed(steps),
            "tokens_per_second_plain": found["tokens_per_second"],
            **{name: figure for name, figure in found.items() if name != "tokens_per_second"},
        }
    return found


def undisturbed(rounds: Sequence[Sequence[float]]) -> float:
    """Seconds of a round, of which each step ``[rounds, steps]`` takes the median of what it took in all rounds: what
    the machine does meanwhile falls on few of them, and what a step itself has to do on all. So does what the monitor
    does at other steps in each round (a collection of Python's garbage): the median round beside it has that."""
    return float(np.median(np.asarray(rounds, np.float64), axis=0).sum())


def ratio(arms: Mapping[str, Rounds], arm: str, measure: str) -> Estimate:
    """An arm over the geometric mean of both stock arms, pair by pair (rounds or starts of the same seeds), whose noise
    has half the variance of one's; the second stock arm over the first."""
    names = [STOCK] if arm == AGAIN or AGAIN not in arms else [STOCK, AGAIN]
    stock = np.array([[one[measure] for one in arms[name]] for name in names])  # [arms, pairs]
    own = np.array([one[measure] for one in arms[arm]])
    return Estimate(*np.exp(hodges_lehmann(np.log(own) - np.log(stock).mean(axis=0))).tolist())
