"""What metrics tell of the attached probes and of every verdict: counts, margins, drift."""

from __future__ import annotations

import math

from monitor.bank import ProbeBank
from monitor.drift import Drift
from monitor.jury import Jury
from monitor.metrics import Metrics
from monitor.verdict import Verdicts, of_probe


class Publisher:
    """Of one engine."""

    def __init__(self, metrics: Metrics, bank: ProbeBank) -> None:
        self._metrics = metrics
        self._drift: dict[tuple[str, str], Drift] = {}
        self._announce(bank)

    def change(self, before: ProbeBank, after: ProbeBank) -> None:
        """From now on the probes of ``after`` are attached, and those that ``before`` alone has are not."""
        stays = set(after.contents)
        for seat, content in zip(before.seats, before.contents, strict=True):
            if content not in stays:
                self._metrics.retire_probe(seat.probe)
                del self._drift[content]
        self._announce(after)

    def _announce(self, bank: ProbeBank) -> None:
        for seat in bank.seats:
            manifest = seat.probe.manifest
            self._metrics.add_probe(seat.probe)
            self._drift.setdefault((manifest.name, manifest.tensors_sha256), Drift(manifest))

    def publish(self, verdicts: Verdicts, jury: Jury) -> None:
        """One sequence has been judged."""
        if verdicts.quiet:
            self._metrics.inc_all("probewatch_requests_total", jury.ok, by=1)
        else:
            outcomes = [(name, of_probe(verdict)) for name, verdict in verdicts.items()]
            alerts = [(name, action) for name, action in jury.acting if verdicts[name].flagged]
            with self._metrics.together():
                self._metrics.inc_each("probewatch_requests_total", outcomes)
                self._metrics.inc_each("probewatch_alerts_total", alerts)
        for content, iqr in jury.calibrated:
            name, verdict = content[0], verdicts[content[0]]
            if verdict.score is None:
                continue
            if iqr > 0 and math.isfinite(verdict.threshold):
                margin = (verdict.score - verdict.threshold) / iqr
                self._metrics.observe("probewatch_request_margin", name, value=margin)
            followed = self._drift.get(content)  # None: detached meanwhile
            shift = None if followed is None else followed.add(verdict.score)
            if shift is not None:
                self._metrics.set("probewatch_score_drift", name, to=shift.psi)
                self._metrics.set("probewatch_score_drift_ks", name, to=shift.ks)
