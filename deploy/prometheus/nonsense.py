"""Alerts for scores that cannot be trusted."""

from __future__ import annotations

from deploy.prometheus.model import ACTING, COUNT, NAME, PROBE, WHERE, Alert


def alerts() -> list[Alert]:
    """In the order of the rule file."""
    probe_board = ("model_name", "instance", "probe")
    return [
        Alert(
            "ProbewatchScoresNotFinite",
            "warning",
            "NaN or infinite residuals on {{ $labels.instance }}",
            f"Tokens on {WHERE} without a finite score from {NAME}, in 15 minutes: {COUNT}. The model's own numbers "
            "were NaN or infinite there.",
            f"round(sum by ({PROBE}) (increase(\n"
            '  probewatch_tokens_unscored_total{reason="non_finite"}[15m]\n'
            "))) > 0",
        ),
        Alert(
            "ProbewatchScoresStuck",
            "critical",
            "Scores of {{ $labels.probe }} do not move on {{ $labels.instance }}",
            f"{NAME} on {WHERE} judged {COUNT} sequences in an hour, and the "
            "distribution of its scores did not change by one count.",
            f'sum by ({PROBE}) (increase(probewatch_requests_total{{verdict!="unscored"}}[1h])) >= 100\n'
            f"and on ({PROBE}) changes(probewatch_score_drift[1h]) == 0\n"
            f"and on ({PROBE}) probewatch_score_drift > 0",
            hold="5m",
            board="probes",
            opened_with=probe_board,
        ),
        Alert(
            "ProbewatchScoreDrift",
            "warning",
            "Scores of {{ $labels.probe }} have drifted on {{ $labels.instance }}",
            f"Distance of the scores of {NAME} on {WHERE} from its benign quantiles (PSI, or KS where PSI is low): "
            '{{ $value | printf "%.2f" }}. Above 0.25 its calibration speaks of other traffic.',
            "probewatch_score_drift > 0.25\nor probewatch_score_drift_ks > 0.25",
            hold="1h",
            board="probes",
            opened_with=probe_board,
        ),
        Alert(
            "ProbewatchUncalibrated",
            "warning",
            "{{ $labels.probe }} acts without a calibrated false-positive rate",
            f"{NAME} on {WHERE} flags requests, and its artifact has no nominal FPR: no burn-rate "
            "alert can fire for it.",
            f"{ACTING}\n"
            f"and on ({PROBE}) max by ({PROBE}) (probewatch_probe_info) == 1\n"
            f"unless on ({PROBE}) probewatch_nominal_fpr",
            hold="15m",
            board="probes",
            opened_with=probe_board,
        ),
        Alert(
            "ProbewatchSelfTestFailing",
            "critical",
            "{{ $labels.probe }} fails its self-test on {{ $labels.instance }}",
            f'{NAME} on {WHERE} is off its golden scores by {{{{ $value | printf "%.2g" }}}}.',
            # NaN is unequal to itself; the second line is for probes without a threshold.
            "probewatch_selftest_error > 0.01 * (1 + abs(probewatch_threshold))\n"
            f"or (probewatch_selftest_error > 0.1 unless on ({PROBE}) probewatch_threshold)\n"
            "or probewatch_selftest_error != probewatch_selftest_error",
            board="probes",
            opened_with=probe_board,
        ),
        Alert(
            "ProbewatchProbeChanged",
            "warning",
            "{{ $labels.probe }} was detached, or its threshold or action changed on {{ $labels.instance }}",
            f"Within 30 minutes somebody with the admin key changed how {NAME} judges on {WHERE}. If it was none of "
            "you, the monitor has been blinded.",
            f"sum by ({PROBE}) (changes(probewatch_threshold[30m])) > 0\n"
            f"or sum by ({PROBE}) (changes(probewatch_action_info[30m])) > 0\n"
            f"or max by ({PROBE}) (max_over_time(probewatch_probe_info[30m]))\n"
            f"  > max by ({PROBE}) (probewatch_probe_info)",
            board="probes",
            opened_with=probe_board,
        ),
        Alert(
            "ProbewatchProbesDiffer",
            "info",
            "Instances judge by different artifacts named {{ $labels.probe }}",
            "{{ $value }} artifacts with different digests are attached as {{ $labels.probe }} on "
            "{{ $labels.model_name }}.",
            "count by (job, model_name, probe) (\n"
            "  group by (job, model_name, probe, sha256) (probewatch_probe_info == 1)\n"
            ") > 1",
            hold="1h",
            board="fleet",
            opened_with=("model_name",),
        ),
    ]
