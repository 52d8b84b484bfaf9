"""The catalogue of metrics: names, types, labels, help.

Labels are ``model_name`` and ``engine`` on each, ``probe`` where it applies; never a request, a user, a
prompt or a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PHASES = ("prompt", "generation")
PROBE_GAUGES = (
    "probewatch_threshold",
    "probewatch_nominal_fpr",
    "probewatch_score_drift",
    "probewatch_score_drift_ks",
    "probewatch_selftest_error",
)
"""Of an attached probe, besides ``probewatch_probe_info``."""
ERROR_STAGES = ("worker", "frontend")
MARGIN_BOUNDS = (-16.0, -8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
OVERHEAD_BOUNDS = (25e-6, 50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 25.6e-3, 0.1)


@dataclass(frozen=True)
class Metric:
    """One entry of the catalogue."""

    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    """Labels besides ``model_name`` and ``engine``."""
    buckets: tuple[float, ...] = ()
    multiprocess: Literal["mostrecent", "max", "min"] = "mostrecent"
    """How a gauge of several API-server processes becomes one."""


CATALOGUE: dict[str, Metric] = {
    "probewatch_build_info": Metric(
        "gauge", "Versions in use; always 1.", ("version", "vllm_version", "runner")
    ),
    "probewatch_probe_info": Metric(
        "gauge", "1 while the probe is attached.", ("probe", "kind", "layers", "sha256")
    ),
    "probewatch_attached": Metric(
        "gauge", "1 while the taps are in place and proven, else 0.", multiprocess="min"
    ),
    "probewatch_requests_total": Metric("counter", "Judged sequences.", ("probe", "verdict")),
    "probewatch_alerts_total": Metric(
        "counter", "Sequences that an acting probe flagged.", ("probe", "action")
    ),
    "probewatch_request_margin": Metric(
        "histogram", "(score - threshold) / benign interquartile range.", ("probe",), MARGIN_BOUNDS
    ),
    "probewatch_threshold": Metric("gauge", "Threshold in force.", ("probe",)),
    "probewatch_action_info": Metric(
        "gauge", "1 for the action of an attached probe, 0 for those it had before.", ("probe", "action")
    ),
    "probewatch_nominal_fpr": Metric(
        "gauge", "Share of benign traffic the threshold was set to flag.", ("probe",)
    ),
    "probewatch_tokens_seen_total": Metric("counter", "Tokens that vLLM fed to the model.", ("phase",)),
    "probewatch_tokens_scored_total": Metric("counter", "Tokens with a score.", ("probe", "phase")),
    "probewatch_tokens_unscored_total": Metric(
        "counter", "Tokens without one.", ("probe", "phase", "reason")
    ),
    "probewatch_score_drift": Metric(
        "gauge", "PSI of recent scores against the benign quantiles.", ("probe",)
    ),
    "probewatch_score_drift_ks": Metric(
        "gauge", "Kolmogorov-Smirnov distance of recent scores from the benign quantiles.", ("probe",)
    ),
    "probewatch_selftest_error": Metric(
        "gauge", "Largest absolute difference from the golden scores at attach.", ("probe",)
    ),
    "probewatch_last_scored_timestamp_seconds": Metric(
        "gauge", "When a token was last scored (Unix time).", multiprocess="max"
    ),
    "probewatch_step_overhead_seconds": Metric(
        "histogram", "Host time the monitor added to an engine step.", (), OVERHEAD_BOUNDS
    ),
    "probewatch_steered_tokens_total": Metric("counter", "Tokens steered.", ("vector",)),
    "probewatch_stopped_requests_total": Metric("counter", "Requests stopped by a probe.", ("probe",)),
    "probewatch_evidence_total": Metric("counter", "Evidence records by fate.", ("sink", "outcome")),
    "probewatch_errors_total": Metric("counter", "Errors inside the monitor.", ("stage",)),
}
