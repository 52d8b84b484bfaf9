"""Decode steps that wait to be stored: nobody who asks the store can tell that they did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from monitor.bank import ProbeBank
from monitor.events import FloatArray, StepScores, StepView
from monitor.filing import STEPS_WAITING, Decoding, Filing
from monitor.store import ScoreStore
from monitor.unscored import Reason, reasons
from tests.unit.monitor_fakes import ints, make_bank, make_probe

SLOTS = 32


def bank_of(*names: str) -> ProbeBank:
    return make_bank(*(make_probe(name, seed=i, layers=(1,)) for i, name in enumerate(names)))


def decoding(slots: Sequence[int], steps: int = 0) -> Decoding:
    """A step of one token of each request, whose first slots are given."""
    n = len(slots)
    first = np.full(n, 7)
    return Decoding(
        StepView(
            tuple(map(str, range(n))),
            np.arange(n + 1),
            first,
            ints(*[3] * n),
            first + 1,
            np.array(slots),
            {},
            decodes=True,
        ),
        steps,
    )


def projections(bank: ProbeBank, *values: float) -> FloatArray:
    """[L, R, C] a value for each request, in every column."""
    rows = np.array(values, np.float32)[None, :, None]
    return np.broadcast_to(rows, (len(bank.layers), len(values), bank.used_columns)).copy()


def stored(filing: Filing, *slots: int) -> FloatArray:
    return filing.store.read(np.array(slots))


@pytest.mark.parametrize("steps", [1, STEPS_WAITING, STEPS_WAITING + 3])
def test_what_is_stored_late_is_what_would_have_been_stored_at_once(steps: int) -> None:
    bank = bank_of("a", "b")
    filing = Filing(ScoreStore(SLOTS, bank.state_columns, 1))
    for at in range(steps):
        filing.wait(bank, decoding([0, 16], at), projections(bank, at, 100 + at))
    for at in range(steps):
        right = bank.states(projections(bank, at, 100 + at), None)
        np.testing.assert_array_equal(stored(filing, at, 16 + at), right)


def test_a_slot_that_changes_hands_while_steps_wait_holds_what_came_last() -> None:
    bank = bank_of("a")
    filing = Filing(ScoreStore(SLOTS, 1, 1))
    for value in (1, 2, 3):
        filing.wait(bank, decoding([5]), projections(bank, value))
    np.testing.assert_array_equal(stored(filing, 5), bank.states(projections(bank, 3), None))


def test_steps_of_two_banks_are_each_read_by_their_own() -> None:
    one = bank_of("a", "b")
    two = one.follow([one.seats[1].probe])
    filing = Filing(ScoreStore(SLOTS, one.state_columns, 1))
    filing.wait(one, decoding([0]), projections(one, 5))
    filing.wait(two, decoding([1]), projections(two, 5))
    found = stored(filing, 0, 1)
    np.testing.assert_array_equal(found[:1], one.states(projections(one, 5), None))
    kept = two.seats[0].states
    np.testing.assert_array_equal(found[1:, kept], two.states(projections(two, 5), None)[:, kept])


def test_what_waits_is_forgotten_with_the_rest() -> None:
    bank = bank_of("a")
    filing = Filing(ScoreStore(SLOTS, 1, 1))
    filing.wait(bank, decoding([4]), projections(bank, 1))
    stored(filing, 4)
    filing.wait(bank, decoding([5]), projections(bank, 1))
    filing.forget()
    assert reasons(stored(filing, 4, 5))[:, 0].tolist() == [Reason.NOT_DELIVERED] * 2


def test_raw_scores_become_states_and_what_is_laid_out_otherwise_is_refused() -> None:
    bank = bank_of("a", "b")
    raw = projections(bank, 1, 2)
    step = StepScores(ints(1, 1), ints(7, 7), raw, (0.0,), raw=True)
    found = bank.made(step)
    assert not found.raw
    np.testing.assert_array_equal(found.states, bank.states(raw, None))
    assert bank.made(found) is found
    for other in (
        step._replace(counts=ints(1)),
        step._replace(states=raw[:, :, :1]),
        step._replace(raw=False),
    ):
        with pytest.raises(ValueError, match=r"step scores of shape .* in epoch 0, .* expected"):
            bank.made(other)
    cosine = make_bank(make_probe("cosine", kind="steering", scoring="cosine", layers=(1,)))
    with pytest.raises(ValueError, match="raw"):
        cosine.made(StepScores(ints(1), ints(7), projections(cosine, 1), (0.0,), raw=True))
