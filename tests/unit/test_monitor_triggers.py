"""Stops with planted scores: where a sequence is ended, that noise ends none, and that nothing is held for long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitor.events import StepRows, StepView, Stop
from monitor.gates import gate_key
from monitor.triggers import Crossed, Triggers
from probes import Probe
from tests.unit.monitor_fakes import alerting, make_bank

PROMPT = 4


def watch(**changes: object) -> Triggers:
    """Of one probe that stops above 1, by the mean of the answer's tokens from the third on."""
    settings: dict[str, object] = {
        "default_action": "stop",
        "threshold": 1.0,
        "token_mask": {"prompt": "none", "skip_positions": ()},
        "aggregation": {"method": "mean", "min_tokens": 3},
        "statistic": "running_sup",
    }
    return Triggers(make_bank(probe(**{**settings, **changes})))


def probe(**changes: object) -> Probe:
    return alerting("guard", **changes)


def step(watched: Triggers, start: int, scores: list[float], request: str = "a") -> tuple[Stop, ...]:
    """One step of one request in which these scores became due."""
    ints = [np.array([n], np.int64) for n in (start, PROMPT, 0)]
    view = StepView(
        (request,), np.array([0, len(scores)]), ints[0], ints[1], ints[2], np.zeros(0, np.int64), {}
    )
    states = np.array(scores, np.float32).reshape(-1, 1)
    return watched.follow(view, np.array([start]), np.array([len(scores)]), states).stops


def test_the_aggregation_decides_and_not_a_single_token() -> None:
    watched = watch()
    assert step(watched, 0, [9.0] * PROMPT) == ()  # outside the mask
    assert step(watched, 4, [50.0]) == ()  # too early
    assert step(watched, 5, [-60.0]) == ()
    assert step(watched, 6, [2.0]) == ()  # the mean is -2.7
    assert step(watched, 7, [20.0]) == (Stop(0, "guard", 7),)  # the mean is 3
    assert step(watched, 8, [90.0]) == (Stop(0, "guard", 7),)  # told again: the output may have been dropped


def test_a_probe_of_several_state_numbers_stops_too() -> None:
    """Two heads that each keep their maximum: neither token alone is above 1, their sum is."""
    guard = {"kind": "multimax", "aggregation": {"method": "multimax", "heads": "max_then_sum"}}
    watched = watch(**guard)
    view = StepView(
        ("a",), np.array([0, 6]), np.array([0]), np.array([PROMPT]), np.array([0]), np.zeros(0, np.int64), {}
    )
    states = np.full((6, 3), -1.0, np.float32)
    states[4, 0], states[5, 1] = 1.8, 1.9
    states[:PROMPT] = 9.0  # outside the mask
    assert watched.follow(view, np.array([0]), np.array([6]), states).stops == (Stop(0, "guard", 5),)
    blind = watch(**guard)
    states[5, 2] = np.nan  # a state of which a part is missing is no state
    assert blind.follow(view, np.array([0]), np.array([6]), states).stops == ()


def test_among_accepted_drafts_the_first_that_crosses_counts() -> None:
    watched = watch()
    step(watched, 0, [0.0] * PROMPT)
    assert step(watched, 4, [0.0, 0.0, 9.0, 9.0]) == (Stop(0, "guard", 6),)


def test_a_missing_score_neither_stops_nor_counts() -> None:
    watched = watch(aggregation={"method": "max"})
    step(watched, 0, [0.0] * PROMPT)
    assert step(watched, 4, [float("nan")]) == ()
    assert step(watched, 5, [2.0]) == (Stop(0, "guard", 5),)


def test_the_prompt_may_stop_too() -> None:
    watched = watch(token_mask={"prompt": "all", "skip_positions": ()}, aggregation={"method": "max"})
    assert step(watched, 0, [0.0, 5.0, 0.0, 0.0]) == (Stop(0, "guard", 1),)


