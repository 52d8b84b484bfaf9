"""What metrics tell of the attached probes and of every verdict: counts, margins, drift."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.bank import ProbeBank
from monitor.drift import Drift
from monitor.jury import Jury
from monitor.metrics import Metrics
from monitor.verdict import FLAGGED, OK, UNSCORED, Floats, Verdicts

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
        with metrics.applying:
            self._announce(bank)
            metrics.before_reading(self._tell)

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
        for seat, content in zip(bank.seats, bank.contents, strict=True):
            self._metrics.add_probe(seat.probe)
            benign = seat.probe.manifest.benign_quantiles
            if benign is not None:
                self._drift.setdefault(content, Drift(benign))

    def publish(self, verdicts: Verdicts, jury: Jury) -> None:
        """One sequence has been judged."""
        with self._lock:
            self._waiting.append((jury, verdicts))
            many = len(self._waiting) >= WAITING
        if self._metrics.others_read:
            self._tell()
        # With one API server: whoever reads at this moment counts them, or the next verdict does. Serving never waits.
        elif many and self._metrics.applying.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._metrics.applying.release()

    def _tell(self) -> None:
        """What waits is in the metrics, and how it compares with benign traffic. Never raises."""
        with self._metrics.applying:
            self._count()
            try:
                self._compare()
            except Exception as error:
                self._failed(error)

    def _compare(self) -> None:
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
            verdicts = [own for _, own in group]
            try:
                columns = [_Columns.of(jury, verdicts)]
            except Exception:
                columns = self._one_by_one(jury, verdicts)
            for seen in columns:
                try:
                    self._add(jury, seen)
                except Exception as error:
                    self._failed(error)

    def _one_by_one(self, jury: Jury, verdicts: Sequence[Verdicts]) -> list[_Columns]:
        """Those that can be told; each of the others is an error of its own, and counted nowhere."""
        found = []
        for one in verdicts:
            try:
                found.append(_Columns.of(jury, [one]))
            except Exception as error:
                self._failed(error)
        return found

    def _add(self, jury: Jury, seen: _Columns) -> None:
        ok = ~(seen.flagged | seen.unscored)
        for label, found in ((FLAGGED, seen.flagged), (UNSCORED, seen.unscored), (OK, ok)):
            for name, count in zip(jury.names, found.sum(axis=0).tolist(), strict=True):
                self._metrics.inc("probewatch_requests_total", name, label, by=count)
        alerts = seen.flagged[:, jury.acting_places].sum(axis=0).tolist()
        for (name, action), count in zip(jury.acting, alerts, strict=True):
            self._metrics.inc("probewatch_alerts_total", name, action, by=count)
        self._metrics.observe_all("probewatch_request_margin", jury.margin_children, seen.margins)
        for place, content in jury.calibrated:
            if content in self._drift:  # else detached meanwhile
                own = seen.scores[:, place]
                self._drift[content].extend(own[np.isfinite(own)].tolist())


class _Columns(NamedTuple):
    """Several verdicts by the same probes, ``[n, P]`` each."""

    flagged: npt.NDArray[np.bool_]
    unscored: npt.NDArray[np.bool_]
    """And not flagged."""
    scores: Floats
    margins: Floats
    """Of the probes that have one."""

    @classmethod
    def of(cls, jury: Jury, verdicts: Sequence[Verdicts]) -> _Columns:
        """All that can fail comes here, before anything is counted. Raises ``ValueError`` where verdicts are not those
        of the jury's probes."""
        flagged = np.array([one.flagged for one in verdicts])
        unscored = np.array([one.unscored for one in verdicts]) & ~flagged
        scores = np.array([one.scores for one in verdicts])
        expected = (len(verdicts), len(jury.names))
        if not flagged.shape == unscored.shape == scores.shape == expected:
            raise ValueError(
                f"verdicts of shape {scores.shape} where {expected} belong; they are not counted"
            )
        places = jury.margin_places
        return cls(
            flagged, unscored, scores, (scores[:, places] - jury.thresholds[places]) / jury.margin_iqrs
        )
