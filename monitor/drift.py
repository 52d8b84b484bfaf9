"""How far recent scores have moved from the benign quantiles of the manifest: PSI and Kolmogorov-Smirnov."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.manifest import Quantiles

WINDOW = 512
"""Statistics that are compared: the last ones, however long ago they came."""
MINIMUM = 256
STRIDE = 8
"""Statistics between two comparisons, at least: one takes about a tenth of a millisecond."""

Array = npt.NDArray[np.float64]


class Shift(NamedTuple):
    """Recent statistics against the benign ones; 0 where they are distributed alike."""

    psi: float
    """Population stability index. Below 0.1 is usually read as stable, above 0.25 as shifted."""
    ks: float
    """Largest difference of the two distribution functions, 0 to 1. With 512 statistics chance alone exceeds 0.06 once
    in twenty comparisons."""


class Drift:
    """Compares the last ``WINDOW`` statistics of one probe, whatever their verdict, with its benign quantiles."""

    def __init__(self, benign: Quantiles) -> None:
        self._benign = benign
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._since = 0

    def extend(self, statistics: Sequence[float]) -> None:
        """Takes in the statistics of finished sequences, the oldest first."""
        self._recent.extend(statistics)
        self._since += len(statistics)

    def shift(self) -> Shift | None:
        """The shift now, where ``STRIDE`` statistics came since the last; None otherwise, or below ``MINIMUM``."""
        if len(self._recent) < MINIMUM or self._since < STRIDE:
            return None
        self._since = 0
        found = np.sort(np.asarray(self._recent, np.float64))
        return Shift(psi(found, self._benign), ks(found, self._benign))


def psi(found: Array, benign: Quantiles) -> float:
    """Population stability index of ``found`` ([n], sorted) over the benign deciles: sum((p - q) ln(p / q)), with
    shares p found and q expected (Siddiqi, Credit Risk Scorecards, 2006)."""
    # Equal deciles (a point mass in the benign scores) leave fewer and larger bins.
    edges, counts = np.unique(benign.deciles(), return_counts=True)
    expected = np.diff(np.concatenate([[0], np.cumsum(counts), [10]])) / 10
    below = np.searchsorted(found, edges, side="right")
    # Half a count in every bin keeps an empty one finite.
    in_bins = np.diff(np.concatenate([[0], below, [len(found)]])) + 0.5
    share = in_bins / in_bins.sum()
    return float(((share - expected) * np.log(share / expected)).sum())


def ks(found: Array, benign: Quantiles) -> float:
    """Kolmogorov-Smirnov statistic sup |F_found - F_benign| of ``found`` ([n], sorted). F_benign is linear between the
    stored quantiles; beyond the outermost it is only known to stay on its side of them."""
    values, levels = np.asarray(benign.values), np.asarray(benign.probabilities)
    # Between its steps F_found is flat and F_benign rises: the supremum lies at a step or a quantile, on either side.
    points = np.unique(np.concatenate([found, values]))
    right = _difference(points, found, values, levels)
    left = _difference(-points, -found[::-1], -values[::-1], 1 - levels[::-1])
    return max(right, left)


def _difference(points: Array, found: Array, values: Array, levels: Array) -> float:
    """Largest difference of the two distribution functions at ``points``, as limits from the right."""
    seen = np.searchsorted(found, points, side="right") / len(found)
    # Of equal ``values`` (a point mass) np.interp takes the last, which is the limit from the right.
    known = np.interp(points, values, levels)
    least = np.where(points < values[0], 0.0, known)
    most = np.where(points >= values[-1], 1.0, known)
    return float(np.maximum(seen - most, least - seen).max())
