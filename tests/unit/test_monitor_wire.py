"""Step scores as plain bytes: what is packed for some requests is what is unpacked, in that order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.events import StepScores
from monitor.unscored import Reason, nan_for, reasons
from monitor.wire import VERSION, joined, pack, shares, unpack
from tests.unit.monitor_fakes import ints


def step_of(*counts: int, columns: int = 2) -> StepScores:
    """Every request's states tell whose they are: request index in the hundreds, then a running number."""
    rows = [[100 * r + i + c / 8 for c in range(columns)] for r, n in enumerate(counts) for i in range(n)]
    states = np.array(rows, np.float32).reshape(sum(counts), columns)
    return StepScores(ints(*counts), ints(*(7 * r for r in range(len(counts)))), states, (0.25,), errors=3)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 3), st.randoms(use_true_random=False)
)
@settings(max_examples=80, deadline=None)
def test_any_share_of_a_step_comes_back_in_the_order_asked_for(
    counts: list[int], columns: int, rng: object
) -> None:
    step = step_of(*counts, columns=columns)
    order = list(range(len(counts)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    chosen = order[: rng.randint(1, len(order))]  # type: ignore[attr-defined]
    found = unpack(pack(step, ints(*chosen)))
    assert (found.host_seconds, found.errors) == ((0.25,), 3)
    whole = list(shares(step))
    for row, (start, states) in zip(chosen, shares(found), strict=True):
        assert start == 7 * row
        np.testing.assert_array_equal(states, whole[row][1])
        assert len(states) == counts[row]


def test_reasons_survive_the_wire() -> None:
    states = np.array([[1.0], [nan_for(Reason.BEFORE_ATTACH)], [nan_for(Reason.TAP_SILENT)]], np.float32)
    found = unpack(pack(StepScores(ints(1, 2), ints(0, 4), states, (0.0,)), ints(1, 0)))
    assert reasons(found.states)[:, 0].tolist() == [Reason.BEFORE_ATTACH, Reason.TAP_SILENT, -1]


def test_a_message_is_plain_bytes_and_numbers() -> None:
    message = pack(step_of(2, 1), ints(1))
    assert (message.pop("steered"), message.pop("host_seconds"), message.pop("shape")) == ({}, [0.25], [1, 2])
    assert {type(entry) for entry in message.values()} <= {bytes, int, float}
    assert not any(
        bytes(entry).startswith(pickle.PROTO) for entry in message.values() if isinstance(entry, bytes)
    )


def test_another_version_is_refused_in_one_line() -> None:
    message = {**pack(step_of(1), ints(0)), "version": VERSION + 1}
    with pytest.raises(ValueError, match=rf"^[^\n]*version {VERSION + 1}, expected {VERSION}[^\n]*$"):
        unpack(message)


def raw_step(at: int, requests: int = 3) -> StepScores:
    """Projections of 2 layers and 4 columns that tell whose they are, of the token at position ``at``."""
    numbers = np.arange(2 * requests * 4, dtype=np.float32).reshape(2, requests, 4) + 1000 * at
    return StepScores(np.ones(requests, np.int64), np.full(requests, at), numbers, (0.25,), raw=True)


def test_raw_projections_of_any_requests_come_back() -> None:
    found = unpack(pack(raw_step(5), ints(2, 0)))
    assert found.raw
    np.testing.assert_array_equal(found.states, raw_step(5).states[:, [2, 0]])


def test_raw_steps_that_go_on_are_joined_token_after_token_of_each_request() -> None:
    found = joined([pack(raw_step(at), range(3)) for at in (5, 6)])
    assert found is not None
    assert (found.raw, found.counts.tolist(), found.starts.tolist()) == (True, [2, 2, 2], [5, 5, 5])
    for request in range(3):
        for step in range(2):
            np.testing.assert_array_equal(
                found.states[:, 2 * request + step], raw_step(5 + step).states[:, request]
            )


@pytest.mark.parametrize("part", ["counts", "starts", "states"])
@pytest.mark.parametrize("step", [step_of(2, 1), raw_step(5, requests=2)])
def test_a_shortened_message_is_refused(part: str, step: StepScores) -> None:
    message = pack(step, ints(0, 1))
    message[part] = message[part][:-8]
    with pytest.raises(ValueError):
        unpack(message)


def test_steps_that_go_on_are_joined_to_one_that_delivers_as_much() -> None:
    steps = [
        StepScores(
            ints(1, 1, 1),
            ints(4 + at, 9 + at, at),
            np.arange(6, dtype=np.float32).reshape(3, 2) + 100 * at,
            (at / 8,),
            errors=at,
            steered={"calm": 2, **({"late": 1} if at == 3 else {})},
        )
        for at in range(4)
    ]
    found = joined([pack(step, ints(0, 1, 2)) for step in steps])
    assert found is not None
    assert (found.counts.tolist(), found.errors) == ([4, 4, 4], 6)
    assert found.host_seconds == (0, 0.125, 0.25, 0.375)
    assert found.steered == {"calm": 8, "late": 1}
    apart = [list(shares(step)) for step in steps]
    for row, (start, states) in enumerate(shares(found)):
        assert start == apart[0][row][0]
        np.testing.assert_array_equal(states, np.concatenate([step[row][1] for step in apart]))


@pytest.mark.parametrize(
    "other",
    [
        StepScores(ints(1, 1), ints(3, 4), np.zeros((1, 2, 1), np.float32), (0.0,), raw=True),
        StepScores(ints(1, 1), ints(5, 6), np.zeros((2, 1), np.float32), (0.0,)),  # a gap
        StepScores(ints(2, 0), ints(3, 4), np.zeros((2, 1), np.float32), (0.0,)),
        StepScores(ints(1), ints(3), np.zeros((1, 1), np.float32), (0.0,)),
        StepScores(ints(1, 1), ints(3, 4), np.zeros((2, 1), np.float32), (0.0,), epoch=1),
        StepScores(ints(1, 1), ints(3, 4), np.zeros((2, 2), np.float32), (0.0,)),
    ],
)
def test_what_does_not_go_on_is_not_joined(other: StepScores) -> None:
    first = StepScores(ints(1, 1), ints(2, 3), np.zeros((2, 1), np.float32), (0.0,))
    assert joined([pack(first, ints(0, 1)), pack(other, range(len(other.counts)))]) is None
