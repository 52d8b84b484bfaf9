"""The road from a forward pass of ``FakeEngine`` to a verdict, joined by the monitor's own code: worker, scheduler,
API server. Nothing of it is copied here; only vLLM is played."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from monitor.adapters import AdapterRules
from monitor.attach import Plan
from monitor.bank import ProbeBank
from monitor.engines import Engines
from monitor.events import FloatArray, IntArray, StepScores
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from monitor.seam import view_v1, view_v2
from monitor.seam.outputs import OutputTap
from monitor.seam.scheduler import patch_scheduler
from monitor.seam.steps import StepReader
from monitor.seam.tap import TapBuffers
from monitor.seam.worker import WorkerMonitor
from monitor.store import ScoreStore
from monitor.wire import CARRIER
from probes import Probe
from tests.unit.monitor_fake_engine import FakeEngine
from tests.unit.monitor_fake_runners import GROUP, MOST_ROWS, FakeRequest, FakeStep, V2Runner
from tests.unit.monitor_fakes import MODEL, make_bank, make_probe

CPU = torch.device("cpu")
LAYERS = (1, 2)
FAULTS = ("unreadable", "unsampled", "unfiled", "disordered", "silent")
"""What may go wrong in a step: the runner cannot be read; the step is never sampled; its scores cannot be filed; its
requests come back in another order; the taps do not write."""


def scoring_probes(columns: int, linear: bool = False) -> tuple[Probe, ...]:
    """Probes of one state column each: sums over two layers, and unless ``linear`` at the end a cosine, which needs
    norms."""
    sums = [
        make_probe(f"sum-{i}", seed=i, kind="steering", scoring="projection", layers=LAYERS)
        for i in range(columns - 1 + linear)
    ]
    if linear:
        return tuple(sums)
    return (*sums, make_probe("cosine", kind="steering", scoring="cosine", layers=LAYERS[1:]))


def write_taps(buffers: TapBuffers, bank: ProbeBank, states: FloatArray) -> None:
    """What the taps would have written for ``states [T, K]`` of ``scoring_probes``, exactly."""
    n, scores = len(states), buffers.scores.numpy()
    scores[:, :n] = 0
    buffers.squared_norms.numpy()[:, :n] = 4
    for seat in bank.seats:
        column, values = seat.columns.start, states[:, seat.states.start]
        if seat.probe.needs_norm:
            scores[1, :n, column] = 2 * values
        else:
            part = np.floor(values / 3)
            scores[0, :n, column] = part
            scores[1, :n, column] = values - part


class Promise:
    """An output that vLLM fetches later, like its ``AsyncOutput``."""

    def __init__(self, fetch: Callable[[], Any]) -> None:
        self.fetch = fetch

    def get_output(self) -> Any:
        """What vLLM calls, in the order of the steps."""
        return self.fetch()


class FailingStore(ScoreStore):
    """Fails while ``at_work``, where states are to be stored."""

    _failing: ClassVar = False
    failures: ClassVar = 0

    @classmethod
    @contextmanager
    def at_work(cls, yes: bool = True) -> Iterator[None]:
        """What is stored inside fails."""
        cls._failing = yes
        try:
            yield
        finally:
            cls._failing = False

    def write(self, slots: IntArray, states: FloatArray) -> None:
        if self._failing:
            type(self).failures += 1
            raise ValueError("planted")
        super().write(slots, states)


def make_reader(engine: FakeEngine, bank: ProbeBank) -> StepReader:
    """The monitor's bookkeeping for an engine."""
    buffers = TapBuffers.allocate(len(bank.layers), MOST_ROWS, bank.capacity, bank.needs_norm, CPU)
    store = FailingStore(engine.num_blocks * engine.block_size, bank.state_columns, 1)
    v2 = isinstance(engine.runner, V2Runner)
    capture = (lambda runner, _: view_v2.capture(runner, GROUP)) if v2 else view_v1.Batches(GROUP).capture
    rules = AdapterRules(bank, lambda folder: None)
    return StepReader(bank, buffers, store, engine.block_size, capture, rules)


def scheduled(step: FakeStep) -> Any:
    """What the monitor reads of vLLM's ``SchedulerOutput``."""
    return SimpleNamespace(
        total_num_scheduled_tokens=step.scheduled,
        kv_cache_block_copies=step.copies or None,
        scheduled_new_reqs=(),
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=step.admitted),
        finished_req_ids=(),
    )


