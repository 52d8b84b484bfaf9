"""A figure with its 95% interval, from a bootstrap's resamples (percentile method; Efron 1979) or from signed ranks."""

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


def hodges_lehmann(values: ArrayLike) -> Estimate:
    """The pseudomedian of independent values ``[n]`` that lie symmetrically about it: the median of the Walsh averages,
    the means of all pairs and of each value with itself (Hodges and Lehmann 1963). Its interval inverts Wilcoxon's
    signed-rank test, exactly without ties. Below six values there is none: from the least to the greatest of five it is
    less than 95%. A bootstrap of so few would claim more than it holds."""
    sample = np.asarray(values, np.float64)
    first, second = np.triu_indices(len(sample))
    averages = np.sort((sample[first] + sample[second]) / 2)
    ways = np.ones(1)  # in which ranks 1 .. n, each counted or not, add up to 0, 1, 2 ...
    for rank in range(1, len(sample) + 1):
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    below = int((np.cumsum(ways) / 2.0 ** len(sample) <= (1 - LEVEL) / 2).sum())
    low, high = (averages[below - 1], averages[-below]) if below else (math.nan, math.nan)
    return Estimate(float(np.median(averages)), float(low), float(high))
