"""Population stability index of recent scores against the benign quantiles of the manifest."""

from __future__ import annotations

from collections import deque

import numpy as np

from probes import ProbeManifest

WINDOW = 512
MINIMUM = 64


class Drift:
    """PSI over the last ``WINDOW`` statistics of one probe: sum((p - q) ln(p / q)) over the benign deciles.

    Below 0.1 is usually read as stable, above 0.25 as shifted (Siddiqi, Credit Risk Scorecards, 2006).
    """

    def __init__(self, manifest: ProbeManifest) -> None:
        quantiles = manifest.benign_quantiles
        self._edges = None if quantiles is None else np.asarray(quantiles.deciles())
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, statistic: float) -> float | None:
        """Counts a statistic; returns the PSI now, or None while too little is known."""
        self._recent.append(statistic)
        if self._edges is None or len(self._recent) < MINIMUM:
            return None
        bins = np.searchsorted(self._edges, np.asarray(self._recent), side="left")
        # Half a count in every bin keeps an empty one finite.
        found = np.bincount(bins, minlength=10) + 0.5
        share = found / found.sum()
        return float(((share - 0.1) * np.log(share / 0.1)).sum())
