"""Actions: what the probes did to requests: alerts, stops, steering."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import CELL_EVIDENCE, PROBE_VARIABLE, SERIES_EVIDENCE, Board, Row
from grafana.panels import JSON, Column, Query, lines, stat, table

STOPPED = "probewatch_stopped_requests_total"
STEERED = "probewatch_steered_tokens_total"
THIS = 'probe=~"$probe"'
STOPPING = 'action="stop"'
BY_INSTANCE = "model_name, instance"


def tiles() -> list[JSON]:
    """The first line: one look."""
    return [
        stat(
            "Alerts",
            "Sequences that acting probes flagged, in the selected time range.",
            q.count(q.ALERTS, THIS),
            "none",
            empty="No acting probe",
        ),
        stat(
            "Stopped requests",
            "Requests that a probe ended before the model did, in the selected time range.",
            q.count(STOPPED, THIS),
            "none",
            empty="No stopping probe",
        ),
        stat(
            "Stopped share",
            "Stopped requests among the sequences that the stopping probes judged.",
            q.ratio(
                f"sum({q.rate(STOPPED, THIS, by='probe', over=q.RANGE)})",
                f"sum({q.rate(q.REQUESTS, THIS, by='probe', over=q.RANGE)} and on (probe) {q.pick(STOPPED)})",
            ),
            "percentunit",
            empty="No stopping probe",
            decimals=2,
        ),
        stat(
            "Steered tokens",
            "Tokens whose residual stream was changed by a vector, in the selected time range.",
            q.count(STEERED),
            "short",
            empty="No vector",
        ),
        stat(
            "Steered share",
            "Steered tokens among all that vLLM fed to the model. With two vectors at once a token counts twice.",
            q.ratio(q.rate(STEERED, over=q.RANGE), q.rate(q.SEEN, over=q.RANGE)),
            "percentunit",
            empty="No vector",
            decimals=2,
        ),
        stat(
            "Vectors in use",
            "Vectors that steered a token in the selected time range.",
            f"count(sum by (vector) (increase({q.pick(STEERED)}[{q.RANGE}])) > 0) or vector(0)",
            "none",
        ),
    ]


def stops() -> list[JSON]:
    """Requests that a probe ended."""
    return [
        lines(
            "Stopped requests by probe and instance",
            "Requests stopped in the last $window, at each point. Click a line for the evidence on that instance.",
            [
                Query(
                    q.count(STOPPED, THIS, by="probe, instance", over=q.WINDOW),
                    "{{probe}} · {{instance}}",
                )
            ],
            "none",
            links=[SERIES_EVIDENCE],
            empty="No stopping probe",
        ),
        lines(
            "Flagged and stopped",
            "What stopping probes flagged and what they stopped, in the last $window. A flag without a stop crossed "
            "the threshold with the sequence's last tokens.",
            [
                Query(q.count(q.ALERTS, STOPPING, THIS, by="probe", over=q.WINDOW), "{{probe}} · flagged"),
                Query(q.count(STOPPED, THIS, by="probe", over=q.WINDOW), "{{probe}} · stopped"),
            ],
            "none",
            dashed="flagged$",
            empty="No stopping probe",
        ),
    ]


def steering() -> list[JSON]:
    """Tokens that a vector changed."""
    return [
        lines(
            "Steered tokens by vector",
            "Tokens a second that each vector changed.",
            [Query(q.rate(STEERED, by="vector"), "{{vector}}")],
            "count:tok/s",
            empty="No vector",
        ),
        lines(
            "Steered share by vector",
            "Tokens that each vector changed, among all that vLLM fed to the model.",
            [
                Query(
                    f"{q.rate(STEERED, by='vector')} / on () group_left () ({q.rate(q.SEEN)} > 0)",
                    "{{vector}}",
                )
            ],
            "percentunit",
            empty="No vector",
        ),
    ]


def alerts() -> list[JSON]:
    """All acting probes, by what they do."""
    return [
        lines(
            "Flagged sequences by action",
            "Sequences a second that acting probes flagged, by the probe's action.",
            [Query(q.rate(q.ALERTS, THIS, by="action", over=q.WINDOW), "{{action}}")],
            "reqps",
            stack=True,
            empty="No acting probe",
        ),
        table(
            "Actions by instance (selected time range)",
            "Where probes acted. Click an instance for its evidence.",
            {"model_name": "Model", "instance": "Instance"},
            [
                Column("Alerts", q.count(q.ALERTS, THIS, by=BY_INSTANCE), "none"),
                Column("Stopped", q.count(STOPPED, THIS, by=BY_INSTANCE), "none"),
                Column("Steered tokens", q.count(STEERED, by=BY_INSTANCE), "short"),
            ],
            links={"Instance": [CELL_EVIDENCE]},
            sort_by="Alerts",
        ),
    ]


BOARD = Board(
    "probewatch-actions",
    "probewatch / Actions",
    "What probes and vectors did to requests: alerts, stops and steered tokens.",
    [
        Row("", tiles(), 4, 4),
        Row("Alerts", alerts(), 12, 8),
        Row("Stops", stops(), 12, 8),
        Row("Steering", steering(), 12, 8),
    ],
    [PROBE_VARIABLE],
)
