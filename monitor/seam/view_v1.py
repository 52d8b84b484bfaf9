"""The V1 model runner's batch as a ``StepView``. Read after the forward pass, when the order is settled."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.events import IntArray, StepRows, StepView
from monitor.seam.capture import Capture, adapters_of
from monitor.slices import row_owners, slots_at, upto


def step_rows(runner: Any, prepared: Any) -> StepRows:
    """The rows of a step that is prepared."""
    batch = runner.input_batch
    n = batch.num_reqs
    return StepRows(
        batch.req_ids[:n],
        runner.query_start_loc.np[: n + 1].astype(np.int64),
        batch.num_computed_tokens_cpu[:n].astype(np.int64),
        batch.num_prompt_tokens[:n].astype(np.int64),
    )


def capture(runner: Any, group: int) -> Capture:
    """Everything is on the host already. ``group``: the KV-cache group whose slots index the score store."""
    view = step_view(runner, group)
    return Capture(view.rows, {}, lambda _: view)


class Batches:
    """The steps of one runner. Most only decode, and go on from the step before: then little has to be looked up, and
    every NumPy function that is not called counts, for after a forward pass none is in the processor's caches."""

    def __init__(self, group: int) -> None:
        """``group``: the KV-cache group whose slots index the score store."""
        self._group = group
        self._last: StepView | None = None
        """That only decoded."""
        self._ids: list[str] = []
        self._ahead: IntArray = np.zeros(0, np.int64)
        """[R] how far each request's slots lie beyond its positions, in the block it is in"""
        self._left = 0
        """Steps until some request comes to another block."""
        self._reached = 0
        """Sum of the positions."""

    def capture(self, runner: Any, scheduled: Any) -> Capture:
        """As the function. ``scheduled``: the scheduler's output of the step."""
        view = self._next(runner, scheduled)
        if view is None:
            view = step_view(runner, self._group)
            self._remember(view, runner)
        return Capture(view.rows, {}, lambda _: view)

    def _next(self, runner: Any, scheduled: Any) -> StepView | None:
        """The step, if it decodes the next token of the same requests in the same blocks as the step before."""
        last, batch = self._last, runner.input_batch
        if last is None or not self._left:
            return None
        n = len(self._ids)
        if (
            batch.num_reqs != n
            or scheduled.total_num_scheduled_tokens != n
            or scheduled.scheduled_new_reqs
            or scheduled.scheduled_cached_reqs.resumed_req_ids
            or scheduled.kv_cache_block_copies
            or batch.req_ids[:n] != self._ids
        ):
            return None
        first = batch.num_computed_tokens_cpu[:n].astype(np.int64)
        # None of them can stand still or go back, so the sum tells whether a step was missed here.
        reached = int(np.add.reduce(first))
        if reached != self._reached + n:
            return None
        self._left, self._reached = self._left - 1, reached
        return StepView(
            request_ids=last.request_ids,
            query_start_loc=last.query_start_loc,
            first_position=first,
            prompt_tokens=last.prompt_tokens,
            known_tokens=first + 1,
            slots=first + self._ahead,
            history={},
            decodes=True,
        )

    def _remember(self, view: StepView, runner: Any) -> None:
        self._last = None
        goes_on = view.decodes and bool((view.known_tokens == view.first_position + 1).all())
        if goes_on and view.adapters is None:
            block_size = int(runner.input_batch.block_table[self._group].block_size)
            self._last, self._ids = view, list(view.request_ids)
            self._ahead, self._reached = view.slots - view.first_position, int(view.first_position.sum())
            self._left = block_size - 1 - int((view.first_position % block_size).max())


def step_view(runner: Any, group: int) -> StepView:
    """Copies what the bookkeeping needs; the runner reuses its arrays in the next step."""
    batch = runner.input_batch
    n = batch.num_reqs
    table = batch.block_table[group]
    blocks, block_size = table.block_table.np, int(table.block_size)
    first = batch.num_computed_tokens_cpu[:n].astype(np.int64)
    prompt = batch.num_prompt_tokens[:n].astype(np.int64)
    known = batch.num_tokens_no_spec[:n].astype(np.int64)
    single = int(runner.query_start_loc.np[n]) == n
    if single:
        starts = upto(n + 1)
        counts, owner, positions = 1, starts[:n], first
    else:
        starts = runner.query_start_loc.np[: n + 1].astype(np.int64)
        counts = starts[1:] - starts[:-1]
        owner, offset = row_owners(counts)
        positions = first[owner] + offset
    completing = known == prompt
    decodes = single and not completing.any()
    if completing.any():
        completing &= (first > 0) & (first + counts >= known)
        complete = np.flatnonzero(completing).tolist()
    else:
        complete = []
    adapters = None
    if runner.lora_config is not None:
        adapters = adapters_of(batch.lora_id_to_lora_request, batch.request_lora_mapping[:n])
    return StepView(
        request_ids=tuple(batch.req_ids[:n]),
        query_start_loc=starts,
        first_position=first,
        prompt_tokens=prompt,
        known_tokens=known,
        slots=slots_at(blocks, block_size, owner, positions),
        history={
            r: slots_at(blocks, block_size, np.full(first[r], r), np.arange(first[r])) for r in complete
        },
        adapters=adapters,
        decodes=decodes,
    )
