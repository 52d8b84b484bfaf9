"""From rows of panels to a dashboard that opens from vLLM's menu and keeps its variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana.panels import DATASOURCE, JSON
from grafana.queries import RUNNING, SCOPE

TAG = "vllm"
"""vLLM's dashboards find each other, and ours, by this tag."""
WIDTH = 24
"""Columns of Grafana's grid."""

EVIDENCE = "Evidence on this instance"


@dataclass(frozen=True)
class Row:
    """Panels of one size, laid left to right."""

    title: str
    """Empty for the first row of a dashboard, which has no heading."""
    panels: Sequence[JSON]
    width: int
    """Grid columns of each panel; 24 are a full line."""
    height: int
    """Grid units of each panel; one is 30 pixels."""
    collapsed: bool = False
    repeat: str = ""
    """A variable: the row comes once for each of its values."""


@dataclass(frozen=True)
class Board:
    """A dashboard, before it is JSON."""

    uid: str
    title: str
    about: str
    rows: Sequence[Row]
    variables: Sequence[JSON] = ()
    """Besides those that all share."""


def evidence_link(instance: str) -> JSON:
    """To the evidence page of an instance. ``instance`` is Grafana's name for the label's value where the link is."""
    return {
        "title": EVIDENCE,
        "url": f"${{scheme}}://${{{instance}}}/probewatch/ui",
        "targetBlank": True,
    }


SERIES_EVIDENCE = evidence_link("__field.labels.instance")
"""For panels whose series carry ``instance``."""
CELL_EVIDENCE = evidence_link("__data.fields.Instance")
"""For tables with a column Instance."""


def board_link(title: str, uid: str, **variables: str) -> JSON:
    """To another dashboard, with the data source, job and time range kept and some variables set."""
    kept = ["${datasource:queryparam}", "${job:queryparam}"]
    kept += [f"var-{name}={value}" for name, value in variables.items()]
    return {"title": title, "url": f"/d/{uid}?{'&'.join([*kept, '${__url_time_range}'])}"}


def query_variable(name: str, label: str, metric: str, matchers: str) -> JSON:
    """A choice of several among the values of a label."""
    series = f"{metric}{{{matchers}}}" if matchers else metric
    query = f"label_values({series}, {name})"
    return {
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "options": [],
        "query": query,
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def choice_variable(name: str, label: str, values: Sequence[str], default: str) -> JSON:
    """A choice of one."""
    return {
        "current": {"selected": True, "text": default, "value": default},
        "hide": 0,
        "includeAll": False,
        "label": label,
        "multi": False,
        "name": name,
        "options": [{"selected": value == default, "text": value, "value": value} for value in values],
        "query": ",".join(values),
        "type": "custom",
    }


PROBE_VARIABLE = query_variable("probe", "Probe", "probewatch_probe_info", SCOPE)


def build(board: Board) -> JSON:
    """The dashboard as Grafana imports it."""
    return {
        "annotations": {"list": [_ANNOTATIONS]},
        "description": board.about,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_MENU],
        "panels": _place(board.rows),
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": [TAG, "probewatch"],
        "templating": {"list": [*_SCOPE, *board.variables, *_CHOICES, _FILTERS]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": board.title,
        "uid": board.uid,
        "version": 1,
        "weekStart": "",
    }


def _place(rows: Sequence[Row]) -> list[JSON]:
    """Panels with ids and places, in order of reading; those of a collapsed row lie inside it."""
    placed: list[JSON] = []
    next_id, y = 1, 0
    for row in rows:
        inside = placed
        if row.title:
            heading: JSON = {
                "type": "row",
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "id": next_id,
                "panels": [],
            }
            if row.repeat:
                heading["repeat"] = row.repeat
            placed.append(heading)
            inside = heading["panels"] if row.collapsed else placed
            next_id, y = next_id + 1, y + 1
        a_line = WIDTH // row.width
        for i, panel in enumerate(row.panels):
            place = {
                "h": row.height,
                "w": row.width,
                "x": i % a_line * row.width,
                "y": y + i // a_line * row.height,
            }
            inside.append({**panel, "gridPos": place, "id": next_id})
            next_id += 1
        if not row.collapsed:
            y += -(-len(row.panels) // a_line) * row.height
    return placed


_ANNOTATIONS: JSON = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}
_MENU: JSON = {
    "asDropdown": False,
    "icon": "external link",
    "includeVars": True,
    "keepTime": True,
    "tags": [TAG],
    "targetBlank": False,
    "title": "vLLM dashboards",
    "type": "dashboards",
}
_DATASOURCE_VARIABLE: JSON = {
    "current": {},
    "hide": 0,
    "includeAll": False,
    "label": "Data source",
    "multi": False,
    "name": "datasource",
    "options": [],
    "query": "prometheus",
    "refresh": 1,
    "regex": "",
    "type": "datasource",
}
_JOB = 'job=~"$job"'
_MODEL = f'{_JOB}, model_name=~"$model_name"'
# Listed from vLLM's metric and not from one of ours, so that a server without the monitor can be chosen too.
_SCOPE: list[JSON] = [
    _DATASOURCE_VARIABLE,
    query_variable("job", "Job", RUNNING, ""),
    query_variable("model_name", "Model", RUNNING, _JOB),
    query_variable("instance", "Instance", RUNNING, _MODEL),
    query_variable("engine", "Engine", RUNNING, f'{_MODEL}, instance=~"$instance"'),
]
_CHOICES: list[JSON] = [
    choice_variable("window", "Window", ("5m", "15m", "1h", "6h"), "15m"),
    choice_variable("scheme", "Evidence over", ("http", "https"), "http"),
]
_FILTERS: JSON = {
    "datasource": DATASOURCE,
    "filters": [],
    "hide": 0,
    "label": "Filters",
    "name": "filters",
    "type": "adhoc",
}