def runner_output(step: FakeStep) -> Any:
    """What it reads of vLLM's ``ModelRunnerOutput``."""
    return _of_rows([request.id for request in step.requests], step.sampled_ids)


def disordered(output: Any) -> Any:
    """The same requests in another order."""
    return _of_rows(output.req_ids[::-1], output.sampled_token_ids[::-1])


def _of_rows(ids: list[str], sampled: list[list[int]]) -> Any:
    rows = {id: row for row, id in enumerate(ids)}
    return SimpleNamespace(req_ids=ids, req_id_to_index=rows, sampled_token_ids=sampled)


class FakeWorker:
    """The worker's side alone, one step at a time."""

    def __init__(self, engine: FakeEngine) -> None:
        self.bank = make_bank(*scoring_probes(engine.columns))
        self.reader = make_reader(engine, self.bank)

    def watch(self, step: FakeStep) -> StepScores:
        """What becomes due in the step."""
        write_taps(self.reader.buffers, self.bank, step.states)
        self.reader.after_forward(step.runner, scheduled(step))
        step.runner.sample()
        taken = self.reader.take()
        assert taken is not None
        scores = self.reader.complete(taken, runner_output(step))
        assert scores is not None
        return self.bank.made(scores)


class _Scheduler:
    """The outputs that vLLM makes of a step, for two API servers: of requests that live and have new tokens, and now
    and then of one that did not run."""

    def __init__(self, rng: random.Random, engine: FakeEngine) -> None:
        self._rng = rng
        self._engine = engine

    def finish_requests(self, request_id: str, status: str) -> None:
        """Ends one from outside: what is in flight of it is computed and thrown away."""
        known = [*self._engine.running, *self._engine.waiting]
        self._engine.abort(next(request for request in known if request.id == request_id))

    def update_from_output(self, scheduler_output: FakeStep, model_runner_output: Any) -> Any:
        step = scheduler_output
        outputs = [
            _engine_output(request.id, ids, "stop" if request.ended else None)
            for request, ids in zip(step.requests, step.new_ids, strict=True)
            if ids
        ]
        if self._rng.random() < 0.1:
            outputs.insert(self._rng.randint(0, len(outputs)), _engine_output("another", (), "error"))
        clients: dict[int, Any] = {}
        for output in outputs:
            of_client = clients.setdefault(self._rng.randrange(2), SimpleNamespace(outputs=[]))
            of_client.outputs.append(output)
        return clients


def _engine_output(request_id: str, ids: Sequence[int], finish_reason: str | None) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        new_token_ids=list(ids),
        trace_headers=None,
        finish_reason=finish_reason,
        kv_transfer_params=None,
        stop_reason=None,
    )


patch_scheduler(_Scheduler)


