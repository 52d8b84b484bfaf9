"""What the tests of monitor/ share: probes without files, a readable registry, and an engine to be watched.

``FakeEngine`` is vLLM's scheduling without a model: a paged KV cache with prefix sharing and copy-on-write,
chunked prefill, drafts, preemption with recompute, batches in changing order. A token's states are a hash of
all tokens up to it, so a score that reaches the wrong request or position is seen.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from monitor.bank import ProbeBank
from monitor.events import FloatArray, IntArray, StepScores
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from monitor.seam.view_v1 import step_view
from monitor.slices import assemble, due
from monitor.store import ScoreStore
from probes import Probe
from probes.artifact import split_golden
from probes.testing import fake_manifest, fake_tensors

torch.set_num_threads(1)

MODEL = "model"
BENIGN = {"probabilities": tuple(i / 10 for i in range(11)), "values": tuple(float(i) for i in range(11))}
"""Benign statistics spread evenly over 0 .. 10; their interquartile range is 5."""


def make_probe(name: str = "fake", seed: int = 0, **changes: object) -> Probe:
    """A probe with random tensors and ``changes`` to its manifest, never written to a file."""
    manifest = fake_manifest(name=name, **changes)
    tensors, inputs, scores = split_golden(fake_tensors(manifest, seed))
    return Probe(manifest, tensors, inputs, scores)


def alerting(name: str = "lie", threshold: float = 0.0, **changes: object) -> Probe:
    """A probe that alerts; every token counts, and its statistic is the highest token score."""
    fields: dict[str, Any] = {
        "token_mask": {"prompt": "all", "skip_positions": ()},
        "aggregation": {"method": "max"},
        "threshold": threshold,
        "default_action": "alert",
    }
    return make_probe(name, **{**fields, **changes})


def make_bank(*probes: Probe, capacity: int = 1) -> ProbeBank:
    """The probes on exactly the layers they read."""
    layers = sorted({layer for probe in probes for layer in probe.manifest.layers})
    d_model = probes[0].manifest.d_model if probes else 4
    return ProbeBank(probes, layers, d_model, capacity)


def make_frontend(*probes: Probe, recent: int = 1024) -> tuple[Frontend, CollectorRegistry]:
    """A frontend that counts into a registry of its own; every probe takes its manifest's action."""
    registry = CollectorRegistry()
    metrics = Metrics(MODEL, "0", registry)
    actions = {probe.manifest.name: probe.manifest.default_action for probe in probes}
    return Frontend(make_bank(*probes), actions, metrics, MODEL, RecentRecords(recent)), registry


def value(registry: CollectorRegistry, sample: str, **labels: str) -> float | None:
    """One sample as a scrape would show it; None if the child does not exist."""
    return registry.get_sample_value(sample, {"model_name": MODEL, "engine": "0", **labels})


