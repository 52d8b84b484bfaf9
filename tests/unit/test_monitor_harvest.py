"""Rows filed by conversation and position, however the engine cuts, repeats and orders its steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import CollectError
from monitor.events import StepView
from monitor.harvest import Harvest
from monitor.seam import keep

LAYERS, D = (1, 3), 2


def true_rows(number: int, positions: np.ndarray) -> torch.Tensor:
    """[L, n, D] what the model gives at these positions of a conversation."""
    base = torch.from_numpy(number * 100.0 + positions).float()
    return torch.stack([torch.stack([base, base + 0.25], dim=1) + 1000 * i for i in range(len(LAYERS))])


def view_of(shares: list[tuple[str, int, int]]) -> StepView:
    """A step of requests ``(name, first position, rows)``."""
    counts = np.array([rows for _, _, rows in shares])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    first = np.array([at for _, at, _ in shares], np.int64)
    zeros = np.zeros(len(shares), np.int64)
    return StepView(
        tuple(name for name, _, _ in shares),
        starts,
        first,
        zeros,
        zeros,
        np.zeros(int(counts.sum()), np.int64),
        {},
    )


def step(harvest: Harvest, shares: list[tuple[str, int, int]], numbers: dict[str, int]) -> None:
    computed = torch.cat(
        [true_rows(numbers.get(name, 77), np.arange(at, at + rows)) for name, at, rows in shares], dim=1
    )
    rows, places = harvest.locate(view_of(shares))
    harvest.put(places, computed[:, torch.from_numpy(rows)])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_every_row_is_filed_once_whatever_the_steps(lengths: list[tuple[int, int]], seed: int) -> None:
    """Conversations of ``length`` tokens, kept from ``first`` on: random chunks, preemption, a step too far."""
    chance = random.Random(seed)
    lengths = [(length, min(first, length - 1)) for length, first in lengths]
    harvest = Harvest(LAYERS, D, torch.float32)
    harvest.begin([f"c{i}" for i in range(len(lengths))], [length - first for length, first in lengths])
    numbers = {f"r{i}": i for i in range(len(lengths))}
    computed = dict.fromkeys(numbers, 0)
    for name, i in numbers.items():
        harvest.expect(name, i, lengths[i][1], lengths[i][0])
    while pending := [name for name, at in computed.items() if at <= lengths[numbers[name]][0]]:
        chosen = chance.sample(pending, chance.randint(1, len(pending)))
        shares = []
        for name in chosen:
            if chance.random() < 0.1:
                computed[name] = 0
            # The sampled token may be fed in a step past the end: it is nobody's row.
            rows = chance.randint(1, lengths[numbers[name]][0] + 1 - computed[name])
            shares.append((name, computed[name], rows))
            computed[name] += rows
        step(harvest, [*shares, ("stranger", 0, 2)], numbers)
    expected = [true_rows(i, np.arange(first, length)) for i, (length, first) in enumerate(lengths)]
    assert torch.equal(harvest.finish(), torch.cat(expected, dim=1))


@pytest.fixture
def harvest() -> Harvest:
    found = Harvest(LAYERS, D, torch.float32)
    found.begin(["one", "two"], [3, 2])
    found.expect("r0", 0, 0, 3)
    found.expect("r1", 1, 4, 6)
    return found


def test_a_missing_row_is_named(harvest: Harvest) -> None:
    step(harvest, [("r0", 0, 3), ("r1", 0, 5)], {"r0": 0, "r1": 1})
    with pytest.raises(CollectError, match=r"1 of 5 rows never came \(first: kept token 1 of 'two'\)"):
        harvest.finish()


def test_what_is_not_finite_is_named(harvest: Harvest) -> None:
    step(harvest, [("r0", 0, 3), ("r1", 0, 6)], {"r0": 0, "r1": 1})
    harvest.put(np.array([3]), torch.tensor([[[0.0, 1.0]], [[torch.inf, 0.0]]]))
    with pytest.raises(
        CollectError, match=r"after layer 3 in 1 rows \(first: kept token 0 of 'two'\).*bfloat16"
    ):
        harvest.finish()


def test_a_shard_knows_nothing_of_the_one_before(harvest: Harvest) -> None:
    harvest.begin(["three"], [1])
    rows, _ = harvest.locate(view_of([("r0", 0, 3)]))
    assert len(rows) == 0


def test_room_and_request_must_agree(harvest: Harvest) -> None:
    with pytest.raises(CollectError, match="5 rows asked of 'two', room for 2"):
        harvest.expect("r2", 1, 0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_was_not_written_is_seen_and_nan_is_not_taken_for_it(dtype: torch.dtype) -> None:
    kept = keep.KeptRows(2, 4, 3, dtype, torch.device("cpu"))
    kept.rows[0, :3] = torch.nan
    kept.rows[0, 1].view(torch.uint8).fill_(0xFF)  # as vectorised exponentials leave it
    assert kept.rows.isnan()[:, 3].all(), "unwritten rows are no numbers"
    kept.rows[1, :2] = 1.0
    assert kept.silent_layers(2) == []
    assert kept.silent_layers(3) == [1]
    assert kept.silent_layers(4) == [0, 1]
    kept.silence()
    assert kept.silent_layers(1) == [0, 1]
