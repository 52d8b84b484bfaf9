"""Rows to requests and positions; and every fed token delivered exactly once, whatever the engine does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.events import FloatArray, StepView
from monitor.slices import assemble, due, row_owners, slots_at
from monitor.wire import pack, shares, unpack
from tests.unit.monitor_fake_engine import FakeEngine
from tests.unit.monitor_fake_server import FakeWorker
from tests.unit.monitor_fakes import ints


def one_request(first: int, rows: int, prompt: int, known: int) -> StepView:
    return StepView(
        request_ids=("a",),
        query_start_loc=ints(0, rows),
        first_position=ints(first),
        prompt_tokens=ints(prompt),
        known_tokens=ints(known),
        slots=np.arange(first, first + rows),
        history={},
    )


def test_row_owners_names_request_and_offset_of_every_row() -> None:
    owner, offset = row_owners(ints(2, 0, 3, 1))
    assert owner.tolist() == [0, 0, 2, 2, 2, 3]
    assert offset.tolist() == [0, 1, 0, 1, 2, 0]


def test_slots_follow_the_block_table_of_their_own_request() -> None:
    table: Any = np.array([[5, 2, 9], [7, 0, -1]], np.int32)
    owner, positions = ints(0, 0, 0, 1, 1), ints(0, 5, 11, 3, 4)
    assert slots_at(table, 4, owner, positions).tolist() == [20, 9, 39, 31, 0]


def test_slots_of_a_large_cache_do_not_wrap_at_32_bits() -> None:
    table: Any = np.array([[2**31 - 1]], np.int32)
    assert slots_at(table, 16, ints(0), ints(3)).tolist() == [(2**31 - 1) * 16 + 3]


@pytest.mark.parametrize(
    ("first", "rows", "prompt", "known", "sampled", "expected"),
    [
        (0, 5, 5, 5, 1, (0, 5)),  # a prompt in one piece
        (0, 3, 5, 5, 0, (0, 0)),  # a chunk that samples nothing
        (3, 2, 5, 5, 1, (0, 5)),  # its last chunk, or a prefix-cache hit of 3
        (5, 1, 5, 6, 1, (5, 1)),  # a decode step
        (5, 4, 5, 6, 3, (5, 3)),  # 3 drafts, 2 accepted
        (5, 4, 5, 6, 1, (5, 1)),  # 3 drafts, none accepted
        (0, 8, 5, 8, 1, (7, 1)),  # recomputed after a preemption: the rest went out before
        (4, 4, 5, 8, 1, (7, 1)),  # the same, last chunk
        (0, 5, 5, 8, 0, (7, 0)),  # the same, first chunk
        (0, 1, 1, 1, 1, (0, 1)),  # a prompt of one token
    ],
)
def test_due_of_one_request(
    first: int, rows: int, prompt: int, known: int, sampled: int, expected: tuple[int, int]
) -> None:
    starts, counts = due(one_request(first, rows, prompt, known), ints(sampled))
    assert counts.tolist() == [expected[1]]
    if expected[1]:
        assert starts.tolist() == [expected[0]]


def test_assemble_puts_history_before_the_rows_of_its_own_request() -> None:
    view = StepView(
        request_ids=("a", "b", "c"),
        query_start_loc=ints(0, 1, 3, 7),
        first_position=ints(4, 2, 0),
        prompt_tokens=ints(4, 4, 2),
        known_tokens=ints(5, 4, 4),
        slots=np.arange(7),
        history={1: ints(8, 9)},
    )
    states: FloatArray = np.arange(7, dtype=np.float32).reshape(7, 1)
    history: dict[int, FloatArray] = {1: np.array([[100], [101]], np.float32)}
    starts, counts = due(view, ints(1, 1, 1))
    assert assemble(view, states, history, starts, counts)[:, 0].tolist() == [0, 100, 101, 1, 2, 6]


def test_nothing_due_gives_no_rows() -> None:
    view = one_request(0, 3, 5, 5)
    starts, counts = due(view, ints(0))
    assert assemble(view, np.ones((3, 2), np.float32), {}, starts, counts).shape == (0, 2)


def watched(seed: int) -> FakeEngine:
    """Runs an engine to the end; fails unless every fed token of every request arrives once, in order."""
    engine = FakeEngine(seed)
    worker = FakeWorker(engine)
    for _ in range(6):
        engine.add()
    arrived: dict[str, list[FloatArray]] = {}
    for turn in range(400):
        if turn % 5 == 0 and turn < 40:
            engine.add()
        if turn % 17 == 16 and engine.running:
            engine.abort(engine.rng.choice(engine.running))
        step = engine.step()
        if step is None:
            if not engine.waiting and not engine.running and turn >= 40:
                break
            continue
        scores = worker.watch(step)
        message = unpack(pack(scores, np.arange(len(step.requests))))
        for request, ids, (start, states) in zip(step.requests, step.new_ids, shares(message), strict=True):
            pieces = arrived.setdefault(request.id, [])
            if not ids:
                assert not len(states), f"{request.id} is given states in a step without output"
                continue
            assert start == sum(map(len, pieces)), f"{request.id} is given position {start} out of turn"
            fed = len(request.tokens) - 1 - start
            assert len(states) >= fed
            pieces.append(states[:fed])
            np.testing.assert_array_equal(np.concatenate(pieces), request.fed(engine.columns))
    assert not engine.waiting
    assert not engine.running
    return engine


@given(st.integers(0, 2**32 - 1))
@example(0)
@settings(max_examples=80, deadline=None)
def test_every_fed_token_is_delivered_once_to_its_request(seed: int) -> None:
    assert watched(seed).finished


def test_the_engine_above_does_all_that_vllm_does() -> None:
    events: Counter[str] = Counter()
    for seed in range(25):
        events += watched(seed).events
    expected = {"hit", "copied", "chunk", "recomputed", "accepted", "rejected", "cut"}
    expected |= {"preempted_after_output", "preempted_before_output"}
    assert {name for name in expected if events[name] >= 5} == expected
