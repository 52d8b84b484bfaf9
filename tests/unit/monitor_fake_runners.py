"""What a step of ``FakeEngine`` looks like to the monitor: as vLLM's V1 model runner shows it, and as its V2 does.

Both reuse their arrays from step to step, as vLLM does: what is read too late is wrong.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from monitor.events import FloatArray

MOST_REQUESTS, MOST_ROWS, PADDING = 64, 64, 3
GROUP = 1
"""The KV-cache group whose slots the scores share; the other holds something else."""


def planted(tokens: Sequence[int], columns: int) -> FloatArray:
    """States ``[columns]`` of the last of ``tokens``: finite, exact in float32, one of 2**24 each."""
    digest = hashlib.blake2b(bytes(str(list(tokens)), "ascii"), digest_size=4 * columns).digest()
    return (np.frombuffer(digest, np.uint32) >> 8).astype(np.float32)


@dataclass(eq=False)
class FakeRequest:
    """A request inside ``FakeEngine``."""

    id: str
    prompt: list[int]
    wanted: int
    """Output tokens after which it ends."""
    outputs: list[int] = field(default_factory=list)
    """What the scheduler has heard of, and kept."""
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    """The scheduler's count of computed tokens: too high by the drafts that are rejected and not heard of yet."""
    ahead: int = 0
    """Output tokens, drafts included, that are scheduled and not heard of yet."""
    in_flight: int = 0
    """Steps of it that are not collected yet."""
    stale: int = 0
    """Those of them from before its last preemption."""
    dropped: int = 0
    """Those of them whose tokens vLLM throws away."""
    ended: bool = False
    tape: list[int] = field(default_factory=list)
    """The device's tokens: prompt and everything sampled."""
    position: int = 0
    """The device's count of computed tokens."""
    prefill: int = 0
    """Tokens that were handed over at admission or at resumption."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and outputs, as far as the scheduler knows."""
        return self.prompt + self.outputs

    def fed(self, columns: int) -> FloatArray:
        """The right answer: states of every accepted token but the last, ``[prompt + outputs - 1, columns]``."""
        tokens = self.tokens
        return np.stack([planted(tokens[: i + 1], columns) for i in range(len(tokens) - 1)])


@dataclass(frozen=True)
class Share:
    """What one request computes in a step."""

    request: FakeRequest
    first: int
    """The device's position of its first row."""
    rows: int
    """Rows that the device computes."""
    scheduled: int
    """Rows that the scheduler asked for; more only if the runner dropped drafts."""
    computed: int
    """The scheduler's count before the step."""
    drafts: list[int]
    """Drafts that the device verifies."""
    drafts_scheduled: int
    found: list[int]
    """Tokens that the device samples; none in a chunk before the last."""


@dataclass(eq=False)
class FakeStep:
    """One engine step as a worker and an API server would see it."""

    runner: Any
    """What the views read of vLLM's model runner."""
    shares: list[Share]
    """In row order."""
    states: FloatArray
    copies: list[tuple[int, int]]
    scheduled: int
    """Rows that the scheduler asked for."""
    new_ids: list[tuple[int, ...]] = field(default_factory=list)
    """Tokens that the scheduler kept of each request's (a stop may fall among accepted drafts, or have fallen before);
    known when the step is collected."""
    first_outputs: list[bool] = field(default_factory=list)
    admitted: frozenset[str] = frozenset()
    """Requests that come in this step, for the first time or after a preemption."""

    @property
    def requests(self) -> list[FakeRequest]:
        """In row order."""
        return [share.request for share in self.shares]

    @property
    def sampled_ids(self) -> list[list[int]]:
        """What the model runner returns."""
        return [list(share.found) for share in self.shares]


