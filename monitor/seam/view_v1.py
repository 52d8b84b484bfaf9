"""The V1 model runner's batch as a ``StepView``. Read after the forward pass, when the order is settled."""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.errors import CompatibilityError
from monitor.events import StepView
from monitor.slices import row_owners, slots_at


def step_view(runner: Any, group: int) -> StepView:
    """Copies what the bookkeeping needs; the runner reuses its arrays in the next step.

    ``group`` is the KV-cache group whose slots index the score store.
    """
    batch = runner.input_batch
    n = batch.num_reqs
    table = batch.block_table[group]
    blocks, block_size = table.block_table.np, int(table.block_size)
    starts = runner.query_start_loc.np[: n + 1].astype(np.int64)
    first = batch.num_computed_tokens_cpu[:n].astype(np.int64)
    prompt = batch.num_prompt_tokens[:n].astype(np.int64)
    known = batch.num_tokens_no_spec[:n].astype(np.int64)
    counts = np.diff(starts)
    owner, offset = row_owners(counts)
    completing = (known == prompt) & (first > 0) & (first + counts >= known)
    return StepView(
        request_ids=tuple(batch.req_ids[:n]),
        query_start_loc=starts,
        first_position=first,
        prompt_tokens=prompt,
        known_tokens=known,
        slots=slots_at(blocks, block_size, owner, first[owner] + offset),
        history={
            int(r): slots_at(blocks, block_size, np.full(first[r], r), np.arange(first[r]))
            for r in np.flatnonzero(completing)
        },
    )


def full_attention_group(kv_cache_config: Any) -> int:
    """Index of a KV-cache group that keeps every token of a sequence: its slots can hold scores."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        # A sliding window frees the slots of old tokens while the request still runs.
        if isinstance(spec, FullAttentionSpec) and not getattr(spec, "sliding_window", None):
            return index
    raise CompatibilityError(
        "no KV-cache group of this model keeps every token (sliding-window or state-space layers only); "
        "the score store needs one full-attention group"
    )
