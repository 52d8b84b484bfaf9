"""How soon a positive is caught, in answer tokens."""

import numpy as np

from probes import evaluation
from probes.evaluating.bench import Bench, share
from probes.evaluating.card import Latency, NotComputed
from probes.evaluating.separation import uncalibrated


def latency(bench: Bench) -> Latency | NotComputed:
    """Share of the test positives caught by each answer token; 0: before anything was said."""
    rule = bench.probe.manifest
    if rule.threshold is None:
        return uncalibrated()
    if rule.statistic != "running_sup":
        return NotComputed(
            reason=f"the statistic {rule.statistic!r} is known at the end of an answer alone",
            remedy="deploy the probe with running_sup",
        )
    positives = np.flatnonzero(bench.test.labels)
    times = [evaluation.detection_tokens(bench.probe, bench.test.found[i]) for i in positives]
    return curve(times)


def curve(times: list[int | None]) -> Latency:
    """From the detection time of each positive; None: never."""
    caught = np.sort([time for time in times if time is not None])
    steps = tuple((int(t), float((caught <= t).sum() / len(times))) for t in np.unique(caught))
    return Latency(
        caught_by=steps,
        median=float(np.median(caught)) if len(caught) else None,
        never=share(len(times) - len(caught), len(times)),
    )
