"""Alerts for tokens that pass without a score."""

from __future__ import annotations

from deploy.prometheus import recording as r
from deploy.prometheus.model import ACTING, ENGINE, NAME, ON_ENGINE, PROBE, SHARE, WHERE, Alert, Severity


def alerts() -> list[Alert]:
    """In the order of the rule file."""
    return [
        Alert(
            "ProbewatchTapsDead",
            "critical",
            "{{ $labels.instance }} generates and nothing is scored",
            f'vLLM generates {{{{ $value | printf "%.1f" }}}} tokens a second on {WHERE}; no probe scored one in 5 '
            "minutes.",
            f"sum by ({ENGINE}) (rate(vllm:generation_tokens_total[5m])) > 0\n"
            f"and {ON_ENGINE} probewatch_attached == 1\n"
            f"and {ON_ENGINE} probewatch_probe_info == 1\n"
            f"unless {ON_ENGINE} sum by ({ENGINE}) (rate(probewatch_tokens_scored_total[5m])) > 0",
            hold="2m",
        ),
        Alert(
            "ProbewatchTokensMissed",
            "critical",
            "The monitor on {{ $labels.instance }} counts fewer tokens than vLLM",
            f"The monitor on {WHERE} saw {SHARE} of the tokens that vLLM says it fed "
            "to the model, over 30 minutes. The rest has neither a score nor a reason.",
            _accounting(),
            hold="10m",
        ),
        _coverage_burn(
            "ProbewatchCoverageBurnFast", "critical", r.COVERAGE_FAST, r.COVERAGE_FAST_FACTOR, hold="2m"
        ),
        _coverage_burn(
            "ProbewatchCoverageBurnSlow", "warning", r.COVERAGE_SLOW, r.COVERAGE_SLOW_FACTOR, hold="15m"
        ),
        Alert(
            "ProbewatchAdapterUnwatched",
            "warning",
            "{{ $labels.probe }} does not watch part of the traffic on {{ $labels.instance }}",
            f"{SHARE} of the tokens on {WHERE} ran with a LoRA adapter, or without one, "
            "that {{ $labels.probe }} was not trained for.",
            _share_of_reason("other_adapter", "1h") + " > 0.05",
            hold="30m",
            board="probes",
            opened_with=("model_name", "instance", "probe"),
        ),
        Alert(
            "ProbewatchVerdictsMissing",
            "warning",
            "{{ $labels.probe }} leaves most sequences unjudged on {{ $labels.instance }}",
            f"{SHARE} of the sequences on {WHERE} ended without a verdict of "
            "{{ $labels.probe }} in the last 30 minutes.",
            f'sum by ({PROBE}) (rate(probewatch_requests_total{{verdict="unscored"}}[30m]))\n'
            f"/ (sum by ({PROBE}) (rate(probewatch_requests_total[30m])) > 0) > 0.5\n"
            f"and on ({PROBE}) {ACTING}\n"
            f"and on ({PROBE}) sum by ({PROBE}) (increase(probewatch_requests_total[30m])) >= 20",
            hold="10m",
            board="probes",
            opened_with=("model_name", "instance", "probe"),
        ),
    ]


def _coverage_burn(
    name: str, severity: Severity, windows: tuple[str, str], factor: float, hold: str
) -> Alert:
    long, short = windows
    limit = f"{factor * r.UNSCORED_BUDGET:g}"
    return Alert(
        name,
        severity,
        "{{ $labels.probe }} misses tokens on {{ $labels.instance }}",
        f"{SHARE} of the tokens on {WHERE} got no score from {NAME}, "
        f"over {long} and still over {short}. The goal is {r.UNSCORED_BUDGET:.1%} at most.",
        f"({r.unscored(long)} > {limit})\nand on ({PROBE}) ({r.unscored(short)} > {limit})",
        hold=hold,
    )


def _accounting() -> str:
    """Seen tokens against vLLM's own: prompt + generation, less one for each sequence (its last token is never fed)."""
    by = f"sum by ({ENGINE})"
    return (
        f"{by} (rate(probewatch_tokens_seen_total[30m]))\n"
        "/ (\n"
        f"  {by} (rate(vllm:prompt_tokens_total[30m]))\n"
        f"  + {by} (rate(vllm:generation_tokens_total[30m]))\n"
        f"  - {by} (rate(vllm:request_success_total[30m]))\n"
        "  > 0\n"
        ") < 0.95\n"
        f"and {ON_ENGINE} probewatch_attached == 1"
    )


def _share_of_reason(reason: str, window: str) -> str:
    lost = f"sum by ({PROBE}) (rate(probewatch_tokens_unscored_total"
    return (
        f'{lost}{{reason="{reason}"}}[{window}]))\n'
        f"/ (sum by ({PROBE}) (rate(probewatch_tokens_scored_total[{window}]))\n"
        f"  + {lost}[{window}])) > 0)"
    )
