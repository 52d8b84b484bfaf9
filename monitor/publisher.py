"""What metrics tell of the attached probes and of every verdict: counts, margins, drift."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np

from monitor.bank import ProbeBank
from monitor.drift import Drift
from monitor.jury import Jury
from monitor.metrics import Metrics
from monitor.verdict import FLAGGED, OK, UNSCORED, Verdicts

WAITING = 256
"""Verdicts after which they are added up though nobody reads."""


class Publisher:
    """Of one engine. Verdicts wait until somebody reads the metrics, and are then counted column by column: many probes
    have thousands of counters, and every sequence changes most of them."""

    def __init__(self, metrics: Metrics, bank: ProbeBank, failed: Callable[[Exception], None]) -> None:
        """``failed`` is told of an error of ours."""
        self._metrics = metrics
        self._failed = failed
        self._drift: dict[tuple[str, str], Drift] = {}
        self._waiting: list[tuple[Jury, Verdicts]] = []
        self._lock = threading.Lock()
        metrics.before_reading(self._tell)
        self._announce(bank)

    def change(self, before: ProbeBank, after: ProbeBank) -> None:
        """From now on the probes of ``after`` are attached, and those that ``before`` alone has are not."""
        stays = set(after.contents)
        with self._metrics.applying:
            self._count()
            for seat, content in zip(before.seats, before.contents, strict=True):
                if content not in stays:
                    self._metrics.retire_probe(seat.probe)
                    self._drift.pop(content, None)
            self._announce(after)

    def _announce(self, bank: ProbeBank) -> None:
        for seat in bank.seats:
            manifest = seat.probe.manifest
            self._metrics.add_probe(seat.probe)
            if manifest.benign_quantiles is not None:
                self._drift.setdefault(
                    (manifest.name, manifest.tensors_sha256), Drift(manifest.benign_quantiles)
                )

    def publish(self, verdicts: Verdicts, jury: Jury) -> None:
        """One sequence has been judged."""
        with self._lock:
            self._waiting.append((jury, verdicts))
            many = len(self._waiting) >= WAITING
        if self._metrics.others_read:
            self._tell()
        # Whoever reads at this moment counts them, or the next verdict does: what serves waits for nobody.
        elif many and self._metrics.applying.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._metrics.applying.release()

    def _tell(self) -> None:
        """What waits is in the metrics, and how it compares with benign traffic."""
        with self._metrics.applying:
            self._count()
            for (name, _), followed in self._drift.items():
                shift = followed.shift()
                if shift is not None:
                    self._metrics.set("probewatch_score_drift", name, to=shift.psi)
                    self._metrics.set("probewatch_score_drift_ks", name, to=shift.ks)

    def _count(self) -> None:
        """Adds up what waits. Called with ``applying`` held; never raises, for whoever reads shall see the rest."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for jury, group in groupby(waiting, key=itemgetter(0)):
            try:
                self._add(jury, [verdicts for _, verdicts in group])
            except Exception as error:
                self._failed(error)

    def _add(self, jury: Jury, verdicts: Sequence[Verdicts]) -> None:
        flagged = np.array([one.flagged for one in verdicts])  # [n, P], as all of these
        unscored = np.array([one.unscored for one in verdicts]) & ~flagged
        scores = np.array([one.scores for one in verdicts])
        for label, seen in ((FLAGGED, flagged), (UNSCORED, unscored), (OK, ~(flagged | unscored))):
            for name, count in zip(jury.names, seen.sum(axis=0).tolist(), strict=True):
                self._metrics.inc("probewatch_requests_total", name, label, by=count)
        alerts = flagged[:, jury.acting_places].sum(axis=0).tolist()
        for (name, action), count in zip(jury.acting, alerts, strict=True):
            self._metrics.inc("probewatch_alerts_total", name, action, by=count)
        places = jury.margin_places
        margins = (scores[:, places] - jury.thresholds[places]) / jury.margin_units
        self._metrics.observe_all("probewatch_request_margin", jury.margin_children, margins)
        for place, content in jury.calibrated:
            if content in self._drift:  # else detached meanwhile
                own = scores[:, place]
                self._drift[content].extend(own[np.isfinite(own)].tolist())
