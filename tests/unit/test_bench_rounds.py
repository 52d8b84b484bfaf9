"""Paired rounds: who works when, and with which seed."""

from __future__ import annotations

import time

import pytest

from bench.arms import Arm
from bench.ratios import Found, pairs
from bench.rounds import Round, in_turns, measure
from bench.workload import Turns, Workload


class Player:
    """Notes its rounds."""

    def __init__(self, name: str, noted: list[tuple[str, str, int]], turns: int = 1) -> None:
        self.arm = Arm(name)
        self._noted, self._turns = noted, turns

    def round(self, load: Workload, seed: int) -> Round:
        """The rate is the number of turns so far."""
        for _ in range(self._turns - 1):
            self._noted.append((self.arm.name, load.name, seed))
            yield
        self._noted.append((self.arm.name, load.name, seed))
        return {"tokens_per_second": float(len(self._noted))}


def test_every_arm_does_every_load_with_the_same_seed_and_nobody_is_always_first() -> None:
    noted: list[tuple[str, str, int]] = []
    loads = [Workload(1, 2, 3), Workload(4, 5, 6)]
    found = measure([Player("a", noted), Player("b", noted)], loads, 4, until=1e18)
    assert {load: {arm: len(done) for arm, done in arms.items()} for load, arms in found.items()} == {
        load.name: {"a": 4, "b": 4} for load in loads
    }
    assert {seed for _, _, seed in noted} == {999, 1000, 1001, 1002, 1003}
    for seed in range(999, 1004):
        own = [(arm, load) for arm, load, at in noted if at == seed]
        assert sorted(own) == sorted((arm, load.name) for arm in "ab" for load in loads)
    assert {next(arm for arm, _, at in noted if at == seed) for seed in (1000, 1001)} == {"a", "b"}


def test_time_ends_it_after_three_rounds() -> None:
    found = measure([Player("a", [])], [Workload(1, 2, 3)], 9, until=0.0)
    assert [len(done) for done in found[Workload(1, 2, 3).name].values()] == [3]


def test_arms_alternate_turn_by_turn_and_one_that_has_ended_is_left_out() -> None:
    noted: list[tuple[str, str, int]] = []
    found = in_turns(
        [Player("a", noted, 2), Player("b", noted, 2), Player("c", noted, 4)], Workload(1, 2, 3), 7
    )
    assert "".join(arm for arm, _, _ in noted) == "abcbcacc"
    assert {arm: result["tokens_per_second"] for arm, result in found.items()} == {"b": 4, "a": 6, "c": 8}


def test_a_clock_stands_still_while_others_have_their_turn() -> None:
    waits: list[float] = []

    def wait() -> None:
        waits.append(turns.now())
        time.sleep(0.05)

    turns = Turns(wait)
    begun = turns.now()
    for _ in range(4):
        turns.step_done()
    assert len(waits) == 4
    assert turns.now() - begun < 0.05
    assert len(turns.seconds) == 4
    assert sum(turns.seconds) <= turns.now() - begun + 1e-3


def test_of_several_starts_the_medians_are_compared_and_of_one_its_rounds() -> None:
    rates = [[1.0, 9.0, 2.0], [5.0]]
    starts: list[Found] = [
        {"load": {"a": [{"rate": rate, "cost": -rate} for rate in start]}} for start in rates
    ]
    assert pairs(starts) == {"load": {"a": [{"rate": 2.0, "cost": -2.0}, {"rate": 5.0, "cost": -5.0}]}}
    assert pairs(starts[:1]) == starts[0]


def test_of_arms_that_alternate_step_by_step_no_step_counts_what_only_one_round_met() -> None:
    steps = [[0.5, 0.1, 0.1], [0.5, 9.0, 0.1], [7.0, 0.1, 0.1], [0.5, 0.1, 0.1]]
    rounds = [{"tokens_per_second": 70 / sum(own), "cost": sum(own), "step_seconds": own} for own in steps]
    starts: list[Found] = [{"load": {"a": rounds}}] * 2
    (first, _) = pairs(starts)["load"]["a"]
    assert first["tokens_per_second"] == pytest.approx(70 / 0.7)
    assert first["tokens_per_second_plain"] == pytest.approx((70 / 7.2 + 100) / 2)
    assert first.keys() == {"tokens_per_second", "tokens_per_second_plain", "cost"}
