"""Aggregations of one score a token: K = 1."""

import math
from itertools import accumulate

import numpy as np

from probes.aggregation.rule import Carry, Floats, scalar
from probes.method import Aggregation


def mean_final(states: Floats, _: Aggregation) -> float:
    """sum_t z_t / n"""
    return float(scalar(states).mean())


def mean_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries (sum, n)."""
    total, n = carry or (0.0, 0)
    sums = total + np.cumsum(scalar(states))
    return sums / np.arange(n + 1, n + len(sums) + 1), (sums[-1], n + len(sums))


def max_final(states: Floats, _: Aggregation) -> float:
    """max_t z_t"""
    return float(scalar(states).max())


def max_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries the maximum."""
    values = np.maximum(np.maximum.accumulate(scalar(states)), carry[0] if carry else -math.inf)
    return values, (values[-1],)


def last_final(states: Floats, _: Aggregation) -> float:
    """z_n"""
    return float(scalar(states)[-1])


def last_running(states: Floats, _carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries nothing."""
    return scalar(states).copy(), ()


def ema_final(states: Floats, rule: Aggregation) -> float:
    """sum_t a (1-a)^(n-t) z_t, the first token with the whole remaining weight (1-a)^(n-1)."""
    scores, alpha = scalar(states), rule.alpha or 1.0
    weights = alpha * (1 - alpha) ** np.arange(len(scores) - 1, -1, -1, dtype=np.float64)
    weights[0] = (1 - alpha) ** (len(scores) - 1)
    return float(weights @ scores)


def ema_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """e = (1-a) e + a z. Carries e.

    The first token starts the average: an average started at 0 would count a token that was never there.
    """
    alpha = rule.alpha or 1.0
    seeded = [*carry, *scalar(states).tolist()]
    values = np.array(list(accumulate(seeded, lambda e, z: e + alpha * (z - e)))[len(carry) :])
    return values, (values[-1],)


def cusum_final(states: Floats, rule: Aggregation) -> float:
    """The largest sum of z_t - k over tokens at the end, the empty sum included (Page 1954)."""
    reference = rule.reference or 0.0
    suffixes = np.cumsum((scalar(states) - reference)[::-1])
    return float(max(0.0, suffixes.max()))


def cusum_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """S = max(0, S + z - k). Carries S."""
    reference = rule.reference or 0.0
    (before,) = carry or (0.0,)
    steps = accumulate(
        (scalar(states) - reference).tolist(), lambda s, z: max(0.0, s + z), initial=float(before)
    )
    values = np.array(list(steps)[1:])
    return values, (values[-1],)
