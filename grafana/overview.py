"""Overview: is anything flagged, and would we know."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import SERIES_EVIDENCE, Board, Row, board_link
from grafana.panels import (
    ALL_IS_GOOD,
    EXCESS,
    JSON,
    LOST,
    NONE_IS_GOOD,
    SHARE_OF_TIME,
    Query,
    lines,
    stat,
    steps,
)

BY_PROBE = "model_name, probe"
PROBE = "{{probe}} · {{model_name}}"
BY_ENGINE = "instance, engine"
ENGINE = "{{instance}} · engine {{engine}}"
SCORED_BY_LEAST = f"min by (instance, engine) ({q.rate(q.SCORED, by='instance, engine, probe')})"
VLLM_TOKENS = f"{q.rate('vllm:prompt_tokens_total')} + {q.rate('vllm:generation_tokens_total')}"

TO_PROBES = board_link("Probes", "probewatch-probes")
TO_FLEET = board_link("Fleet", "probewatch-fleet")


def tiles() -> list[JSON]:
    """The first line: one look."""
    return [
        stat(
            "Flags",
            "Sequences that acting probes flagged, in the selected time range. Probes that only observe do not count.",
            q.count(q.ALERTS),
            "none",
            steps(("green", None), ("orange", 1)),
            empty="No acting probe",
            links=[TO_PROBES],
        ),
        stat(
            "Flags / nominal",
            "Flagged share of the worst acting probe in the selected time range, as a multiple of the share of benign "
            "traffic that its threshold was set to flag. 1 is what benign traffic gives.",
            f"max({q.excess(BY_PROBE, q.RANGE)})",
            "suffix:×",
            EXCESS,
            empty="No traffic",
            decimals=1,
            links=[TO_PROBES],
        ),
        stat(
            "Coverage",
            "Scored tokens among those that should have a score, for the probe where it is lowest. Below 100% the "
            "monitor is partly blind; the reasons are below.",
            f"min({q.coverage(BY_PROBE, q.RATE)})",
            "percentunit",
            ALL_IS_GOOD,
            empty="No traffic",
            decimals=2,
        ),
        stat(
            "Unmonitored",
            "Engines that serve without proven taps: the plugin is missing, or not attached. Fleet says which.",
            q.unmonitored(),
            "none",
            NONE_IS_GOOD,
            links=[TO_FLEET],
        ),
        stat(
            "Last score",
            "Time since any selected engine scored a token. Long while nothing is served; while tokens flow it must "
            "stay at seconds.",
            f"time() - max({q.pick('probewatch_last_scored_timestamp_seconds')} > 0)",
            "s",
            empty="Never",
            decimals=0,
        ),
        stat(
            "Monitor errors",
            "Errors inside the monitor in the selected time range. No request fails by one; its tokens may be "
            "unscored.",
            q.count("probewatch_errors_total"),
            "none",
            NONE_IS_GOOD,
        ),
        stat(
            "Overhead p99",
            "99th percentile of the host time that the monitor adds to an engine step.",
            q.quantile("0.99", q.OVERHEAD),
            "s",
        ),
        stat(
            "Overhead share",
            "Part of the wall time that the monitor takes on the host of the busiest engine.",
            f"max({q.rate(f'{q.OVERHEAD}_sum', by=BY_ENGINE)})",
            "percentunit",
            SHARE_OF_TIME,
            decimals=2,
        ),
    ]


def flags() -> list[JSON]:
    """Flagged sequences of acting probes."""
    share = q.ratio(
        q.rate(q.ALERTS, by=BY_PROBE, over=q.WINDOW), q.rate(q.REQUESTS, q.JUDGED, by=BY_PROBE, over=q.WINDOW)
    )
    acting = f"on ({BY_PROBE}) group by ({BY_PROBE}) ({q.pick(q.ALERTS)})"
    nominal = f"max by ({BY_PROBE}) ({q.pick('probewatch_nominal_fpr')})"
    return [
        lines(
            "Flags by probe and instance",
            "Sequences flagged in the last $window, at each point. Click a line for the evidence on that instance.",
            [
                Query(
                    q.count(q.ALERTS, by="probe, instance", over=q.WINDOW),
                    "{{probe}} · {{instance}}",
                )
            ],
            "none",
            links=[SERIES_EVIDENCE],
        ),
        lines(
            "Flagged share against nominal FPR",
            "Share of judged sequences that each acting probe flagged in the last $window, and (dashed) the share of "
            "benign traffic that its threshold was set to flag.",
            [Query(share, PROBE), Query(f"{nominal} and {acting}", f"nominal · {PROBE}")],
            "percentunit",
            dashed="^nominal",
            links=[TO_PROBES],
        ),
        lines(
            "Flagged share / nominal FPR",
            "The same as a multiple. Benign traffic stays near 1; the alerts begin at 3 (six hours) and 10 (one hour).",
            [Query(q.excess(BY_PROBE, q.WINDOW), PROBE)],
            "suffix:×",
            marks=EXCESS,
            reach=4,
            links=[TO_PROBES],
        ),
    ]


def coverage() -> list[JSON]:
    """What the monitor did not see."""
    return [
        lines(
            "Unscored share by probe",
            "Tokens without a score among those that should have one: 1 - coverage. The goal is 0.1% at most.",
            [Query(q.lost_share(BY_PROBE), PROBE)],
            "percentunit",
            marks=LOST,
            reach=0.002,
        ),
        lines(
            "Unscored tokens by reason",
            "Tokens a second without a score, summed over probes. See the table of reasons in docs/metrics.md.",
            [Query(q.rate(q.UNSCORED, by="reason"), "{{reason}}")],
            "count:tok/s",
            stack=True,
            reach=1,
        ),
        lines(
            "Tokens: vLLM against the monitor",
            "What vLLM counts (prompt and generation), what the monitor counts as fed to the model (one less a "
            "sequence: its last token is sampled and never fed), and what the probe with the fewest scored.",
            [
                Query(VLLM_TOKENS, "vLLM"),
                Query(q.rate(q.SEEN), "seen"),
                Query(f"sum({SCORED_BY_LEAST})", "scored, least"),
            ],
            "count:tok/s",
            colors={"vLLM": "text", "seen": "blue", "scored, least": "green"},
        ),
    ]


def health() -> list[JSON]:
    """Is the monitor itself alive."""
    return [
        lines(
            "Engines",
            "Engines that serve, that have the plugin, and whose taps are proven. The three lines lie on each other "
            "when all is well.",
            [
                Query(f"count({q.pick(q.RUNNING)})", "serving"),
                Query(f"count({q.pick('probewatch_attached')})", "plugin loaded"),
                Query(f"sum({q.pick('probewatch_attached')})", "attached"),
            ],
            "none",
            colors={"serving": "text", "plugin loaded": "blue", "attached": "green"},
            links=[TO_FLEET],
        ),
        lines(
            "Age of the newest score",
            "Time since each engine scored a token. Rises while an engine is idle; compare with vLLM's tokens above.",
            [
                Query(
                    f"time() - (max by ({BY_ENGINE}) ({q.pick('probewatch_last_scored_timestamp_seconds')}) > 0)",
                    ENGINE,
                )
            ],
            "s",
        ),
        lines(
            "Errors inside the monitor",
            "Errors a second by stage: in the engine's worker, or in the API server's accounting. The log has the "
            "first of each.",
            [Query(q.rate("probewatch_errors_total", by="stage"), "{{stage}}")],
            "suffix:/s",
            reach=1,
        ),
        lines(
            "Self-test error",
            "Largest difference between the golden scores of a probe's artifact and what the tap's arithmetic gave at "
            "attach, over the selected engines. Float32 rounding is 1e-5 and less.",
            [Query(f"max by ({BY_PROBE}) ({q.pick('probewatch_selftest_error')})", PROBE)],
            "sci",
            reach=1e-3,
        ),
    ]


def overhead() -> list[JSON]:
    """What the monitor costs on the host."""
    return [
        lines(
            "Host time per engine step",
            "Time that the monitor adds to an engine step on the host. Interpolated within buckets; the mean is exact.",
            [
                *(Query(q.quantile(value, q.OVERHEAD), name) for name, value in _QUANTILES.items()),
                Query(q.ratio(q.rate(f"{q.OVERHEAD}_sum"), q.rate(f"{q.OVERHEAD}_count")), "mean"),
            ],
            "s",
            colors={"p50": "light-blue", "p95": "blue", "p99": "dark-blue", "mean": "purple"},
        ),
        lines(
            "Share of the engine's time",
            "Host seconds that the monitor takes of each second. The alert begins at 10%.",
            [Query(q.rate(f"{q.OVERHEAD}_sum", by=BY_ENGINE), ENGINE)],
            "percentunit",
            marks=SHARE_OF_TIME,
        ),
    ]


def evidence() -> list[JSON]:
    """What became of evidence records."""
    name = "probewatch_evidence_total"
    return [
        lines(
            "Evidence records by fate",
            "Records of flagged sequences a second, by where they went and what became of them.",
            [Query(q.rate(name, by="sink, outcome"), "{{sink}} · {{outcome}}")],
            "suffix:/s",
            stack=True,
            empty="No evidence store",
        )
    ]


_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}

BOARD = Board(
    "probewatch-overview",
    "probewatch / Overview",
    "Flagged generations against the calibrated false-positive rate, coverage, health and cost of the monitor.",
    [
        Row("", tiles(), 3, 4),
        Row("Flags", flags(), 8, 8),
        Row("Coverage", coverage(), 8, 8),
        Row("Monitor health", health(), 6, 8),
        Row("Overhead", overhead(), 12, 8),
        Row("Evidence", evidence(), 24, 8, collapsed=True),
    ],
)
