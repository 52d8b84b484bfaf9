"""A figure with its 95% interval: from a bootstrap's resamples (percentile method; Efron 1979), or of a median from the
values in order."""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
INTERVAL: Final = (0.025, 0.975)
LEVEL: Final = 0.95


class Estimate(NamedTuple):
    """A figure with its 95% interval, NaN where there is none. Printed with three decimals, or as a format says:
    ``f"{found:.1%}"``."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(one, spec or ".3f") for one in self)
        return f"{value} (no interval)" if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


class Average(Protocol):
    """As `numpy.mean` and `numpy.median`: a figure of each row."""

    def __call__(self, values: Floats, /, *, axis: int) -> Floats: ...


def percentile(value: float, resampled: ArrayLike) -> Estimate:
    """A figure with the interval of its resamples ``[n]``; NaN without any, and where one is NaN."""
    found = np.asarray(resampled, np.float64)
    low, high = np.quantile(found, INTERVAL) if len(found) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))


def bootstrap(values: ArrayLike, average: Average, resamples: int = 10_000) -> Estimate:
    """The average of values ``[n]`` that are independent of one another. `probes.evaluation` has the clustered one."""
    sample = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sample), (resamples, len(sample)))
    return percentile(float(average(sample, axis=-1)), average(sample[drawn], axis=-1))


def median(values: ArrayLike) -> Estimate:
    """The median of independent values ``[n]``, its interval from order statistics, interpolated (Hettmansperger and
    Sheather 1986). Below six values there is none: from the least to the greatest it is less than 95%. A bootstrap of
    so few would claim more than it holds: at 3 values its 95% are 75%, at 7 they are 88%."""
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    # Of the d-th least and the d-th greatest, d = 1, 2 ...: how probably the true median lies between them.
    held = [1 - sum(math.comb(n, i) for i in range(d)) / 2 ** (n - 1) for d in range(1, n // 2 + 1)]
    d = sum(level >= LEVEL for level in held)
    if d == 0:
        return Estimate(float(np.median(ordered)), math.nan, math.nan)
    spare = (held[d - 1] - LEVEL) / (held[d - 1] - held[d])
    inward = (n - d) * spare / (d + (n - 2 * d) * spare)
    low = ordered[d - 1] + inward * (ordered[d] - ordered[d - 1])
    high = ordered[n - d] - inward * (ordered[n - d] - ordered[n - d - 1])
    return Estimate(float(np.median(ordered)), float(low), float(high))