def slot_of(request: FakeRequest, position: int, block_size: int) -> int:
    """KV slot of a position."""
    return request.blocks[position // block_size] * block_size + position % block_size


class V1Runner:
    """The attributes that ``view_v1`` reads; everything is known on the host."""

    def __init__(self, rng: random.Random, block_size: int, slots: int) -> None:
        def blank(*shape: int) -> Any:
            return np.full(shape, 77, np.int32)

        tables = [
            SimpleNamespace(block_table=SimpleNamespace(np=blank(MOST_REQUESTS, slots)), block_size=size)
            for size in (3, block_size)
        ]
        self.lora_config = None
        self.query_start_loc = SimpleNamespace(np=blank(MOST_REQUESTS + 1))
        self.input_batch = SimpleNamespace(
            num_reqs=0,
            req_ids=[],
            block_table=tables,
            num_computed_tokens_cpu=blank(MOST_REQUESTS),
            num_prompt_tokens=blank(MOST_REQUESTS),
            num_tokens_no_spec=blank(MOST_REQUESTS),
        )

    def forward(self, shares: Sequence[Share]) -> None:
        """Prepares a step and runs the model."""
        batch, n = self.input_batch, len(shares)
        batch.num_reqs = n
        batch.req_ids = [share.request.id for share in shares]
        self.query_start_loc.np[: n + 1] = np.cumsum([0, *(share.rows for share in shares)])
        for row, share in enumerate(shares):
            request = share.request
            batch.block_table[GROUP].block_table.np[row, : len(request.blocks)] = request.blocks
            batch.num_computed_tokens_cpu[row] = share.computed
            batch.num_prompt_tokens[row] = len(request.prompt)
            batch.num_tokens_no_spec[row] = len(request.tape)

    def sample(self) -> None:
        """After it the arrays speak of the next step."""
        self.input_batch.num_tokens_no_spec += 1
        self.input_batch.block_table[GROUP].block_table.np[:] = 0
        self.query_start_loc.np[:] = 0

    def forget(self, request: FakeRequest) -> None:
        """Finished or preempted."""


class V2Runner:
    """The attributes that ``view_v2`` reads. The host knows an upper bound of what is computed; positions, slots and
    row boundaries are the device's. A request keeps its row of state from admission to its end or preemption."""

    def __init__(self, rng: random.Random, block_size: int, slots: int) -> None:
        def blank(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.full(shape, 77, dtype=dtype)

        self._rng = rng
        self._block_size = block_size
        self._free = rng.sample(range(MOST_REQUESTS), MOST_REQUESTS)
        self._rows: dict[str, int] = {}
        self._positions = blank(MOST_ROWS, dtype=torch.int64)
        self._starts = blank(MOST_REQUESTS + 1, dtype=torch.int32)
        self.lora_config = None
        self.req_states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.full(MOST_REQUESTS, 77, np.int32)))
        self.block_tables = SimpleNamespace(
            block_sizes=[3, block_size],
            slot_mappings=blank(2, MOST_ROWS, dtype=torch.int64),
            block_tables=[
                SimpleNamespace(gpu=blank(MOST_REQUESTS, slots, dtype=torch.int32)) for _ in range(2)
            ],
        )
        self.execute_model_state: Any = None

    def forward(self, shares: Sequence[Share]) -> None:
        """Prepares a step and runs the model."""
        rows = [self._row(share.request) for share in shares]
        total, n = sum(share.rows for share in shares), len(shares)
        self._starts[: n + 1] = torch.tensor(np.cumsum([0, *(share.rows for share in shares)]))
        self._starts[n + 1 :] = total
        positions: list[int] = []
        slots: list[int] = []
        for row, share in zip(rows, shares, strict=True):
            request = share.request
            self.req_states.prompt_len.np[row] = len(request.prompt)
            self.block_tables.block_tables[GROUP].gpu[row, : len(request.blocks)] = torch.tensor(
                request.blocks, dtype=torch.int32
            )
            own = range(share.first, share.first + share.rows)
            positions += own
            slots += [slot_of(request, position, self._block_size) for position in own]
        self._positions[:total] = torch.tensor(positions)
        self.block_tables.slot_mappings[GROUP, :total] = torch.tensor(slots)

        def of_all(attribute: str) -> Any:
            return np.array([getattr(share, attribute) for share in shares], np.int32)

        padding = self._rng.randint(0, PADDING)
        batch = SimpleNamespace(
            req_ids=[share.request.id for share in shares],
            num_reqs=n,
            num_tokens=total,
            num_tokens_after_padding=total,
            idx_mapping_np=np.array(rows, np.intp),
            num_scheduled_tokens=of_all("scheduled"),
            num_computed_tokens_np=of_all("computed"),
            prefill_len_np=np.array([share.request.prefill for share in shares], np.int32),
            query_start_loc=self._starts[: n + 1 + padding],
            positions=self._positions[: total + padding],
        )
        self.execute_model_state = SimpleNamespace(input_batch=batch)

    def sample(self) -> None:
        """After it the tensors speak of the next step."""
        self.execute_model_state = None
        self._positions += 1
        self._starts.zero_()
        self.block_tables.slot_mappings.zero_()
        self.block_tables.block_tables[GROUP].gpu.zero_()
        self.req_states.prompt_len.np[:] = 0

    def forget(self, request: FakeRequest) -> None:
        """Finished or preempted: its row of state is another's."""
        if request.id in self._rows:
            self._free.insert(0, self._rows.pop(request.id))

    def _row(self, request: FakeRequest) -> int:
        if request.id not in self._rows:
            self._rows[request.id] = self._free.pop(0)
        return self._rows[request.id]
