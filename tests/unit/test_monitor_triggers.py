"""Stops with planted scores: where a sequence is ended, that noise ends none, and that nothing is held for long."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.events import StepView, Stop
from monitor.triggers import Triggers
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
