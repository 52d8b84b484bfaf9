"""Probes: how each one scores, beside its threshold, its calibration and the others."""

from __future__ import annotations

from grafana import queries as q
from grafana.board import PROBE_VARIABLE, Board, Row, board_link
from grafana.panels import ALL_IS_GOOD, DRIFT, EXCESS, JSON, LOST, Column, Query, bars, lines, steps, table

BY = "model_name, probe"
LEGEND = "{{probe}} · {{model_name}}"
THIS = 'probe=~"$probe"'

THRESHOLD_AT_ZERO = steps(("transparent", None), ("red", 0))


def gauge(metric: str) -> str:
    """The highest value among the selected engines."""
    return f"max by ({BY}) ({q.pick(metric, THIS)})"


def summary() -> JSON:
    """One line a probe."""
    return table(
        "Probes (selected time range)",
        "What each probe judged and flagged, and the state of its calibration. *Flagged* counts whatever the action; "
        "*alerts* counts acting probes alone. *x nominal* is the flagged share over the share of traffic without the "
        "concept that the threshold was set to flag: for a deception probe on benign traffic near 1, for a probe of a "
        "common concept as high as the concept is common. Click a probe to see it alone.",
        {"model_name": "Model", "probe": "Probe"},
        [
            Column("Judged", q.count(q.REQUESTS, q.JUDGED, THIS, by=BY), "none"),
            Column("Flagged", q.count(q.REQUESTS, q.FLAGGED, THIS, by=BY), "none"),
            Column("Alerts", q.count(q.ALERTS, THIS, by=BY), "none"),
            Column("Unscored", q.count(q.REQUESTS, 'verdict="unscored"', THIS, by=BY), "none"),
            Column("Flagged share", q.flagged_share(BY, q.RANGE, THIS), "percentunit"),
            Column("Nominal FPR", gauge("probewatch_nominal_fpr"), "percentunit"),
            Column(
                "x nominal",
                f"{q.flagged_share(BY, q.RANGE, THIS)} / {gauge('probewatch_nominal_fpr')}",
                "suffix:×",
                EXCESS,
            ),
            Column("Threshold", gauge("probewatch_threshold"), "short"),
            Column("Drift (PSI)", gauge("probewatch_score_drift"), "short", DRIFT),
            Column("Drift (KS)", gauge("probewatch_score_drift_ks"), "short", DRIFT),
            Column("Coverage", q.coverage(BY, q.RANGE, THIS), "percentunit", ALL_IS_GOOD),
            Column("Self-test", gauge("probewatch_selftest_error"), "sci"),
        ],
        links={
            "Probe": [
                board_link(
                    "This probe alone",
                    "probewatch-probes",
                    model_name="${__data.fields.Model:percentencode}",
                    probe="${__value.raw:percentencode}",
                )
            ]
        },
        sort_by="Flagged",
    )


def comparison() -> list[JSON]:
    """The same figure of all probes."""
    return [
        lines(
            "Flagged share",
            "Share of judged sequences above the probe's threshold in the last $window, whatever its action.",
            [Query(q.flagged_share(BY, q.WINDOW, THIS), LEGEND)],
            "percentunit",
        ),
        lines(
            "Alerts per hour",
            "Sequences that each acting probe flagged, by the rate of the last $window.",
            [Query(f"3600 * {q.rate(q.ALERTS, THIS, by=BY, over=q.WINDOW)}", LEGEND)],
            "suffix:/h",
            empty="No acting probe",
        ),
        lines(
            "Unscored share",
            "Tokens without a score among those that should have one. The goal is 0.1% at most.",
            [Query(q.lost_share(BY, THIS), LEGEND)],
            "percentunit",
            marks=LOST,
            reach=0.002,
        ),
        lines(
            "Sequences without a verdict",
            "Share of sequences in which a token inside the probe's mask had no score and none crossed the threshold.",
            [
                Query(
                    q.ratio(
                        q.rate(q.REQUESTS, 'verdict="unscored"', THIS, by=BY, over=q.WINDOW),
                        q.rate(q.REQUESTS, THIS, by=BY, over=q.WINDOW),
                    ),
                    LEGEND,
                )
            ],
            "percentunit",
            reach=0.05,
        ),
    ]