@pytest.mark.parametrize("action", ["observe", "alert"])
def test_other_actions_stop_nothing_and_hold_nothing(action: str) -> None:
    watched = watch(default_action=action)
    step(watched, 0, [99.0] * 20)
    assert len(watched) == 0


def test_a_sequence_is_forgotten_when_it_ends_and_keeps_its_threshold_while_it_runs() -> None:
    watched = watch()
    step(watched, 0, [0.0] * PROMPT)
    bank = make_bank(probe(threshold=1.0, default_action="stop"))
    watched.renew(bank.follow([probe(threshold=1e6, default_action="stop")]), bank)
    assert step(watched, 4, [9.0, 9.0, 9.0]) == (Stop(0, "guard", 6),)
    watched.forget(["a", "unknown"])
    assert len(watched) == 0
    step(watched, 0, [0.0] * PROMPT, "b")
    assert step(watched, 4, [9.0, 9.0, 9.0], "b") == ()


def test_a_sequence_that_began_before_the_probe_is_left_alone() -> None:
    watched = watch(aggregation={"method": "max"})
    assert step(watched, 9, [99.0], "older") == ()


def test_a_probe_that_is_detached_stops_nobody_whoever_takes_its_place() -> None:
    settings: dict[str, object] = {
        "default_action": "stop",
        "threshold": 1.0,
        "aggregation": {"method": "max"},
    }
    before = make_bank(probe(**settings), capacity=2)
    watched = Triggers(before)
    step(watched, 0, [0.0] * PROMPT)
    watched.renew(before.follow([alerting("other", threshold=100.0)]), before)
    assert step(watched, 4, [50.0]) == ()


# Gates.


def gated(**changes: object) -> Triggers:
    """Of one probe that steers once the mean of its answer's tokens is above 1."""
    settings: dict[str, object] = {
        "default_action": "steer:honesty:2",
        "threshold": 1.0,
        "token_mask": {"prompt": "none", "skip_positions": ()},
        "aggregation": {"method": "mean"},
        "statistic": "running_sup",
    }
    return Triggers(make_bank(probe(**{**settings, **changes})))


NUMBERS = {gate_key(seat): 0 for seat in make_bank(probe(default_action="steer:honesty:2")).seats}
"""All probes of these tests have the same name and tensors, so they drive the same gate."""


def take(
    watched: Triggers, start: int, scores: list[float], request: str = "a", fired: bool | None = None
) -> Crossed:
    """One step; ``fired``: what the device says of the gate at every row, None where it was not asked."""
    ints = [np.array([n], np.int64) for n in (start, PROMPT, 0)]
    rows = np.array([0, len(scores)])
    view = StepView((request,), rows, ints[0], ints[1], ints[2], np.zeros(0, np.int64), {})
    states = np.array(scores, np.float32).reshape(-1, 1)
    opened = None if fired is None else np.full((len(scores), 1), fired)
    return watched.follow(view, np.array([start]), np.array([len(scores)]), states, opened, NUMBERS)


def levels(watched: Triggers, *requests: tuple[str, int, int]) -> list[float] | None:
    """Of the one gate, for (request, first position, rows) of a step that comes."""
    counts = [rows for *_, rows in requests]
    found = watched.levels(
        StepRows(
            [name for name, *_ in requests],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array([first for _, first, _ in requests]),
            np.full(len(requests), PROMPT),
        ),
        1,
        NUMBERS,
    )
    return None if found is None else found[:, 0].tolist()


INF = float("inf")


def test_a_gate_knows_the_score_that_would_open_it() -> None:
    watched = gated()
    assert levels(watched, ("a", 0, 4)) is None, "nothing has come out yet"
    take(watched, 0, [9.0] * PROMPT)
    assert levels(watched, ("a", 4, 1), ("b", 0, 3)) == [1.0, INF, INF, INF]
    assert take(watched, 4, [-2.0]).gated == ()
    assert levels(watched, ("a", 5, 1)) == [4.0], "a mean of (-2 + 4) / 2 is where it crosses"
    assert take(watched, 5, [4.5], fired=True).gated == ((0, 5),), (
        "the device has opened it in that very pass"
    )
    assert levels(watched, ("a", 6, 1)) == [-INF]
    assert take(watched, 6, [-99.0]).gated == (), "it stays open, and is told once"


