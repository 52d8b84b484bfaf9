"""A figure with its 95% interval, from a bootstrap's resamples (percentile method; Efron 1979)."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
INTERVAL: Final = (0.025, 0.975)


class Estimate(NamedTuple):
    """A figure with its 95% interval. Printed with three decimals, or as a format says: ``f"{found:.1%}"``."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(one, spec or ".3f") for one in self)
        return f"{value} [{low}, {high}]"

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
