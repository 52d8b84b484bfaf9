"""The V1 model runner's batch as a ``StepView``. Read after the forward pass, when the order is settled."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from monitor.events import IntArray, StepRows, StepView
from monitor.seam.capture import Capture, adapters_of
from monitor.slices import row_owners, slots_at


def capture(runner: Any, group: int) -> Capture:
    """Everything is on the host already. ``group``: the KV-cache group whose slots index the score store."""
    view = step_view(runner, group)
    return Capture(view.rows, {}, lambda _: view)


@functools.lru_cache(maxsize=4096)
def _upto(n: int) -> IntArray:
    """0 .. n - 1, not to be written."""
    found = np.arange(n)
    found.flags.writeable = False
    return found


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


def step_view(runner: Any, group: int) -> StepView:
    """Copies what the bookkeeping needs; the runner reuses its arrays in the next step."""
    batch = runner.input_batch
    n = batch.num_reqs
    table = batch.block_table[group]
    blocks, block_size = table.block_table.np, int(table.block_size)
    first = batch.num_computed_tokens_cpu[:n].astype(np.int64)
    prompt = batch.num_prompt_tokens[:n].astype(np.int64)
    known = batch.num_tokens_no_spec[:n].astype(np.int64)
    if int(runner.query_start_loc.np[n]) == n:  # most steps only decode, and every operation of theirs counts
        starts = _upto(n + 1)
        counts, owner, positions = 1, starts[:n], first
    else:
        starts = runner.query_start_loc.np[: n + 1].astype(np.int64)
        counts = starts[1:] - starts[:-1]
        owner, offset = row_owners(counts)
        positions = first[owner] + offset
    completing = known == prompt
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
    )