class FakeServer:
    """An engine under the monitor, with random traffic. ``aside`` fetches outputs in a thread of its own, as vLLM's
    workers do; ``faults`` is the share of steps in which something of the monitor fails."""

    def __init__(
        self,
        seed: int,
        runner: str,
        depth: int,
        *,
        aside: bool = False,
        faults: float = 0.0,
        columns: int = 3,
        probes: Sequence[Probe] = (),
    ) -> None:
        self.engine = FakeEngine(seed, columns, runner, depth)
        self.rng = random.Random(seed)
        self.registry = CollectorRegistry()
        self.events: Counter[str] = Counter()
        """Faults by kind, and what vLLM itself counts as fed by phase."""
        self.expected: dict[str, list[FloatArray]] = {}
        """Of every request that has ended: the states ``[T, K]`` of its one record, or none without any output."""
        self.sent: dict[str, list[Any]] = {}
        """Of every request: its outputs, as its client gets them."""
        probes = tuple(probes) or scoring_probes(columns)
        plan = Plan(probes, (), 1, 1)
        self.monitor = WorkerMonitor(plan)
        self.monitor.bank = make_bank(*probes)
        self.monitor.reader = make_reader(self.engine, self.monitor.bank)
        self.monitor.buffers = self.monitor.reader.buffers
        self.monitor.proven = True
        recent = RecentRecords(1000)

        def frontend(index: int) -> Frontend:
            metrics = Metrics(MODEL, str(index), self.registry)
            return Frontend(make_bank(*probes), metrics, MODEL, recent)

        self.tap = OutputTap(Engines(frontend, [0], recent), plan)
        self._faults = faults
        self._scheduler = _Scheduler(self.rng, self.engine)
        self._requests: dict[str, Any] = {}
        self._going: list[FakeRequest] = []
        self._pending: deque[tuple[FakeStep, Callable[[], Any]]] = deque()
        self._thread = ThreadPoolExecutor(1) if aside else None

    def serve(self, turns: int) -> None:
        """Random traffic for ``turns``; then whatever is left is computed to its end."""
        for turn in range(51 * turns):
            if turn < turns:
                self._traffic(turn)
            elif not self.engine.running and not self.engine.waiting and not self._pending:
                break
            self._turn()
        else:
            raise AssertionError("the engine does not come to an end")
        if self._thread is not None:
            self._thread.shutdown()

    def _traffic(self, turn: int) -> None:
        if turn % 4 == 0:
            self._add()
        if turn % 13 == 12 and self.engine.running:
            self._leave(self.rng.choice(self.engine.running))
        if turn % 29 == 28:
            self.engine.reset()

    def _turn(self) -> None:
        step = self.engine.forward() if len(self._pending) < self.engine.depth else None
        if step is not None:
            self._pending.append((step, self._execute(step)))
        full = len(self._pending) == self.engine.depth
        if self._pending and (full or step is None or self.rng.random() < 0.4):
            self._collect(*self._pending.popleft())
        while self._going:  # the engine hears of a client's leaving only now
            request = self._going.pop()
            if not request.ended:
                self.engine.abort(request)

    def _execute(self, step: FakeStep) -> Callable[[], Any]:
        """Forward pass and sampling in the worker; the result fetches the output."""
        fault = self.rng.choice(FAULTS) if self.rng.random() < self._faults else None
        if fault == "disordered" and len(step.shares) == 1:
            fault = None
        if fault != "unfiled":
            self.events[fault or "whole"] += 1
        if fault != "silent":
            write_taps(self.monitor.buffers, self.monitor.bank, step.states)
        runner = SimpleNamespace() if fault == "unreadable" else step.runner
        self.monitor.after_forward(runner, scheduled(step))
        step.runner.sample()
        output = runner_output(step)
        if fault == "unsampled":
            return lambda: output
        if fault == "disordered":
            output = disordered(output)
        promise = Promise(lambda: output)
        if self.engine.depth > 1:
            self.monitor.after_sampling(promise)

        def fetch() -> Any:
            before = FailingStore.failures
            with FailingStore.at_work(fault == "unfiled"):
                if self.engine.depth > 1:
                    promise.get_output()
                else:
                    self.monitor.after_sampling(output)
            self.events["unfiled"] += FailingStore.failures - before
            self.events["raw"] += getattr(output, CARRIER, None) is not None and getattr(output, CARRIER).raw
            return output

        if self._thread is not None:
            return self._thread.submit(fetch).result
        return fetch if self.engine.depth > 1 else partial(lambda done: done, fetch())

    def _collect(self, step: FakeStep, fetch: Callable[[], Any]) -> None:
        output = fetch()
        assert self.engine.collect() is step
        results = self._scheduler.update_from_output(step, output)
        for request, ids, first in zip(step.requests, step.new_ids, step.first_outputs, strict=True):
            if ids and request.id in self._requests:
                self.events["prompt"] += first * len(request.prompt)
                self.events["generation"] += len(ids) - first
        for request in step.requests:
            if request.ended and request.id in self._requests and request in self.engine.finished:
                self.expected[request.id] = [request.fed(self.engine.columns)]
        self.events["messages"] += hasattr(output, CARRIER) and any(step.new_ids)
        for client in results.values():
            self.tap.take(client.outputs, self._requests)
            for sent in client.outputs:
                self.sent.setdefault(sent.request_id, []).append(sent)
                if sent.finish_reason and self._requests.pop(sent.request_id, None):
                    self.tap.finished(sent.request_id)

    def _add(self) -> None:
        request = self.engine.add()
        self._requests[request.id] = SimpleNamespace(
            request_id=request.id,
            external_req_id=request.id,
            parent_req=None,
            prompt_token_ids=list(request.prompt),
            prompt_len=len(request.prompt),
            streaming_input=False,
        )

    def _leave(self, request: FakeRequest) -> None:
        """A client goes away. vLLM's front end forgets the request at once; its outputs still come for a while."""
        if self._requests.pop(request.id, None):
            self.expected[request.id] = [request.fed(self.engine.columns)] if request.outputs else []
            self.tap.finished(request.id, "abort")
            self._going.append(request)

    def found(self, request_id: str) -> list[FloatArray]:
        """States ``[T, K]`` of every record that was made of a request."""
        return [record.states for record in self.tap.engines.recent.of(request_id)]
