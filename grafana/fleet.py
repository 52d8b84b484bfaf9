"""Fleet: which engine of which instance is monitored, by what, and how well."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import CELL_EVIDENCE, SERIES_EVIDENCE, Board, Row, board_link
from grafana.panels import (
    ALL_IS_GOOD,
    JSON,
    LOST,
    NONE_IS_GOOD,
    Column,
    Query,
    info_table,
    lines,
    mapping,
    stat,
    states,
    steps,
    table,
)

BY = "model_name, instance, engine"
LEGEND = "{{instance}} · engine {{engine}}"
HEADINGS = {"model_name": "Model", "instance": "Instance", "engine": "Engine"}
INFO = {"instance": "Instance", "engine": "Engine"}

MONITORED = {1: ("Monitored", "green"), 0: ("Not attached", "red"), -1: ("No plugin", "red")}
REACHABLE = {1: ("Up", "green"), 0: ("Unreachable", "red")}
ONE_IS_GOOD = steps(("green", None), ("orange", 2))

TO_THIS_INSTANCE = board_link(
    "This instance alone",
    "probewatch-fleet",
    model_name="${__data.fields.Model:percentencode}",
    instance="${__value.raw:percentencode}",
)


def variants(metric: str, label: str, *, by: str = "") -> str:
    """How many values of a label are in use at once; with ``by``, the most within one of its values."""
    grouped = f"{by}, {label}" if by else label
    each = f"group by ({grouped}) ({q.pick(metric)} == 1)"
    return f"max(count by ({by}) ({each}))" if by else f"count({each})"


def tiles() -> list[JSON]:
    """The first line: one look."""
    build, probe = "probewatch_build_info", "probewatch_probe_info"
    return [
        stat(
            "Instances",
            "Servers that report metrics.",
            f"count(group by (instance) ({q.pick(q.RUNNING)}))",
            "none",
        ),
        stat(
            "Engines",
            "Engines that report metrics, one for each data-parallel rank.",
            f"count({q.pick(q.RUNNING)})",
            "none",
        ),
        stat(
            "Unmonitored",
            "Engines that serve without proven taps: the plugin is missing, or not attached. The table says which.",
            q.unmonitored(),
            "none",
            NONE_IS_GOOD,
        ),
        stat(
            "Unreachable",
            "Targets of the selected jobs and instances that Prometheus cannot scrape. Their other metrics disappear.",
            f"count(up{{{q.TARGET}}} == 0) or vector(0)",
            "none",
            NONE_IS_GOOD,
        ),
        stat("Probes", "Different probes attached.", variants(probe, "probe"), "none", empty="None"),
        stat(
            "Artifacts",
            "Most different artifacts (sha256) under one probe name and model. More than 1: instances judge by "
            "different probes of the same name.",
            variants(probe, "sha256", by="model_name, probe"),
            "none",
            ONE_IS_GOOD,
            empty="None",
        ),
        stat(
            "Versions",
            "Different versions of the monitor in use.",
            variants(build, "version"),
            "none",
            ONE_IS_GOOD,
        ),
        stat(
            "vLLM versions",
            "Different versions of vLLM under the monitor.",
            variants(build, "vllm_version"),
            "none",
            ONE_IS_GOOD,
        ),
    ]


def engines() -> JSON:
    """One line an engine, with those that have no monitor."""
    age = f"time() - (max by ({BY}) ({q.pick('probewatch_last_scored_timestamp_seconds')}) > 0)"
    return table(
        "Engines (selected time range)",
        "Every engine that vLLM's metrics show, whether or not the monitor runs in it. Click an instance for its "
        "evidence, or to see it alone.",
        HEADINGS,
        [
            Column("Monitor", q.monitored(BY), "none", mappings=[mapping(MONITORED)]),
            Column("Probes", f"sum by ({BY}) ({q.pick('probewatch_probe_info')})", "none"),
            Column("Seen tok/s", q.rate(q.SEEN, by=BY), "count:tok/s"),
            Column("Coverage", q.coverage(BY, q.RANGE), "percentunit", ALL_IS_GOOD),
            Column("Flags", q.count(q.ALERTS, by=BY), "none"),
            Column("Last score", age, "s"),
            Column("Overhead p99", q.quantile("0.99", q.OVERHEAD, by=BY, over=q.RANGE), "s"),
            Column("Errors", q.count("probewatch_errors_total", by=BY), "none", NONE_IS_GOOD),
        ],
        links={"Instance": [CELL_EVIDENCE, TO_THIS_INSTANCE]},
        sort_by="Flags",
    )


def watch() -> list[JSON]:
    """Who is unmonitored, over time."""
    return [
        states(
            "Monitored",
            "Whether each engine's taps are proven. *No plugin*: vLLM reports and the monitor does not.",
            Query(q.monitored("instance, engine"), LEGEND),
            MONITORED,
        ),
        states(
            "Scrapes",
            "Whether Prometheus reaches each target. A server that is gone disappears from every other panel.",
            Query(f"up{{{q.TARGET}}}", "{{instance}}"),
            REACHABLE,
        ),
    ]


def versions() -> list[JSON]:
    """What runs where."""
    return [
        info_table(
            "Versions",
            "Versions of the monitor and of vLLM, and the model runner in use.",
            q.pick("probewatch_build_info"),
            {**INFO, "version": "Version", "vllm_version": "vLLM", "runner": "Runner"},
            links={"Instance": [CELL_EVIDENCE]},
        ),
        info_table(
            "Attached probes",
            "The artifact behind each attached probe, and what crossing its threshold leads to. Layers are 0-based "
            "block outputs.",
            f"({q.pick('probewatch_probe_info')} == 1) * on (job, instance, model_name, engine, probe) "
            f"group_left (action) ({q.pick('probewatch_action_info')} == 1)",
            {
                **INFO,
                "probe": "Probe",
                "action": "Action",
                "kind": "Kind",
                "layers": "Layers",
                "sha256": "sha256",
            },
            links={"Instance": [CELL_EVIDENCE]},
        ),
    ]


def outliers() -> list[JSON]:
    """One line an engine."""
    by = "instance, engine"
    return [
        lines(
            "Flags by engine",
            "Sequences that acting probes flagged in the last $window. Click a line for the evidence on that instance.",
            [Query(q.count(q.ALERTS, by=by, over=q.WINDOW), LEGEND)],
            "none",
            links=[SERIES_EVIDENCE],
            empty="No acting probe",
        ),
        lines(
            "Unscored share by engine",
            "Tokens without a score among those that should have one, all probes together. The goal is 0.1% at most.",
            [Query(q.lost_share(by), LEGEND)],
            "percentunit",
            marks=LOST,
            reach=0.002,
        ),
        lines(
            "Tokens seen by engine",
            "Tokens that vLLM fed to the model.",
            [Query(q.rate(q.SEEN, by=by), LEGEND)],
            "count:tok/s",
        ),
        lines(
            "Overhead p99 by engine",
            "99th percentile of the host time that the monitor adds to an engine step.",
            [Query(q.quantile("0.99", q.OVERHEAD, by=by), LEGEND)],
            "s",
        ),
    ]


BOARD = Board(
    "probewatch-fleet",
    "probewatch / Fleet",
    "Every instance and engine: who is monitored and who is not, by which probes and versions.",
    [
        Row("", tiles(), 3, 4),
        Row("Engines", [engines()], 24, 8),
        Row("Who is monitored", watch(), 12, 6),
        Row("Versions", versions(), 12, 8),
        Row("By engine", outliers(), 12, 8),
    ],
)
