"""vLLM's scheduling without a model: random, but honest.

A paged KV cache with prefix sharing and copy-on-write, chunked prefill, drafts, preemption with recompute, batches in
changing order. A token's states are a hash of all tokens up to it, so a score that reaches the wrong request or
position is seen.

As in vLLM there are two truths. The *device* knows what was sampled as soon as the forward pass is queued; the
*scheduler* learns it when the step is collected. With asynchronous scheduling it runs ``depth`` steps at a time: it
counts drafts as accepted until it hears otherwise, and computes on past the end of a request.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np

from monitor.events import FloatArray
from tests.unit.monitor_fake_runners import FakeRequest, FakeStep, Share, V1Runner, V2Runner, planted

DRAFTS = (0, 0, 2, 4)
LONGEST_PROMPT, LONGEST_OUTPUT = 20, 10


class FakeEngine:
    """Random scheduling of requests over a small cache. ``runner``: ``v1`` or ``v2``; ``depth``: steps in flight."""

    def __init__(self, seed: int, columns: int = 2, runner: str = "v1", depth: int = 1) -> None:
        self.rng = random.Random(seed)
        self.columns = columns
        self.depth = depth
        self.block_size = self.rng.choice([1, 2, 4])
        # vLLM's V1 runner knows no positions while drafts are in flight: the monitor refuses that.
        self.max_drafts = self.rng.choice(DRAFTS) if runner == "v2" or depth == 1 else 0
        self.drops_drafts = runner == "v2" and self.rng.random() < 0.3
        self.frees_late = depth > 1 and self.rng.random() < 0.5
        self.sharing = self.rng.random() < 0.8
        # Any one request fits, with all it may have in flight; several often do not.
        self.slots = 40 if depth == 1 else 32 + 8 * depth
        self.num_blocks = self.slots // self.block_size
        self.waiting: list[FakeRequest] = []
        self.running: list[FakeRequest] = []
        self.finished: list[FakeRequest] = []
        self.events: Counter[str] = Counter()
        self.in_flight: deque[FakeStep] = deque()
        make = V2Runner if runner == "v2" else V1Runner
        self.runner: V1Runner | V2Runner = make(self.rng, self.block_size, self.slots)
        self._free = list(range(self.num_blocks))
        self._users: Counter[int] = Counter()
        self._cached: dict[tuple[int, ...], int] = {}
        self._late: list[tuple[FakeStep, list[int]]] = []
        self._stems = [[self.rng.randrange(3) for _ in range(12)] for _ in range(2)]
        self._added = 0

    def add(self) -> FakeRequest:
        """A new request; its prompt often shares a stem with others."""
        stem = self.rng.choice(self._stems)[: self.rng.randint(0, 12)]
        tail = [self.rng.randrange(3) for _ in range(self.rng.randint(1, LONGEST_PROMPT - 12))]
        request = FakeRequest(f"r{self._added}", stem + tail, self.rng.randint(1, LONGEST_OUTPUT))
        self._added += 1
        self.waiting.append(request)
        return request

    def abort(self, request: FakeRequest) -> None:
        """A client went away, maybe while a step of its is in flight."""
        self.events["aborted_in_flight"] += request.in_flight > 0
        self._end(request)

    def reset(self) -> None:
        """Preempts everything and throws away what is in flight, as vLLM does when its prefix cache is reset."""
        for request in list(self.running):
            self.events["thrown_away"] += request.in_flight
            self._preempt(request)
            request.dropped = request.in_flight

    def step(self) -> FakeStep | None:
        """Schedules, computes and samples once, and hears of it at once; None if nothing fits."""
        step = self.forward()
        if step is not None:
            self.collect()
        return step

    def forward(self) -> FakeStep | None:
        """Schedules a step and queues its forward pass; None if nothing fits."""
        budget = self.rng.randint(1, 16)
        copies: list[tuple[int, int]] = []
        complete = dict(self._cached)  # blocks whose tokens were computed in earlier steps
        shares: list[Share] = []
        self._admitted: set[str] = set()
        if self.rng.random() < 0.5:
            self.rng.shuffle(self.running)
        for request in [*self.running, *self.waiting]:
            # Requests admitted in this step still wait in the list; a preempted one waits its turn.
            ready = request.stale <= request.dropped and self.rng.random() < 0.7
            if request in self.running or ready:
                share = self._schedule(request, budget, complete, copies, [entry.request for entry in shares])
                if share is not None:
                    shares.append(share)
                    budget -= share.scheduled
            if not budget:
                break
        if not shares:
            return None
        if self.rng.random() < 0.5:
            self.rng.shuffle(shares)
        step = self._compute(shares, copies)
        self.in_flight.append(step)
        self.events["overlapped"] += len(self.in_flight) > 1
        return step

    def collect(self) -> FakeStep:
        """The scheduler hears of the oldest step in flight."""
        step = self.in_flight.popleft()
        for share in step.shares:
            step.first_outputs.append(not share.request.outputs)
            step.new_ids.append(self._hear(share))
        for waits_for, blocks in [entry for entry in self._late if entry[0] is step]:
            self._late.remove((waits_for, blocks))
            self._give_back(blocks)
        return step

    def _schedule(
        self,
        request: FakeRequest,
        budget: int,
        complete: Mapping[tuple[int, ...], int],
        copies: list[tuple[int, int]],
        scheduled: Sequence[FakeRequest],
    ) -> Share | None:
        if request not in self.running and not request.blocks:
            self._reuse(request, complete, copies)
        known = len(request.tokens) + request.ahead
        left = known - request.computed
        drafts = self.rng.randint(0, self.max_drafts) if left == 1 else 0
        rows = min(left + drafts, budget)
        drafts = max(0, rows - left)
        while not self._allocate(request, request.computed + rows):
            victims = [r for r in self.running if r is not request and r not in scheduled]
            if not victims:
                if request not in self.running:
                    self._release(request)
                return None
            self._preempt(self.rng.choice(victims))
        if request in self.waiting:
            self._admit(request)
        self._cache(request, min(request.computed + rows, len(request.tokens)))
        return self._share(request, rows, drafts, sampling=rows >= left)

    def _admit(self, request: FakeRequest) -> None:
        self.waiting.remove(request)
        self.running.append(request)
        self._admitted.add(request.id)
        request.tape, request.position = request.tokens, request.computed
        request.prefill = len(request.tape)

    def _share(self, request: FakeRequest, rows: int, drafts: int, sampling: bool) -> Share:
        """The device's part of a step, and the scheduler's guess at it."""
        computed, first = request.computed, request.position
        guessed = [self.rng.randrange(3) for _ in range(drafts)]
        if self.drops_drafts and drafts and self.rng.random() < 0.5:
            guessed = guessed[: self.rng.randint(0, drafts - 1)]
            self.events["draft_dropped"] += 1
        found: list[int] = []
        if sampling:
            accepted = self.rng.randint(0, len(guessed))
            follows = [token for token in range(4) if guessed[accepted : accepted + 1] != [token]]
            found = [*guessed[:accepted], self.rng.choice(follows)]
            self.events["accepted"] += accepted
            self.events["rejected"] += len(guessed) - accepted
            self.events["drafts_after_prompt"] += bool(guessed) and first < request.prefill
            request.ahead += 1 + drafts
        else:
            self.events["chunk"] += 1
        done = rows - drafts + len(guessed)
        self.events["too_high"] += computed > first
        request.computed += rows
        request.in_flight += 1
        return Share(request, first, done, rows, computed, guessed, drafts, found)

    def _compute(self, shares: list[Share], copies: list[tuple[int, int]]) -> FakeStep:
        self.runner.forward(shares)
        states: list[FloatArray] = []
        for share in shares:
            request = share.request
            tokens = request.tape + share.drafts
            states += [
                planted(tokens[: i + 1], self.columns) for i in range(share.first, share.first + share.rows)
            ]
            recomputed = request.outputs and share.found and share.rows - len(share.drafts) > 1
            self.events["recomputed"] += bool(recomputed)
            request.tape = request.tape + share.found
            request.position = len(request.tape) - 1 if share.found else share.first + share.rows
        return FakeStep(
            self.runner,
            shares,
            np.stack(states),
            copies,
            sum(share.scheduled for share in shares),
            admitted=frozenset(self._admitted),
        )

    def _hear(self, share: Share) -> tuple[int, ...]:
        """What the scheduler keeps of a request's sampled tokens, when it hears of them."""
        request = share.request
        request.in_flight -= 1
        stale, request.stale = request.stale > 0, max(0, request.stale - 1)
        dropped, request.dropped = request.dropped > 0, max(0, request.dropped - 1)
        if request.ended:
            self.events["past_end"] += bool(share.found)
        if request.ended or dropped or not share.found:
            return ()
        if stale:
            self.events["heard_after_preemption"] += 1
        else:
            rejected = share.drafts_scheduled + 1 - len(share.found)
            request.computed -= rejected
            request.ahead -= rejected + len(share.found)
        kept = share.found[: request.wanted - len(request.outputs)]
        self.events["cut"] += len(kept) < len(share.found)
        request.outputs += kept
        if len(request.outputs) == request.wanted:
            self._end(request)
            self.finished.append(request)
        return tuple(kept)

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
        """Frees blocks at once, though steps in flight may still write them; or late, when those are done."""
        self.events["freed_in_flight"] += bool(request.in_flight and request.blocks)
        if self.frees_late and request.in_flight and request.blocks:
            last = next(step for step in reversed(self.in_flight) if request in step.requests)
            self._late.append((last, request.blocks))
            self.events["freed_late"] += 1
        else:
            self._give_back(request.blocks)
        request.blocks, request.computed = [], 0

    def _give_back(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)

    def _preempt(self, request: FakeRequest) -> None:
        self.events["preempted_after_output" if request.outputs else "preempted_before_output"] += 1
        self.events["preempted_in_flight"] += request.in_flight > 0
        self.running.remove(request)
        self._release(request)
        request.ahead, request.stale = 0, request.in_flight
        self.runner.forget(request)
        self.waiting.append(request)

    def _end(self, request: FakeRequest) -> None:
        """Finished, wherever it was (a preempted one may hear of its last token while it waits), or aborted."""
        (self.running if request in self.running else self.waiting).remove(request)
        request.ended = True
        self._release(request)
        self.runner.forget(request)