def summed(registry: CollectorRegistry, sample: str, **labels: str) -> float:
    """The sum of all samples of that name that carry ``labels``."""
    return sum(
        found.value
        for family in registry.collect()
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


def column(*scores: float | np.float32) -> FloatArray:
    """States ``[T, 1]``; keeps the payload of a NaN."""
    return np.array([np.float32(score) for score in scores], np.float32).reshape(-1, 1)


def planted(tokens: Sequence[int], columns: int) -> FloatArray:
    """States ``[columns]`` of the last of ``tokens``: finite, exact in float32, one of 2**24 each."""
    digest = hashlib.blake2b(bytes(str(list(tokens)), "ascii"), digest_size=4 * columns).digest()
    return (np.frombuffer(digest, np.uint32) >> 8).astype(np.float32)


@dataclass
class FakeRequest:
    """A request inside ``FakeEngine``."""

    id: str
    prompt: list[int]
    wanted: int
    """Output tokens after which it ends."""
    outputs: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    @property
    def tokens(self) -> list[int]:
        """Prompt and outputs."""
        return self.prompt + self.outputs

    def fed(self, columns: int) -> FloatArray:
        """The right answer: states of every accepted token but the last, ``[prompt + outputs - 1, columns]``."""
        tokens = self.tokens
        return np.stack([planted(tokens[: i + 1], columns) for i in range(len(tokens) - 1)])


@dataclass
class FakeStep:
    """One engine step as a worker and an API server would see it."""

    runner: Any
    """What ``step_view`` reads of vLLM's V1 model runner."""
    requests: list[FakeRequest]
    """In row order."""
    states: FloatArray
    sampled: list[int]
    """Tokens that the model sampled for each request."""
    new_ids: list[tuple[int, ...]]
    """Those of them that the scheduler kept (a stop may fall among accepted drafts)."""
    copies: list[tuple[int, int]]
    first_outputs: list[bool]


class FakeEngine:
    """Random but honest scheduling of requests over a small paged cache."""

    def __init__(self, seed: int, columns: int = 2) -> None:
        self.rng = random.Random(seed)
        self.columns = columns
        self.block_size = self.rng.choice([1, 2, 4])
        self.num_blocks = 40 // self.block_size
        self.max_drafts = self.rng.choice([0, 0, 2, 4])
        self.sharing = self.rng.random() < 0.8
        self.waiting: list[FakeRequest] = []
        self.running: list[FakeRequest] = []
        self.finished: list[FakeRequest] = []
        self.events: Counter[str] = Counter()
        self._free = list(range(self.num_blocks))
        self._users: Counter[int] = Counter()
        self._cached: dict[tuple[int, ...], int] = {}
        self._stems = [[self.rng.randrange(3) for _ in range(12)] for _ in range(2)]
        self._added = 0

    def add(self) -> FakeRequest:
        """A new request; its prompt often shares a stem with others."""
        stem = self.rng.choice(self._stems)[: self.rng.randint(0, 12)]
        tail = [self.rng.randrange(3) for _ in range(self.rng.randint(1, 8))]
        request = FakeRequest(f"r{self._added}", stem + tail, self.rng.randint(1, 10))
        self._added += 1
        self.waiting.append(request)
        return request

    def abort(self, request: FakeRequest) -> None:
        """A client went away."""
        (self.running if request in self.running else self.waiting).remove(request)
        self._release(request)

    def step(self) -> FakeStep | None:
        """Schedules, computes and samples once; None if nothing fits."""
        budget = self.rng.randint(1, 16)
        copies: list[tuple[int, int]] = []
        complete = dict(self._cached)  # blocks whose tokens were computed in earlier steps
        batch: list[tuple[FakeRequest, list[int], int]] = []
        self.rng.shuffle(self.running)
        for request in [*self.running, *self.waiting]:
            # Requests admitted in this step still wait in the list; a preempted one waits its turn.
            if request in self.running or self.rng.random() < 0.7:
                share = self._schedule(request, budget, complete, copies, [entry[0] for entry in batch])
                if share is not None:
                    batch.append(share)
                    budget -= share[2]
            if not budget:
                break
        self.rng.shuffle(batch)
        return self._run(batch, copies) if batch else None

    def _schedule(
        self,
        request: FakeRequest,
        budget: int,
        complete: Mapping[tuple[int, ...], int],
        copies: list[tuple[int, int]],
        scheduled: Sequence[FakeRequest],
    ) -> tuple[FakeRequest, list[int], int] | None:
        if request not in self.running and not request.blocks:
            self._reuse(request, complete, copies)
        known = len(request.tokens)
        drafts: list[int] = []
        if request.computed == known - 1 and request.outputs:
            drafts = [self.rng.randrange(3) for _ in range(self.rng.randint(0, self.max_drafts))]
        rows = min(known - request.computed + len(drafts), budget)
        drafts = drafts[: max(0, request.computed + rows - known)]
        while not self._allocate(request, request.computed + rows):
            victims = [r for r in self.running if r is not request and r not in scheduled]
            if not victims:
                if request not in self.running:
                    self._release(request)
                return None
            self._preempt(self.rng.choice(victims))
        if request in self.waiting:
            self.waiting.remove(request)
            self.running.append(request)
        self._cache(request, min(request.computed + rows, known))
        return request, drafts, rows

    def _reuse(
        self, request: FakeRequest, complete: Mapping[tuple[int, ...], int], copies: list[tuple[int, int]]
    ) -> None:
        """Prefix-cache hits: whole blocks (also of this very step), then a part of one by copy-on-write."""
        if not self.sharing:
            return
        tokens, size = request.tokens, self.block_size
        while (end := len(request.blocks) * size + size) < len(tokens) and tuple(
            tokens[:end]
        ) in self._cached:
            self._take(request, self._cached[tuple(tokens[:end])])
            self.events["hit"] += 1
        request.computed = start = len(request.blocks) * size
        for part in range(min(size - 1, len(tokens) - 1 - start), 0, -1):
            for key, source in complete.items():
                same = len(key) == start + size and key[: start + part] == tuple(tokens[: start + part])
                if same and self._cached.get(key) == source and self._allocate(request, start + 1):
                    copies.append((source, request.blocks[-1]))
                    request.computed = start + part
                    self.events["copied"] += 1
                    return

    def _take(self, request: FakeRequest, block: int) -> None:
        if block in self._free:
            self._free.remove(block)
        self._users[block] += 1
        request.blocks.append(block)

    def _allocate(self, request: FakeRequest, tokens: int) -> bool:
        while len(request.blocks) * self.block_size < tokens:
            if not self._free:
                return False
            block = self._free[0]
            self._cached = {key: held for key, held in self._cached.items() if held != block}
            self._take(request, block)
        return True

    def _cache(self, request: FakeRequest, tokens: int) -> None:
        if self.sharing:
            for index in range(tokens // self.block_size):
                key = tuple(request.tokens[: (index + 1) * self.block_size])
                self._cached.setdefault(key, request.blocks[index])

    def _release(self, request: FakeRequest) -> None:
        for block in reversed(request.blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)
        request.blocks, request.computed = [], 0

    def _preempt(self, request: FakeRequest) -> None:
        self.events["preempted_after_output" if request.outputs else "preempted_before_output"] += 1
        self.running.remove(request)
        self._release(request)
        self.waiting.append(request)

    def _run(
        self, batch: Sequence[tuple[FakeRequest, list[int], int]], copies: list[tuple[int, int]]
    ) -> FakeStep:
        runner = self._runner(batch)
        states: list[FloatArray] = []
        sampled: list[int] = []
        new_ids: list[tuple[int, ...]] = []
        first_outputs = [not request.outputs for request, _, _ in batch]
        for request, drafts, rows in batch:
            tokens, known = request.tokens + drafts, len(request.tokens)
            stop = request.computed + rows
            states += [planted(tokens[: i + 1], self.columns) for i in range(request.computed, stop)]
            if stop < known:
                self.events["chunk"] += 1
                request.computed = stop
                sampled.append(0)
                new_ids.append(())
                continue
            if request.outputs and known - request.computed > 1:
                self.events["recomputed"] += 1
            accepted = self.rng.randint(0, len(drafts))
            self.events["accepted"] += accepted
            self.events["rejected"] += len(drafts) - accepted
            follows = [token for token in range(4) if drafts[accepted : accepted + 1] != [token]]
            found = [*drafts[:accepted], self.rng.choice(follows)]
            kept = found[: request.wanted - len(request.outputs)]
            self.events["cut"] += len(kept) < len(found)
            request.computed = known + accepted
            request.outputs += kept
            sampled.append(len(found))
            new_ids.append(tuple(kept))
        for request, _, _ in batch:
            if len(request.outputs) == request.wanted:
                self.running.remove(request)
                self._release(request)
                self.finished.append(request)
        requests = [request for request, _, _ in batch]
        return FakeStep(runner, requests, np.stack(states), sampled, new_ids, copies, first_outputs)

    def _runner(self, batch: Sequence[tuple[FakeRequest, list[int], int]]) -> Any:
        n, width = len(batch), 40
        table = np.full((n + 2, width), -1, np.int32)  # as in vLLM, longer than the batch
        for row, (request, _, _) in enumerate(batch):
            table[row, : len(request.blocks)] = request.blocks

        def padded(numbers: list[int]) -> Any:
            return np.array([*numbers, 77, 77], np.int32)

        blocks = SimpleNamespace(block_table=SimpleNamespace(np=table), block_size=self.block_size)
        starts = np.cumsum([0, *(rows for _, _, rows in batch)]).tolist()
        return SimpleNamespace(
            query_start_loc=SimpleNamespace(np=padded(starts)),
            input_batch=SimpleNamespace(
                num_reqs=n,
                req_ids=[request.id for request, _, _ in batch],
                block_table=[blocks],
                num_computed_tokens_cpu=padded([request.computed for request, _, _ in batch]),
                num_prompt_tokens=padded([len(request.prompt) for request, _, _ in batch]),
                num_tokens_no_spec=padded([len(request.tokens) for request, _, _ in batch]),
            ),
        )


class FakeWorker:
    """Does with a step what the worker's side of the seam does with it."""

    def __init__(self, engine: FakeEngine) -> None:
        self._block_size = engine.block_size
        self.store = ScoreStore(engine.num_blocks * engine.block_size, engine.columns, 1)

    def watch(self, step: FakeStep) -> StepScores:
        """What becomes due in the step."""
        self.store.copy_blocks(step.copies, self._block_size)
        view = step_view(step.runner, 0)
        self.store.write(view.slots, step.states)
        history = {row: self.store.read(slots) for row, slots in view.history.items()}
        starts, counts = due(view, np.array(step.sampled))
        return StepScores(counts, starts, assemble(view, step.states, history, starts, counts), 0.0)


def ints(*numbers: int) -> IntArray:
    """An int64 array."""
    return np.array(numbers, np.int64)
