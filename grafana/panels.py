"""Panels, drawn as vLLM's dashboards draw theirs. Each function gives the JSON of one panel, without its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deploy.prometheus.promql import read

JSON = dict[str, Any]

DATASOURCE: JSON = {"type": "prometheus", "uid": "${datasource}"}

NO_TRAFFIC: JSON = {
    "type": "special",
    "options": {"match": "nan", "result": {"index": 0, "text": "No traffic"}},
}


class Query(NamedTuple):
    """One line of a panel, or a bundle of lines."""

    expr: str
    legend: str


class Column(NamedTuple):
    """One column of a table."""

    name: str
    expr: str
    unit: str
    steps: JSON | None = None
    """Colours of the text."""
    mappings: Sequence[JSON] = ()


def steps(*levels: tuple[str, float | None]) -> JSON:
    """Colours by value; each holds from its level upward, the first from below."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in levels]}


NEUTRAL = steps(("blue", None))
NONE_IS_GOOD = steps(("green", None), ("red", 1))
ALL_IS_GOOD = steps(("red", None), ("orange", 0.99), ("green", 0.999))
EXCESS = steps(("green", None), ("orange", 3), ("red", 10))
DRIFT = steps(("green", None), ("orange", 0.1), ("red", 0.25))
LOST = steps(("green", None), ("red", 0.001))
"""Share of tokens without a score; the goal is 99.9% scored."""
SHARE_OF_TIME = steps(("green", None), ("orange", 0.05), ("red", 0.1))


def stat(
    title: str,
    about: str,
    expr: str,
    unit: str,
    levels: JSON = NEUTRAL,
    *,
    empty: str = "",
    decimals: int | None = None,
    links: Sequence[JSON] = (),
) -> JSON:
    """A tile with the latest value and a sparkline. ``empty`` is what it says without data."""
    defaults: JSON = {
        "color": {"mode": "thresholds"},
        "links": list(links),
        "mappings": [NO_TRAFFIC],
        "thresholds": levels,
        "unit": unit,
    }
    if empty:
        defaults["noValue"] = empty
    if decimals is not None:
        defaults["decimals"] = decimals
    panel = _panel("stat", title, about, [_target(Query(expr, "__auto"))])
    panel["fieldConfig"] = {"defaults": defaults, "overrides": []}
    panel["options"] = {
        "colorMode": "none" if levels is NEUTRAL else "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _LAST,
        "textMode": "value",
    }
    return panel


