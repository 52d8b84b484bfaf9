"""What a recording rule and an alert are here, and how they become a rule file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]

ENGINE = "job, instance, model_name, engine"
"""One engine: monitoring works or fails for it."""
PROBE = f"{ENGINE}, probe"
"""One probe on one engine."""
FLEET_PROBE = "job, model_name, probe"
"""One probe on all engines of a model: flags are rare, so they are counted together."""
ON_ENGINE = "on (job, instance, engine)"

ACTING = f"group by ({PROBE}) (probewatch_alerts_total)"
"""Probes whose action is not ``observe``: only they have this counter."""

# What Prometheus fills in when an alert fires.
WHERE = "{{ $labels.instance }} (engine {{ $labels.engine }})"
NAME = "{{ $labels.probe }}"
COUNT = '{{ $value | printf "%.0f" }}'
SHARE = "{{ $value | humanizePercentage }}"


@dataclass(frozen=True)
class Record:
    """A recording rule, named ``level:metric:operation``."""

    name: str
    labels: str
    """Labels of its series: one of the levels above."""
    expr: str

    def rule(self) -> dict[str, Any]:
        """As a rule file spells it."""
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True)
class Alert:
    """An alert. Its runbook is ``docs/runbooks/<name>.md``."""

    name: str
    severity: Severity
    summary: str
    description: str
    expr: str
    hold: str = "0s"
    """How long the expression must hold first (Prometheus' ``for``)."""
    board: str = "overview"
    """The dashboard to open: overview, probes, fleet or actions."""
    opened_with: Sequence[str] = ("model_name", "instance")
    """Labels of the alert that the dashboard is opened with."""
    evidence: bool = False
    """Whether the alert has an ``instance`` whose evidence page is worth opening."""

    def rule(self, docs_url: str, grafana_url: str) -> dict[str, Any]:
        """As a rule file spells it. The URLs come without a slash at the end."""
        variables = "&".join(
            f"var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in self.opened_with
        )
        annotations = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{docs_url}/runbooks/{self.name}.md",
            "dashboard_url": f"{grafana_url}/d/probewatch-{self.board}"
            + (f"?{variables}" if variables else ""),
        }
        if self.evidence:
            annotations["evidence_url"] = "http://{{ $labels.instance }}/probewatch/ui"
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.hold} if self.hold != "0s" else {}),
            "labels": {"severity": self.severity},
            "annotations": annotations,
        }


@dataclass(frozen=True)
class Group:
    """Rules evaluated one after the other. Groups run side by side, so no rule reads what another group records."""

    name: str
    rules: Sequence[Record | Alert]
