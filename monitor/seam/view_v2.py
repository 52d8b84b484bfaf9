"""The V2 model runner's batch as a ``StepView``.

Positions, slots and row boundaries live on the device there (accepted drafts, asynchronous scheduling), so they are
transferred with the scores; the host keeps only an upper bound of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from monitor.errors import TapError
from monitor.events import StepRows, StepView
from monitor.seam.capture import Capture, adapters_of
from monitor.seam.transfer import Arrays
from monitor.slices import slots_at


def step_rows(runner: Any, prepared: Any) -> StepRows:
    """The rows of a step that is prepared, ``prepared`` being the runner's ``InputBatch``.

    Where drafts may be rejected, positions of generated rows are upper bounds."""
    n = int(prepared.num_reqs)
    starts = np.concatenate([[0], np.cumsum(prepared.num_scheduled_tokens[:n])]).astype(np.int64)
    if int(starts[-1]) != int(prepared.num_tokens):
        raise TapError(
            f"{int(starts[-1])} rows were scheduled, the step has {int(prepared.num_tokens)}; nothing is steered in it"
        )
    return StepRows(
        prepared.req_ids[:n],
        starts,
        prepared.num_computed_tokens_np[:n].astype(np.int64),
        runner.req_states.prompt_len.np[prepared.idx_mapping_np[:n]].astype(np.int64),
    )


def capture(runner: Any, group: int) -> Capture:
    """``group``: the KV-cache group whose slots index the score store."""
    batch = runner.execute_model_state.input_batch
    n, rows = int(batch.num_reqs), int(batch.num_tokens)
    state_rows = batch.idx_mapping_np[:n]
    tables = runner.block_tables
    # vLLM makes these arrays anew for every step.
    prompt = runner.req_states.prompt_len.np[state_rows].astype(np.int64)
    # The prompt, and after a preemption the outputs so far as well.
    prefill = batch.prefill_len_np[:n]
    # Exact while a prompt is read; later an upper bound, because drafts may be rejected.
    computed = batch.num_computed_tokens_np[:n]
    device = {
        "starts": batch.query_start_loc[: n + 1],
        "positions": batch.positions[:rows],
        "slots": tables.slot_mappings[group, :rows],
    }
    block_size = int(tables.block_sizes[group])
    completing = np.flatnonzero((computed < prefill) & (computed > 0))
    if len(completing):
        scheduled = batch.num_scheduled_tokens[:n]
        completing = completing[((prefill == prompt) & (computed + scheduled >= prefill))[completing]]
    if len(completing):
        width = -(-int(computed[completing].max()) // block_size)
        table = tables.block_tables[group].gpu
        picked = torch.from_numpy(state_rows[completing].astype(np.int64)).to(table.device, non_blocking=True)
        device["blocks"] = table[picked, :width]
    request_ids = tuple(batch.req_ids[:n])
    adapters = None
    if runner.lora_config is not None:
        by_id = {request.lora_int_id: request for request in runner.lora_state.lora_requests.values()}
        adapters = adapters_of(by_id, runner.lora_state.lora_ids[state_rows])

    def settle(arrays: Arrays) -> StepView:
        starts = arrays["starts"].astype(np.int64)
        first = arrays["positions"].astype(np.int64)[starts[:-1]]
        return StepView(
            request_ids=request_ids,
            query_start_loc=starts,
            first_position=first,
            prompt_tokens=prompt,
            known_tokens=np.where(first >= prefill, first + 1, prefill),
            slots=arrays["slots"],
            history={
                int(r): slots_at(
                    arrays["blocks"], block_size, np.full(computed[r], i), np.arange(computed[r])
                )
                for i, r in enumerate(completing)
            },
            adapters=adapters,
        )

    return Capture(rows, device, settle, int(batch.num_tokens_after_padding))
