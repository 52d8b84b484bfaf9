"""PromQL of the panels, narrowed by the dashboard's variables.

Shares of flagged sequences are small numbers: they are taken over ``$window``, everything else over
``$__rate_interval`` (panels over time) or ``$__range`` (tiles and tables that count).
"""

from __future__ import annotations

RATE = "$__rate_interval"
RANGE = "$__range"
WINDOW = "$window"

TARGET = 'job=~"$job", instance=~"$instance"'
"""For series that carry no more than a scrape's labels."""
SCOPE = f'{TARGET}, model_name=~"$model_name", engine=~"$engine"'
"""For metrics of ours and of vLLM's."""
ON_ENGINE = "on (job, instance, engine)"

REQUESTS = "probewatch_requests_total"
ALERTS = "probewatch_alerts_total"
SEEN = "probewatch_tokens_seen_total"
SCORED = "probewatch_tokens_scored_total"
UNSCORED = "probewatch_tokens_unscored_total"
MARGIN = "probewatch_request_margin"
OVERHEAD = "probewatch_step_overhead_seconds"
RUNNING = "vllm:num_requests_running"

JUDGED = 'verdict!="unscored"'
FLAGGED = 'verdict="flagged"'


def pick(metric: str, *matchers: str) -> str:
    """The series of a metric that the variables, and further matchers, leave."""
    return f"{metric}{{{', '.join((SCOPE, *matchers))}}}"


def rate(metric: str, *matchers: str, by: str = "", over: str = RATE) -> str:
    """Events a second."""
    return f"sum{_by(by)}(rate({pick(metric, *matchers)}[{over}]))"


def count(metric: str, *matchers: str, by: str = "", over: str = RANGE) -> str:
    """Events, as a whole number: ``increase()`` extrapolates."""
    return f"round(sum{_by(by)}(increase({pick(metric, *matchers)}[{over}])))"


def ratio(part: str, whole: str) -> str:
    """``part / whole`` for two vectors with equal labels; nothing where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def flagged_share(by: str, over: str, *matchers: str) -> str:
    """Flagged ones among the sequences that a probe judged, whatever its action."""
    return ratio(
        rate(REQUESTS, FLAGGED, *matchers, by=by, over=over),
        rate(REQUESTS, JUDGED, *matchers, by=by, over=over),
    )


def excess(by: str, over: str) -> str:
    """Alerts among judged sequences, as a multiple of the share that the threshold was set to flag (acting probes)."""
    share = ratio(rate(ALERTS, by=by, over=over), rate(REQUESTS, JUDGED, by=by, over=over))
    return f"{share} / max by ({by}) ({pick('probewatch_nominal_fpr')})"


def coverage(by: str, over: str, *matchers: str) -> str:
    """Scored tokens among those that a probe should have scored."""
    scored = rate(SCORED, *matchers, by=by, over=over)
    return ratio(scored, f"{scored} + {rate(UNSCORED, *matchers, by=by, over=over)}")


def lost_share(by: str, *matchers: str) -> str:
    """The rest: unscored tokens among those that a probe should have scored."""
    unscored = rate(UNSCORED, *matchers, by=by)
    return ratio(unscored, f"{rate(SCORED, *matchers, by=by)} + {unscored}")


def quantile(q: str, histogram: str, *matchers: str, by: str = "", over: str = RATE) -> str:
    """A quantile, interpolated within its bucket. ``q`` is a scalar expression."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', *matchers, by=labels, over=over)})"


def monitored(by: str) -> str:
    """1: attached. 0: the plugin is there and its taps are not proven. -1: vLLM serves without the plugin."""
    return f"min by ({by}) ({pick('probewatch_attached')}) or (0 * sum by ({by}) ({pick(RUNNING)}) - 1)"


def unmonitored() -> str:
    """How many engines serve without proven taps."""
    attached = f"({pick('probewatch_attached')} == 1)"
    return f"count({pick(RUNNING)} unless {ON_ENGINE} {attached}) or vector(0)"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""
