"""Steps of the V1 runner that go on from the one before: read in short, and never taken for what they are not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from monitor.events import StepView
from monitor.seam import view_v1
from tests.unit.monitor_fake_runners import GROUP, FakeRequest, Share, V1Runner

BLOCK = 4


class Engine:
    """Two requests past their prompts, whose blocks are known from the start."""

    def __init__(self) -> None:
        self.runner = V1Runner(random.Random(0), BLOCK, 64)
        self.batches = view_v1.Batches(GROUP)
        self.requests = [
            FakeRequest("a", [0] * 5, 99, [1], [3, 9, 2, 7, 30, 31]),
            FakeRequest("b", [0] * 2, 99, [1], [4, 1, 8, 5, 32, 33]),
        ]

    def forward(self) -> None:
        """Every request computes its last token."""
        shares = []
        for request in self.requests:
            request.tape = request.tokens
            at = len(request.tape) - 1
            shares.append(Share(request, at, 1, 1, at, [], 0, found=[1]))
        self.runner.forward(shares)
        for request in self.requests:
            request.outputs.append(1)

    def seen(self, **scheduled: Any) -> StepView:
        usual = {
            "total_num_scheduled_tokens": len(self.requests),
            "scheduled_new_reqs": (),
            "scheduled_cached_reqs": SimpleNamespace(resumed_req_ids=()),
            "kv_cache_block_copies": None,
        }
        return self.batches.capture(self.runner, SimpleNamespace(**{**usual, **scheduled})).settle({})

    def expected(self) -> StepView:
        return whole(self.runner, GROUP)


whole = view_v1.step_view


def agree(found: StepView, expected: StepView) -> None:
    assert found.request_ids == expected.request_ids
    assert (found.decodes, found.rows) == (expected.decodes, expected.rows)
    for name in ("query_start_loc", "first_position", "prompt_tokens", "known_tokens", "slots"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


@pytest.fixture
def read_whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each step that was read as a whole."""
    noted: list[int] = []

    def noting(runner: Any, group: int) -> StepView:
        view = whole(runner, group)
        noted.append(view.rows)
        return view

    monkeypatch.setattr(view_v1, "step_view", noting)
    return noted


def test_a_step_that_goes_on_is_read_in_short_until_a_request_comes_to_another_block(
    read_whole: list[int],
) -> None:
    engine = Engine()
    kept = []
    for _ in range(12):
        engine.forward()
        view, expected = engine.seen(), engine.expected()
        agree(view, expected)
        kept.append((view, expected))
        engine.runner.sample()
    for view, expected in kept:  # nothing in them is the runner's own
        agree(view, expected)
    # Positions 5 and 2 at first: a comes to another block with 8, 12 and 16, b with 4, 8 and 12.
    assert len(read_whole) == 1 + 3 + 3


@pytest.mark.parametrize(
    "scheduled",
    [
        {"scheduled_new_reqs": (object(),)},
        {"scheduled_cached_reqs": SimpleNamespace(resumed_req_ids={"b"})},
        {"kv_cache_block_copies": [(1, 2)]},
    ],
)
def test_blocks_that_may_be_others_are_looked_up(scheduled: dict[str, Any], read_whole: list[int]) -> None:
    engine = Engine()
    engine.requests[0].outputs += [1, 1, 1]  # position 8, and the other at 2: one step without another block
    engine.forward()
    engine.seen()
    engine.requests[1].blocks[0] = 50
    engine.forward()
    agree(engine.seen(**scheduled), engine.expected())
    assert read_whole == [2, 2]


@pytest.mark.parametrize("missed", [[0], [1], [0, 1]])
def test_after_a_step_that_was_missed_everything_is_looked_up(
    missed: list[int], read_whole: list[int]
) -> None:
    engine = Engine()
    engine.requests[0].outputs += [1, 1, 1]
    engine.forward()
    engine.seen()
    for index in missed:
        engine.requests[index].outputs += [1]
    engine.forward()
    agree(engine.seen(), engine.expected())
    assert read_whole == [2, 2]


def test_another_order_and_other_requests_are_looked_up(read_whole: list[int]) -> None:
    engine = Engine()
    engine.requests[0].outputs += [1, 1, 1]
    engine.forward()
    engine.seen()
    engine.requests.reverse()
    engine.forward()
    agree(engine.seen(), engine.expected())
    engine.requests.pop()
    engine.forward()
    agree(engine.seen(), engine.expected())
    assert read_whole == [2, 2, 1]


def test_a_prompt_that_ends_with_one_row_is_no_decoding() -> None:
    engine = Engine()
    engine.requests[1].outputs.clear()
    engine.forward()
    view = engine.seen()
    assert not view.decodes
    agree(view, engine.expected())
