"""Recording rules: the shares that alerts compare over several windows.

Two kinds of burn rate. *Flags*: the share of judged sequences that an acting probe flagged, as a multiple of the share
of benign traffic that its threshold was set to flag; benign traffic burns at 1. *Coverage*: the share of tokens without
a score, against a goal of 99.9% scored.
"""

from __future__ import annotations

from deploy.prometheus.model import FLEET_PROBE, PROBE, Record

FLAG_FAST, FLAG_SLOW = ("1h", "5m"), ("6h", "30m")
COVERAGE_FAST, COVERAGE_SLOW = ("1h", "5m"), ("6h", "30m")
"""A long window says that it matters, a short one that it is still going on."""
FLAG_FAST_FACTOR, FLAG_SLOW_FACTOR = 10, 3
COVERAGE_FAST_FACTOR, COVERAGE_SLOW_FACTOR = 14.4, 6
UNSCORED_BUDGET = 0.001
"""Share of tokens that may stay unscored in the long run."""

BY_DESIGN = "before_attach|detached|other_adapter|skipped"
"""Reasons that say what was asked for, not that something broke. A reason added later counts as broken."""

WINDOWS = ("5m", "30m", "1h", "6h")

NOMINAL = "job_model_probe:probewatch_nominal_fpr:max"
FLAG_FAST_LIMIT = "job_model_probe:probewatch_flag_burn_fast:limit"
FLAG_SLOW_LIMIT = "job_model_probe:probewatch_flag_burn_slow:limit"


def flag_burn(window: str) -> str:
    """Name of the series: flagged share / nominal FPR of acting probes."""
    return f"job_model_probe:probewatch_flag_burn:ratio_rate{window}"


def flags(window: str) -> str:
    """Name of the series: sequences flagged by acting probes."""
    return f"job_model_probe:probewatch_alerts:increase{window}"


def unscored(window: str) -> str:
    """Name of the series: share of a probe's tokens without a score, less those unscored by design."""
    return f"probe:probewatch_tokens_unscored:ratio_rate{window}"


def flag_records() -> list[Record]:
    """Burn of flags, each series after those that it reads."""
    return [
        Record(NOMINAL, FLEET_PROBE, f"max by ({FLEET_PROBE}) (probewatch_nominal_fpr)"),
        Record(FLAG_FAST_LIMIT, FLEET_PROBE, _limit(FLAG_FAST_FACTOR)),
        Record(FLAG_SLOW_LIMIT, FLEET_PROBE, _limit(FLAG_SLOW_FACTOR)),
        *(Record(flag_burn(window), FLEET_PROBE, _flag_burn(window)) for window in WINDOWS),
        *(Record(flags(window), FLEET_PROBE, _flags(window)) for window in (FLAG_FAST[0], FLAG_SLOW[0])),
    ]


def coverage_records() -> list[Record]:
    """Shares of unscored tokens."""
    return [Record(unscored(window), PROBE, _unscored(window)) for window in WINDOWS]


def _limit(factor: float) -> str:
    """``factor``, or the burn at half way from the nominal FPR to everything flagged, where that is less: ten times
    an FPR of 20% is never reached."""
    return f"clamp_max(\n  (1 + {NOMINAL})\n  / (2 * {NOMINAL}),\n  {factor}\n)"


def _flag_burn(window: str) -> str:
    return (
        f"sum by ({FLEET_PROBE}) (rate(probewatch_alerts_total[{window}]))\n"
        f'/ (sum by ({FLEET_PROBE}) (rate(probewatch_requests_total{{verdict!="unscored"}}[{window}])) > 0)\n'
        f"/ {NOMINAL}"
    )


def _flags(window: str) -> str:
    return f"sum by ({FLEET_PROBE}) (increase(probewatch_alerts_total[{window}]))"


def _unscored(window: str) -> str:
    lost = (
        f'sum by ({PROBE}) (rate(\n  probewatch_tokens_unscored_total{{reason!~"{BY_DESIGN}"}}[{window}]\n))'
    )
    scored = f"sum by ({PROBE}) (rate(probewatch_tokens_scored_total[{window}]))"
    return f"{lost}\n/ (\n{scored}\n+ {lost}\n> 0)"
