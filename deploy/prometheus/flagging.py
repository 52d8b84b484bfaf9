"""Alerts for flagged generations."""

from __future__ import annotations

from deploy.prometheus.model import COUNT, FLEET_PROBE, NAME, PROBE, WHERE, Alert, Severity
from deploy.prometheus.recording import (
    FLAG_FAST,
    FLAG_FAST_LIMIT,
    FLAG_SLOW,
    FLAG_SLOW_LIMIT,
    flag_burn,
    flags,
)
from monitor.receivers import CRITICAL_FPR

FEWEST_FAST, FEWEST_SLOW = 5, 10
"""Flags that the long window must hold, so that one chance flag in quiet traffic is no burn."""


def alerts() -> list[Alert]:
    """In the order of the rule file: burn rates for acting probes, one shot for critical ones."""
    return [
        _burn("ProbewatchFlagBurnFast", "critical", FLAG_FAST, FLAG_FAST_LIMIT, FEWEST_FAST),
        _burn("ProbewatchFlagBurnSlow", "warning", FLAG_SLOW, FLAG_SLOW_LIMIT, FEWEST_SLOW),
        Alert(
            "ProbewatchCriticalFlag",
            "critical",
            "Critical probe {{ $labels.probe }} flagged a generation",
            f"Sequences that {NAME} flagged on {WHERE}, in 10 minutes: {COUNT}. It stops requests, or is calibrated to "
            f"flag at most {CRITICAL_FPR:.1%} of benign traffic.",
            f'round(sum by ({PROBE}) (increase(probewatch_alerts_total{{action="stop"}}[10m]))) > 0\n'
            "or\n"
            f"round(sum by ({PROBE}) (increase(probewatch_alerts_total[10m]))) > 0\n"
            f"  and on ({PROBE}) probewatch_nominal_fpr <= {CRITICAL_FPR}",
            board="actions",
            opened_with=("model_name", "instance", "probe"),
            evidence=True,
        ),
    ]


def _burn(name: str, severity: Severity, windows: tuple[str, str], limit: str, fewest: int) -> Alert:
    long, short = windows
    return Alert(
        name,
        severity,
        "Probe {{ $labels.probe }} flags far more than its calibrated share",
        '{{ $labels.probe }} on {{ $labels.model_name }} flags {{ $value | printf "%.1f" }} times the share of '
        f"benign traffic it was calibrated to flag, over {long} and still over {short}.",
        f"({flag_burn(long)} > {limit})\n"
        f"and on ({FLEET_PROBE}) ({flag_burn(short)} > {limit})\n"
        f"and on ({FLEET_PROBE}) ({flags(long)} >= {fewest})",
        board="probes",
        opened_with=("model_name", "probe"),
    )
