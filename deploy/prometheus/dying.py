"""Alerts for a monitor in which, or around which, something gives way."""

from __future__ import annotations

from deploy.prometheus.model import COUNT, ENGINE, SHARE, WHERE, Alert

KEPT = "stored|delivered"
"""Outcomes of evidence records that nobody need hear of. Any other outcome counts as lost."""


def alerts() -> list[Alert]:
    """In the order of the rule file."""
    return [
        Alert(
            "ProbewatchErrors",
            "warning",
            "Errors inside the monitor on {{ $labels.instance }}",
            f"Errors of stage {{{{ $labels.stage }}}} on {WHERE}, in 15 minutes: {COUNT}. No request failed by them; "
            "the tokens they concern are unscored.",
            f"round(sum by ({ENGINE}, stage) (increase(probewatch_errors_total[15m]))) > 0",
        ),
        Alert(
            "ProbewatchEvidenceLost",
            "critical",
            "Evidence of flagged generations is lost on {{ $labels.instance }}",
            f"Evidence records on {WHERE} that ended as {{{{ $labels.outcome }}}} ({{{{ $labels.sink }}}}), in 15 "
            f"minutes: {COUNT}.",
            f"round(sum by ({ENGINE}, sink, outcome) (increase(\n"
            f'  probewatch_evidence_total{{outcome!~"{KEPT}"}}[15m]\n'
            "))) > 0",
        ),
        Alert(
            "ProbewatchOverheadHigh",
            "warning",
            "The monitor slows {{ $labels.instance }} down",
            f"The monitor takes {SHARE} of the host's time on {WHERE}.",
            f"sum by ({ENGINE}) (rate(probewatch_step_overhead_seconds_sum[15m])) > 0.1",
            hold="15m",
        ),
        Alert(
            "ProbewatchWatchdog",
            "info",
            "Alerting works",
            "Always fires. Let Alertmanager send it to a dead man's switch, which calls when it stops coming.",
            "vector(1)",
            opened_with=(),
        ),
    ]
