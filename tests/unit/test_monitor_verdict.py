"""The contract's rule, from token states to the verdict of a probe and of a sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.events import FloatArray, ProbeVerdict
from monitor.unscored import Reason, nan_for
from monitor.verdict import FLAGGED, OK, UNSCORED, judge, of_probe, of_sequence, worst
from tests.unit.monitor_fakes import alerting, column, make_probe

MISSING = nan_for(Reason.NOT_DELIVERED)
GENERATED = {"prompt": "none", "skip_positions": ()}
COMPLETE = ProbeVerdict(0.0, 1.0, False, False, 3, 4)
FLAG = ProbeVerdict(2.0, 1.0, True, False, 3, 4)
PARTIAL = ProbeVerdict(0.0, 1.0, False, True, 3, 2)
PARTIAL_FLAG = ProbeVerdict(2.0, 1.0, True, True, 3, 2)


def test_a_probe_crosses_strictly_above_its_threshold() -> None:
    probe = alerting(threshold=2.0)
    assert not judge(probe, column(1, 2), 1).flagged
    assert judge(probe, column(1, 2.001), 1).flagged


def test_score_peak_and_count_are_those_inside_the_mask() -> None:
    probe = alerting(token_mask={"prompt": "last_k", "last_k": 2, "skip_positions": (5,)}, threshold=100.0)
    found = judge(probe, column(90, 80, 1, 7, 3, 99, 7), prompt_tokens=4)
    assert found == ProbeVerdict(7.0, 100.0, False, False, 3, 4)  # positions 2, 3, 4, 6; the first peak


def test_the_peak_is_a_position_of_the_sequence_also_when_tokens_before_it_are_missing() -> None:
    found = judge(alerting(), column(MISSING, -5, MISSING, -1, -2), 2)
    assert (found.peak_token, found.score, found.tokens_scored) == (3, -1.0, 3)


def test_the_mean_is_over_scored_tokens_and_never_counts_a_missing_one_as_zero() -> None:
    probe = alerting(aggregation={"method": "mean"}, statistic="final", threshold=2.5)
    found = judge(probe, column(4, MISSING, 2, math.inf), 1)
    assert found.score == 3.0
    assert found.flagged
    assert found.unscored


def test_the_running_maximum_flags_what_the_final_mean_would_hide() -> None:
    states = column(9, 9, -9, -9, -9)
    rule: dict[str, Any] = {"aggregation": {"method": "mean", "min_tokens": 2}, "threshold": 5.0}
    assert judge(alerting(statistic="running_sup", **rule), states, 1).score == 9.0
    assert judge(alerting(statistic="final", **rule), states, 1).flagged is False


@pytest.mark.parametrize(
    "missing", [MISSING, nan_for(Reason.NON_FINITE), np.float32(np.inf), np.float32(-np.inf)]
)
def test_a_missing_token_inside_the_mask_makes_it_unscored(missing: np.float32) -> None:
    probe = alerting(token_mask=GENERATED, threshold=5.0)
    found = judge(probe, column(0, 0, 1, missing, 1), 2)
    assert of_probe(found) == UNSCORED
    assert (found.score, found.tokens_scored, found.peak_token) == (1.0, 2, 2)


@pytest.mark.parametrize("missing", [MISSING, np.float32(np.inf)])
def test_a_missing_token_outside_the_mask_changes_nothing(missing: np.float32) -> None:
    probe = alerting(token_mask={"prompt": "none", "skip_positions": (3,)}, threshold=5.0)
    assert of_probe(judge(probe, column(missing, 0, 1, missing, 1), 2)) == OK


def test_nothing_scored_has_no_score_at_all() -> None:
    found = judge(alerting(), column(MISSING, MISSING), 1)
    assert found == ProbeVerdict(None, 0.0, False, True, None, 0)


def test_no_token_inside_the_mask_is_unscored_and_not_ok() -> None:
    found = judge(alerting(token_mask=GENERATED), column(9, 9), 2)  # max_tokens=1: its token is never fed
    assert (of_probe(found), found.score, found.peak_token) == (UNSCORED, None, None)


def test_without_a_threshold_nothing_is_flagged() -> None:
    found = judge(make_probe(threshold=None, default_action="observe"), column(0, 1e6), 1)
    assert (found.flagged, found.score, found.threshold) == (False, 1e6, math.inf)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [(COMPLETE, OK), (FLAG, FLAGGED), (PARTIAL, UNSCORED), (PARTIAL_FLAG, FLAGGED)],
)
def test_flagged_beats_unscored_beats_ok_for_one_probe(verdict: ProbeVerdict, expected: str) -> None:
    assert of_probe(verdict) == expected


@pytest.mark.parametrize("action", ["alert", "stop", "steer:calm"])
@pytest.mark.parametrize(
    ("counting", "observing", "expected"),
    [
        (COMPLETE, FLAG, OK),
        (COMPLETE, PARTIAL, OK),
        (PARTIAL, FLAG, UNSCORED),
        (PARTIAL, COMPLETE, UNSCORED),
        (FLAG, COMPLETE, FLAGGED),
        (FLAG, PARTIAL, FLAGGED),
    ],
)
def test_a_probe_that_observes_does_not_count(
    action: str, counting: ProbeVerdict, observing: ProbeVerdict, expected: str
) -> None:
    actions = {"acts": action, "watches": "observe"}
    assert of_sequence({"acts": counting, "watches": observing}, actions) == expected
    assert of_sequence({"watches": observing, "acts": counting}, actions) == expected


def test_of_two_acting_probes_the_worse_one_decides() -> None:
    actions = {"a": "alert", "b": "stop"}
    assert of_sequence({"a": PARTIAL, "b": FLAG}, actions) == FLAGGED
    assert of_sequence({"a": COMPLETE, "b": PARTIAL}, actions) == UNSCORED
    assert of_sequence({"a": COMPLETE, "b": COMPLETE}, actions) == OK


def test_without_acting_probes_a_sequence_is_ok() -> None:
    assert of_sequence({}, {}) == OK
    assert of_sequence({"a": FLAG}, {"a": "observe"}) == OK
    assert worst([]) == OK


tokens = st.lists(
    st.one_of(st.floats(-100, 100, width=32), st.sampled_from([float("inf"), float("nan")])),
    min_size=1,
    max_size=20,
)


def by_hand(states: FloatArray, prompt_tokens: int) -> tuple[int, int, float | None, int | None]:
    """(inside, scored, maximum, peak) by a plain loop; the mask: the prompt's last 3, answers, never position 1."""
    inside, scored, best, peak = 0, 0, None, None
    for position, score in enumerate(states[:, 0].tolist()):
        if position < prompt_tokens - 3 or position == 1:
            continue
        inside += 1
        if not math.isfinite(score):
            continue
        scored += 1
        if best is None or score > best:
            best, peak = score, position
    return inside, scored, best, peak


@given(tokens, st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_any_sequence_is_judged_as_by_hand(scores: list[float], prompt_tokens: int) -> None:
    probe = alerting(token_mask={"prompt": "last_k", "last_k": 3, "skip_positions": (1,)}, threshold=20.0)
    prompt_tokens = min(prompt_tokens, len(scores))
    inside, scored, best, peak = by_hand(column(*scores), prompt_tokens)
    found = judge(probe, column(*scores), prompt_tokens)
    assert (found.tokens_scored, found.peak_token, found.score) == (scored, peak, best)
    assert found.unscored == (scored == 0 or scored < inside)
    assert found.flagged == (best is not None and best > 20.0)