def calibration() -> list[JSON]:
    """All probes against what they were calibrated on."""
    about = (
        "{}, of the last 512 scores against the benign quantiles of the artifact. {} 0 until 256 sequences were "
        "judged, or where the artifact has no benign quantiles."
    )
    return [
        lines(
            "Median margin",
            "Median of (score - threshold) / benign interquartile range, the common scale of all probes. Above 0 is "
            "flagged.",
            [Query(q.quantile("0.5", q.MARGIN, THIS, by=BY, over=q.WINDOW), LEGEND)],
            "short",
            negative=True,
            marks=THRESHOLD_AT_ZERO,
            reach=0.5,
        ),
        lines(
            "Drift (PSI)",
            about.format(
                "Population stability index",
                "Below 0.1 is usually read as stable, above 0.25 as another population.",
            ),
            [Query(gauge("probewatch_score_drift"), LEGEND)],
            "short",
            marks=DRIFT,
            reach=0.3,
        ),
        lines(
            "Drift (KS)",
            about.format(
                "Largest difference of the distribution functions (Kolmogorov-Smirnov)",
                "Chance alone exceeds 0.06 once in twenty.",
            ),
            [Query(gauge("probewatch_score_drift_ks"), LEGEND)],
            "short",
            marks=DRIFT,
            reach=0.3,
        ),
    ]


def one_probe() -> list[JSON]:
    """For each probe: its scores against what they were calibrated on."""
    total = f"{q.MARGIN}_bucket"
    nominal = f"scalar(1 - max({q.pick('probewatch_nominal_fpr', THIS)}))"
    all_buckets = q.count(total, THIS, 'le="+Inf"')
    shares = f"{q.count(total, THIS, by='le')} / on () group_left () ({all_buckets} > 0)"
    return [
        lines(
            "Scores over time",
            "Quantiles of the margin, (score - threshold) / benign interquartile range, in the last $window: the "
            "benign middle half is one unit wide, and what lies above 0 is flagged. *benign bound* is the quantile at "
            "1 - nominal FPR: on traffic like the calibration's it lies at 0; higher, and more is flagged than "
            "calibrated.",
            [
                *(
                    Query(q.quantile(value, q.MARGIN, THIS, over=q.WINDOW), name)
                    for name, value in {"p99": "0.99", "p95": "0.95", "p50": "0.5", "p5": "0.05"}.items()
                ),
                Query(q.quantile(nominal, q.MARGIN, THIS, over=q.WINDOW), "benign bound"),
            ],
            "short",
            negative=True,
            marks=THRESHOLD_AT_ZERO,
            reach=0.5,
            dashed="^benign",
            colors={
                "p99": "dark-blue",
                "p95": "blue",
                "p50": "light-blue",
                "p5": "super-light-blue",
                "benign bound": "orange",
            },
        ),
        bars(
            "Distribution of scores (selected time range)",
            "Share of sequences by margin, (score - threshold) / benign interquartile range. A bar is labelled by its "
            "upper bound: bars up to 0 are below the threshold, those beyond it are flagged.",
            Query(shares, "{{le}}"),
            rename=(r"^(-?[\d.]+?)(\.0)?$", "≤ $1"),
        ),
        lines(
            "Verdicts",
            "Sequences a second by this probe's verdict.",
            [Query(q.rate(q.REQUESTS, THIS, by="verdict"), "{{verdict}}")],
            "reqps",
            stack=True,
            colors={"ok": "green", "flagged": "red", "unscored": "text"},
        ),
    ]


BOARD = Board(
    "probewatch-probes",
    "probewatch / Probes",
    "Scores of each probe against its threshold and its benign quantiles, drift, alert rates, and probes compared.",
    [
        Row("", [summary()], 24, 8),
        Row("Comparison", comparison(), 12, 8),
        Row("Against the calibration", calibration(), 8, 9),
        Row("$probe", one_probe(), 8, 9, repeat="probe"),
    ],
    [PROBE_VARIABLE],
)