def test_a_gate_that_reads_too_late_opens_with_the_next_token() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    assert take(watched, 4, [3.0], fired=False).gated == ((0, 5),)


def test_after_a_preemption_the_same_tokens_are_steered_again_and_no_others() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    take(watched, 4, [0.0])
    take(watched, 5, [5.0], fired=True)
    take(watched, 6, [0.0], fired=True)
    assert levels(watched, ("a", 0, 8)) == [INF] * 5 + [-INF] * 3


def test_several_tokens_in_a_step_open_the_gate_behind_the_one_that_crossed() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    assert levels(watched, ("a", 4, 3)) == [INF] * 3, "what the first drafts score is not known yet"
    assert take(watched, 4, [0.0, 5.0, 0.0]).gated == ((0, 6),)


def test_a_gate_is_shut_for_whoever_comes_into_the_place_of_one_who_left() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    take(watched, 4, [5.0])
    watched.forget(["a"])
    take(watched, 0, [9.0] * PROMPT, "b")
    assert levels(watched, ("b", 4, 1)) == [1.0]
    assert levels(watched, ("a", 4, 1), ("b", 4, 1)) == [INF, 1.0]


def test_a_gate_that_is_taken_away_steers_nobody_any_more() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    take(watched, 4, [5.0])
    before = make_bank(probe(default_action="steer:honesty:2", threshold=1.0, statistic="running_sup"))
    watched.renew(
        before.follow([probe(default_action="alert", threshold=1.0, statistic="running_sup")]), before
    )
    assert levels(watched, ("a", 5, 1)) is None


def test_a_running_sequence_keeps_its_threshold_when_another_is_set() -> None:
    rule: dict[str, object] = {
        "token_mask": {"prompt": "none", "skip_positions": ()},
        "statistic": "running_sup",
    }
    first = probe(default_action="steer:honesty:2", threshold=1.0, aggregation={"method": "mean"}, **rule)
    before = make_bank(first)
    watched = Triggers(before)
    take(watched, 0, [9.0] * PROMPT)
    changed = replace(first, manifest=first.manifest.model_copy(update={"threshold": 7.0}))
    watched.renew(before.follow([changed]), before)
    take(watched, 0, [9.0] * PROMPT, "b")
    assert levels(watched, ("a", 4, 1), ("b", 4, 1)) == [1.0, 7.0]


def test_what_the_device_did_is_the_truth_even_if_the_host_rounds_otherwise() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    assert take(watched, 4, [0.999], fired=True).gated == ((0, 4),)
    assert levels(watched, ("a", 5, 1)) == [-INF]


def test_a_host_that_is_behind_lets_the_device_open_nothing() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    assert levels(watched, ("a", 5, 1)) == [INF], "position 4 is still under way"
    take(watched, 4, [0.0])
    assert levels(watched, ("a", 5, 1)) == [2.0]


def test_a_sequence_without_scores_opens_no_gate() -> None:
    watched = gated()
    take(watched, 0, [float("nan")] * PROMPT)
    assert levels(watched, ("a", 4, 1)) == [INF]
    take(watched, 4, [float("nan")])
    assert levels(watched, ("a", 5, 1)) == [INF]


def test_between_a_change_and_its_first_step_no_probe_drives_anothers_gate() -> None:
    watched = gated()
    take(watched, 0, [9.0] * PROMPT)
    take(watched, 4, [5.0])
    step = StepRows(["a"], np.array([0, 1]), np.array([5]), np.array([PROMPT]))
    assert watched.levels(step, 1, {("another", "of", "steer:calm"): 0}) is None
