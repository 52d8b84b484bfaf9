"""Alerts for servers that nobody watches: gone, without the plugin, not attached, without a probe."""

from __future__ import annotations

from deploy.prometheus.model import ON_ENGINE, WHERE, Alert


def alerts() -> list[Alert]:
    """In the order of the rule file."""
    return [
        Alert(
            "ProbewatchServerGone",
            "critical",
            "{{ $labels.instance }} cannot be scraped",
            "{{ $labels.instance }} of job {{ $labels.job }} served vLLM or probewatch metrics within the last day and "
            "does not answer now.",
            "up == 0\n"
            "and on (job, instance) (\n"
            "  present_over_time(probewatch_build_info[1d]) or present_over_time(vllm:num_requests_running[1d])\n"
            ")",
            hold="2m",
            board="fleet",
            opened_with=(),
        ),
        Alert(
            "ProbewatchNothingMonitored",
            "critical",
            "No monitored engine is left",
            "Not one engine {{ with $labels.job }}of job {{ . }} {{ end }}reports proven taps.",
            "absent(probewatch_attached == 1)\n"
            "or\n"
            "group by (job) (present_over_time(probewatch_attached[1d]))\n"
            "  unless on (job) probewatch_attached == 1",
            hold="10m",
            board="fleet",
            opened_with=(),
        ),
        Alert(
            "ProbewatchPluginNotLoaded",
            "critical",
            "{{ $labels.instance }} serves without the monitor",
            "vLLM on {{ $labels.instance }} serves {{ $labels.model_name }} and exports no probewatch metric.",
            "group by (job, instance, model_name) (vllm:num_requests_running)\n"
            "unless on (job, instance) probewatch_build_info",
            hold="5m",
            board="fleet",
        ),
        Alert(
            "ProbewatchNotAttached",
            "critical",
            "{{ $labels.instance }} serves unmonitored",
            f"The plugin on {WHERE} is loaded and its taps are not in place: every token is unscored.",
            "probewatch_attached == 0",
            hold="2m",
            board="fleet",
        ),
        Alert(
            "ProbewatchNoProbe",
            "warning",
            "{{ $labels.instance }} has no probe",
            f"The taps on {WHERE} work and no probe is attached: nothing is judged.",
            f"probewatch_attached == 1\nunless {ON_ENGINE} probewatch_probe_info == 1",
            hold="15m",
            board="fleet",
        ),
    ]
