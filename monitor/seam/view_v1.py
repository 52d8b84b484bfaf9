"""The V1 model runner's batch as a ``StepView``. Read after the forward pass, when the order is settled."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.events import StepRows, StepView
from monitor.filing import Decoding
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
    what NumPy has to do is left until the step is taken apart, for after a forward pass no cache holds it."""

    def __init__(self, group: int) -> None:
        """``group``: the KV-cache group whose slots index the score store."""
        self._group = group
        self._whole: StepView | None = None
        """The last step that was read whole; None unless it only decoded."""
        self._ids: list[str] = []
        self._positions: list[int] = []
        """[R] of that step"""
        self._steps = 0
        """Since then."""
        self._left = 0
        """Steps until some request comes to another block."""

    def capture(self, runner: Any, scheduled: Any) -> Capture:
        """As the function. ``scheduled``: the scheduler's output of the step."""
        whole = self._whole
        if whole is not None and self._goes_on(runner.input_batch, scheduled):
            self._left, self._steps = self._left - 1, self._steps + 1
            later = Decoding(whole, self._steps)
            return Capture(len(self._ids), {}, lambda _: later.view_now(), decoding=later)
        view = step_view(runner, self._group)
        self._remember(view, runner)
        decoding = None if self._whole is None else Decoding(view, 0)
        return Capture(view.rows, {}, lambda _: view, decoding=decoding)

    def _goes_on(self, batch: Any, scheduled: Any) -> bool:
        """Whether the step decodes the next token of the same requests in the same blocks as the one before."""
        n = len(self._ids)
        if (
            not self._left
            or batch.num_reqs != n
            or scheduled.total_num_scheduled_tokens != n
            or scheduled.scheduled_new_reqs
            or scheduled.scheduled_cached_reqs.resumed_req_ids
            or scheduled.kv_cache_block_copies
            or batch.req_ids[:n] != self._ids
        ):
            return False
        further = self._steps + 1
        reached: list[int] = batch.num_computed_tokens_cpu[:n].tolist()
        return reached == [position + further for position in self._positions]

    def _remember(self, view: StepView, runner: Any) -> None:
        self._whole = None
        goes_on = view.decodes and bool((view.known_tokens == view.first_position + 1).all())
        if goes_on and view.adapters is None:
            block_size = int(runner.input_batch.block_table[self._group].block_size)
            self._whole, self._ids = view, list(view.request_ids)
            self._positions, self._steps = view.first_position.tolist(), 0
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
