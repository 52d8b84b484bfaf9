"""Which rows of a step belong to which request and position, and which are due to be delivered.

Pure functions, vectorised over the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from monitor.events import FloatArray, IntArray, StepView
from monitor.unscored import Reason, nan_for


def row_owners(counts: IntArray) -> tuple[IntArray, IntArray]:
    """For ``counts [R]`` consecutive rows each: the request of every row, and the row's offset in it."""
    if bool((counts == 1).all()):  # most steps only decode
        return np.arange(len(counts)), np.zeros(len(counts), np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, offset


@functools.lru_cache(maxsize=4096)
def ones(n: int) -> IntArray:
    """``[n]``, not to be written."""
    return _fixed(np.ones(n, np.int64))


@functools.lru_cache(maxsize=4096)
def upto(n: int) -> IntArray:
    """0 .. n - 1, not to be written."""
    return _fixed(np.arange(n))


def _fixed(array: IntArray) -> IntArray:
    array.flags.writeable = False
    return array


def slots_at(block_table: IntArray, block_size: int, owner: IntArray, positions: IntArray) -> IntArray:
    """KV slots of ``positions [n]`` of the requests ``owner [n]``; ``block_table [R, B]`` holds block ids."""
    block, offset = np.divmod(positions, block_size)
    slots: IntArray = block_table[owner, block] * np.int64(block_size) + offset
    return slots


def due(view: StepView, sampled: IntArray) -> tuple[IntArray, IntArray]:
    """What to deliver: ``(starts [R], counts [R])``, given how many tokens each request sampled.

    A request that samples ``s > 0`` tokens has had every known token fed, plus the ``s - 1`` drafts that
    were accepted; the last sampled token is not fed yet, and rejected drafts never count. What went out
    before is everything known but the last token, or nothing at all before the first output. So cached,
    chunked and recomputed prompt tokens are delivered once, with the first output.
    """
    first_output = view.known_tokens == view.prompt_tokens
    if not first_output.any():
        starts = view.known_tokens - 1
        return starts, np.where(sampled > 0, sampled, 0)
    starts = np.where(first_output, 0, view.known_tokens - 1)
    counts = np.where(sampled > 0, view.known_tokens + sampled - 1 - starts, 0)
    return starts, counts


def assemble(
    view: StepView,
    states: FloatArray,
    history: Mapping[int, FloatArray],
    starts: IntArray,
    counts: IntArray,
) -> FloatArray:
    """The due states ``[sum(counts), K]`` in row order.

    ``states [T, K]`` are the step's own; ``history[r]`` those of request ``r`` from before the step.
    """
    if len(states) == counts.sum() and bool(
        ((counts == np.diff(view.query_start_loc)) & (starts == view.first_position)).all()
    ):
        return states  # most steps only decode, or read whole prompts
    before = np.minimum(
        np.maximum(view.first_position - starts, 0), counts
    )  # due rows that the step did not compute
    own = counts - before
    owner, offset = row_owners(own)
    first_row = view.query_start_loc[:-1] + np.maximum(starts - view.first_position, 0)
    computed: FloatArray = states[first_row[owner] + offset]
    if not before.any():
        return computed
    pieces = []
    at = 0
    for r in range(len(counts)):
        if before[r]:
            pieces.append(history[r][starts[r] : starts[r] + before[r]])
        pieces.append(computed[at : at + own[r]])
        at += own[r]
    return np.concatenate(pieces)


def without(states: FloatArray, skipped: Sequence[bool], counts: IntArray) -> FloatArray:
    """The due states ``[sum(counts), K]`` without those of the requests ``skipped [R]``, which the store keeps."""
    rows = np.repeat(np.asarray(skipped, bool), counts)
    if not rows.any():
        return states
    found = states.copy()
    found[rows] = nan_for(Reason.SKIPPED)
    return found