def lines(
    title: str,
    about: str,
    queries: Sequence[Query],
    unit: str,
    *,
    reach: float | None = None,
    negative: bool = False,
    stack: bool = False,
    marks: JSON | None = None,
    dashed: str = "",
    colors: Mapping[str, str] | None = None,
    links: Sequence[JSON] = (),
    empty: str = "",
) -> JSON:
    """Values over time. ``marks`` draws thresholds as dashed lines, ``dashed`` names series (a regular expression), and
    the axis goes up to ``reach`` at least."""
    opacity = 25 if stack else 0 if negative else 10
    defaults: JSON = {
        "color": {"mode": "palette-classic"},
        "custom": {"fillOpacity": opacity, "lineWidth": 1, "showPoints": "never"},
        "links": list(links),
        "unit": unit,
    }
    if stack:
        defaults["custom"]["stacking"] = {"group": "A", "mode": "normal"}
    if marks is not None:
        defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = marks
    if not negative:
        defaults["min"] = 0
    if reach is not None:
        defaults["custom"]["axisSoftMax"] = reach
    if unit == "none":
        defaults["decimals"] = 0
    if empty:
        defaults["noValue"] = empty
    overrides = [_fixed_color(name, color) for name, color in (colors or {}).items()]
    if dashed:
        overrides.append(
            _override(
                "byRegexp",
                dashed,
                {"custom.lineStyle": {"dash": [8, 8], "fill": "dash"}, "custom.fillOpacity": 0},
            )
        )
    panel = _panel("timeseries", title, about, [_target(query) for query in queries])
    panel["fieldConfig"] = {"defaults": defaults, "overrides": overrides}
    panel["options"] = {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def states(title: str, about: str, query: Query, names: Mapping[int, tuple[str, str]]) -> JSON:
    """A band a series that shows which state it is in. ``names``: value -> (text, colour)."""
    panel = _panel("state-timeline", title, about, [_target(query)])
    panel["fieldConfig"] = {
        "defaults": {"color": {"fixedColor": "text", "mode": "fixed"}, "mappings": [mapping(names)]},
        "overrides": [],
    }
    panel["options"] = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "never",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel


def bars(title: str, about: str, query: Query, *, rename: tuple[str, str]) -> JSON:
    """Shares of a histogram's buckets, one bar each. ``rename``: a regular expression for the bounds, and the label."""
    panel = _panel("bargauge", title, about, [_target(query, instant=True, form="heatmap")])
    panel["transformations"] = [
        {"id": "renameByRegex", "options": {"regex": rename[0], "renamePattern": rename[1]}}
    ]
    panel["fieldConfig"] = {
        "defaults": {
            "color": {"fixedColor": "blue", "mode": "fixed"},
            "decimals": 0,
            "min": 0,
            "unit": "percentunit",
        },
        "overrides": [],
    }
    panel["options"] = {
        "displayMode": "basic",
        "namePlacement": "auto",
        "orientation": "vertical",
        "reduceOptions": _LAST,
        "showUnfilled": False,
        "sizing": "auto",
        "valueMode": "text",
    }
    return panel


def table(
    title: str,
    about: str,
    labels: Mapping[str, str],
    columns: Sequence[Column],
    *,
    links: Mapping[str, Sequence[JSON]] | None = None,
    sort_by: str = "",
) -> JSON:
    """One row for each combination of ``labels`` (label -> heading), one query a column, joined on those labels."""
    row = _legend(labels)
    targets = [
        _target(Query(column.expr, f"{column.name} · {row}"), instant=True, form="table")
        for column in columns
    ]
    panel = _panel("table", title, about, targets)
    values = {
        f"Value #{target['refId']}": column.name for target, column in zip(targets, columns, strict=True)
    }
    panel["transformations"] = [{"id": "merge", "options": {}}, _organize({**labels, **values})]
    overrides = [
        _override("byName", heading, {"custom.minWidth": 260} if i == 0 else {"custom.width": 180})
        for i, heading in enumerate(labels.values())
    ]
    for column in columns:
        settings: JSON = {"unit": column.unit, "custom.width": 120}
        if column.mappings:
            settings["mappings"] = list(column.mappings)
        if column.steps is not None:
            settings |= {"thresholds": column.steps, "color": {"mode": "thresholds"}}
            settings["custom.cellOptions"] = {"type": "color-text"}
        overrides.append(_override("byName", column.name, settings))
    return _as_table(panel, overrides, links, sort_by)


def info_table(
    title: str,
    about: str,
    expr: str,
    headings: Mapping[str, str],
    *,
    links: Mapping[str, Sequence[JSON]] | None = None,
) -> JSON:
    """The labels of a metric that is always 1. ``headings``: label -> column."""
    panel = _panel(
        "table", title, about, [_target(Query(expr, _legend(headings)), instant=True, form="table")]
    )
    panel["transformations"] = [
        {"id": "filterFieldsByName", "options": {"include": {"names": list(headings)}}},
        _organize(headings),
    ]
    return _as_table(panel, [], links, "")


def mapping(names: Mapping[int, tuple[str, str]]) -> JSON:
    """Values shown as words: value -> (text, colour)."""
    return {
        "type": "value",
        "options": {
            str(value): {"color": color, "index": i, "text": text}
            for i, (value, (text, color)) in enumerate(names.items())
        },
    }


_LAST: JSON = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def _target(query: Query, *, instant: bool = False, form: str = "") -> JSON:
    target: JSON = {"expr": query.expr, "legendFormat": query.legend}
    if form:
        target["format"] = form
    if instant:
        target |= {"instant": True, "range": False}
    return target


def _panel(kind: str, title: str, about: str, targets: list[JSON]) -> JSON:
    """What all panels share. The description ends with the names of the metrics that are drawn."""
    for i, target in enumerate(targets):
        target["refId"] = chr(ord("A") + i)
    metrics = dict.fromkeys(name for target in targets for name, _ in read(target["expr"]).selectors)
    word = "Metric" if len(metrics) == 1 else "Metrics"
    return {
        "type": kind,
        "title": title,
        "description": f"{about}\n\n{word}: {', '.join(f'`{name}`' for name in metrics)}",
        "datasource": DATASOURCE,
        "targets": targets,
    }


def _as_table(
    panel: JSON, overrides: list[JSON], links: Mapping[str, Sequence[JSON]] | None, sort_by: str
) -> JSON:
    for heading, targets in (links or {}).items():
        overrides.append(_override("byName", heading, {"links": list(targets)}))
    panel["fieldConfig"] = {
        "defaults": {
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}},
            "mappings": [NO_TRAFFIC],
        },
        "overrides": overrides,
    }
    panel["options"] = {
        "cellHeight": "sm",
        "footer": {"show": False},
        "showHeader": True,
        "sortBy": [{"desc": True, "displayName": sort_by}] if sort_by else [],
    }
    return panel


def _legend(labels: Mapping[str, str]) -> str:
    """Names a row where it is not shown in columns: in Explore, and in exports."""
    return " · ".join(f"{{{{{label}}}}}" for label in labels)


def _organize(headings: Mapping[str, str]) -> JSON:
    return {
        "id": "organize",
        "options": {
            "excludeByName": {"Time": True},
            "indexByName": {name: i for i, name in enumerate(headings)},
            "renameByName": dict(headings),
        },
    }


def _fixed_color(name: str, color: str) -> JSON:
    return _override("byName", name, {"color": {"fixedColor": color, "mode": "fixed"}})


def _override(matcher: str, what: str, settings: Mapping[str, Any]) -> JSON:
    return {
        "matcher": {"id": matcher, "options": what},
        "properties": [{"id": name, "value": value} for name, value in settings.items()],
    }
