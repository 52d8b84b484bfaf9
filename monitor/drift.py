"""Population stability index of recent scores against the benign quantiles of the manifest."""

from __future__ import annotations

from collections import deque

import numpy as np

from probes import ProbeManifest

WINDOW = 512
MINIMUM = 256


class Drift:
    """PSI over the last ``WINDOW`` statistics of one probe: sum((p - q) ln(p / q)) over the benign deciles.

    Below 0.1 is usually read as stable, above 0.25 as shifted (Siddiqi, Credit Risk Scorecards, 2006).
    """

    def __init__(self, manifest: ProbeManifest) -> None:
        quantiles = manifest.benign_quantiles
        self._edges = self._expected = None
        if quantiles is not None:
            # Equal deciles (a point mass in the benign scores) leave fewer and larger bins.
            self._edges, counts = np.unique(quantiles.deciles(), return_counts=True)
            self._expected = np.diff(np.concatenate([[0], np.cumsum(counts), [10]])) / 10
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, statistic: float) -> float | None:
        """Counts a statistic; returns the PSI now, or None while too little is known."""
        self._recent.append(statistic)
        if self._edges is None or self._expected is None or len(self._recent) < MINIMUM:
            return None
        bins = np.searchsorted(self._edges, np.asarray(self._recent), side="left")
        # Half a count in every bin keeps an empty one finite.
        found = np.bincount(bins, minlength=len(self._expected)) + 0.5
        share = found / found.sum()
        return float(((share - self._expected) * np.log(share / self._expected)).sum())
