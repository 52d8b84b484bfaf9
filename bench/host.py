"""Host work that the monitor adds to one engine step, without an engine: ``python -m bench.host``.

A decode step of 256 running requests with probes on 3 layers (8, or ``--probes``): what the worker does with it
(``StepReader``), what the scheduler's process does (packing the message), and what the API server does (accounting).
CPU time of the one thread: on a quiet machine it is the time that passes, on a busy one still the work. ``--cold``: as
after a forward pass, which leaves nothing of all that in the processor's caches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from monitor.adapters import AdapterRules
from monitor.bank import ProbeBank
from monitor.drift import STRIDE, WINDOW, Drift
from monitor.engines import Engines
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from monitor.seam import view_v1
from monitor.seam.outputs import OutputTap, begin
from monitor.seam.scheduler import deliver
from monitor.seam.steps import StepReader
from monitor.seam.tap import TapBuffers, define_operation
from monitor.store import ScoreStore
from monitor.wire import CARRIER
from probes import Probe
from probes.artifact import split_golden
from probes.testing import BENIGN, fake_manifest, fake_tensors

REQUESTS, LAYERS, D_MODEL, BLOCK, LENGTH = 256, 3, 64, 16, 1024
REQUESTS_AT_A_TAP = 32
FED, STEPS, PROMPT = 512, 400, 500


def make_probes(count: int) -> list[Probe]:
    """Logistic probes, spread over the layers one layer each."""
    found = []
    for i in range(count):
        manifest = fake_manifest(
            name=f"bench-{i}", layers=(i % LAYERS,), d_model=D_MODEL, threshold=0.0, benign_quantiles=BENIGN
        )
        tensors, inputs, scores = split_golden(fake_tensors(manifest, i))
        found.append(Probe(manifest, tensors, inputs, scores))
    return found


class Bench:
    """One engine's worth of fake vLLM objects, all requests in the middle of their answers."""

    def __init__(self, probes: int, requests: int, fed: int = FED, prompt: int = PROMPT) -> None:
        self.requests = requests
        bank = ProbeBank(make_probes(probes), range(LAYERS), D_MODEL, 16)
        blocks = LENGTH // BLOCK
        self.buffers = TapBuffers.allocate(LAYERS, requests, bank.capacity, False, torch.device("cpu"))
        store = ScoreStore(requests * LENGTH, bank.state_columns, 4096)
        rules = AdapterRules(bank, lambda _: None)
        self.reader = StepReader(bank, self.buffers, store, BLOCK, view_v1.Batches(0).capture, rules)
        self.ids = [f"cmpl-{i:032d}-0-abcdefgh" for i in range(requests)]
        table = np.arange(requests * blocks, dtype=np.int32).reshape(requests, blocks)
        self.batch = SimpleNamespace(
            num_reqs=requests,
            req_ids=self.ids,
            block_table=[SimpleNamespace(block_table=SimpleNamespace(np=table), block_size=BLOCK)],
            num_computed_tokens_cpu=np.full(requests, fed, np.int32),
            num_prompt_tokens=np.full(requests, prompt, np.int32),
            num_tokens_no_spec=np.full(requests, fed + 1, np.int32),
        )
        starts = SimpleNamespace(np=np.arange(requests + 1, dtype=np.int32))
        self.runner = SimpleNamespace(input_batch=self.batch, query_start_loc=starts, lora_config=None)
        self.scheduled = SimpleNamespace(
            total_num_scheduled_tokens=requests,
            kv_cache_block_copies=None,
            finished_req_ids=(),
            scheduled_new_reqs=(),
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=()),
        )
        registry = CollectorRegistry()
        recent = RecentRecords(1024)
        self.engines = engines = Engines(
            lambda index: Frontend(bank, Metrics("m", str(index), registry), "m", recent),
            [0],
            recent,
        )
        self.tap = OutputTap(engines, plan=None)  # type: ignore[arg-type]
        self.states = {
            name: SimpleNamespace(
                request_id=name,
                external_req_id=name[:-9],
                parent_req=None,
                prompt_token_ids=[1] * prompt,
                prompt_len=prompt,
                streaming_input=False,
            )
            for name in self.ids
        }

        for name in self.ids:
            running = begin(self.states[name])
            running.bank = bank
            running.fed = fed
            running.states.append(bytes(fed * bank.state_columns * 4))
            self.tap.running[name] = (engines.first, running)

    def outputs(self) -> list[Any]:
        """What the scheduler makes of a step: one token for every request."""
        return [
            SimpleNamespace(
                request_id=name,
                new_token_ids=[7],
                finish_reason=None,
                kv_transfer_params=None,
                stop_reason=None,
            )
            for name in self.ids
        ]

    def worker(self) -> Any:
        """The worker's part of a step; the runner's output with the scores on it."""
        self.buffers.scores[:] = 0.5
        output = SimpleNamespace(
            req_ids=self.ids,
            sampled_token_ids=[[7]] * self.requests,
            req_id_to_index={name: i for i, name in enumerate(self.ids)},
        )
        started = time.thread_time()
        self.reader.after_forward(self.runner, self.scheduled)
        step = self.reader.take()
        assert step is not None
        setattr(output, CARRIER, self.reader.complete(step, output))
        self.spent = time.thread_time() - started
        self.batch.num_computed_tokens_cpu += 1
        self.batch.num_tokens_no_spec += 1
        return output


class Weights:
    """What a forward pass reads before the host has its turn: more than any cache holds."""

    def __init__(self) -> None:
        self._matrix = torch.randn(4096, 32768, dtype=torch.bfloat16)
        self._rows = torch.randn(8, 4096, dtype=torch.bfloat16)

    def read(self) -> None:
        """All of it."""
        torch.mm(self._rows, self._matrix)


def measure(
    probes: int, requests: int, steps: int, between: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every step, by part; ``between`` is called before each. Ends the benchmark if not every token was
    scored."""
    worker, scheduler, server = [], [], []

    def delivered(bench: Bench) -> list[Any]:
        between()
        output, outputs = bench.worker(), bench.outputs()
        between()
        started = time.thread_time()
        deliver(None, {0: SimpleNamespace(outputs=outputs)}, output)
        scheduler.append(time.thread_time() - started)
        worker.append(bench.spent)
        return outputs

    # Worker and scheduler share a process; the API server has its own, so neither its work nor what it keeps in memory
    # may come between theirs.
    bench = Bench(probes, requests)
    for _ in range(steps):
        delivered(bench)
    timed = len(worker)
    bench = Bench(probes, requests)
    for _ in range(steps):
        outputs = delivered(bench)
        between()
        started = time.thread_time()
        bench.tap.take(outputs, bench.states)
        server.append(time.thread_time() - started)
    bench.tap.settle()
    scored = bench.engines.first.metrics.total("probewatch_tokens_scored_total", "bench-0")
    if scored != requests * steps:
        raise SystemExit(
            f"{scored:.0f} tokens were scored of {requests * steps}; this did not measure the usual path"
        )
    return {"worker": worker[:timed], "scheduler": scheduler[:timed], "API server": server}


def finishing(probes: int, fed: int, sequences: int = 64) -> list[float]:
    """Seconds of judging and filing each of some answers of ``fed`` tokens, in the API server; with an equal share of
    what then waits for somebody who reads the metrics."""
    bench = Bench(probes, sequences, fed, prompt=1)
    found = []
    for name in bench.ids:
        started = time.thread_time()
        bench.tap.finished(name)
        found.append(time.thread_time() - started)
    started = time.thread_time()
    bench.engines.first.metrics.flush()
    each = (time.thread_time() - started) / sequences
    judged = len(bench.engines.recent)
    if judged != sequences:
        raise SystemExit(
            f"{judged} sequences were judged of {sequences}; this did not measure the usual path"
        )
    return [seconds + each for seconds in found]


def comparing() -> float:
    """Median seconds of comparing one probe with benign traffic, as happens when somebody reads the metrics."""
    drift, rng = Drift(BENIGN), np.random.default_rng(0)
    drift.extend(rng.normal(size=WINDOW).tolist())
    found = []
    for _ in range(STEPS):
        drift.extend(rng.normal(size=STRIDE).tolist())
        started = time.thread_time()
        drift.shift()
        found.append(time.thread_time() - started)
    return statistics.median(found)


def one_tap(between: Callable[[], None] = lambda: None) -> float:
    """Median seconds of a tap of 32 rows, 768 wide, behind the operation that a graph calls."""
    define_operation("CPU")
    rows, weight = torch.randn(REQUESTS_AT_A_TAP, 768).to(torch.bfloat16), torch.randn(768, 16)
    scores, none, used = torch.empty(REQUESTS_AT_A_TAP, 16), torch.zeros(0), torch.ones(1, dtype=torch.int64)
    found = []
    for _ in range(STEPS // 4):
        between()
        started = time.thread_time()
        torch.ops.probewatch.tap(rows, weight, scores, none, used, none)
        found.append(time.thread_time() - started)
    return statistics.median(found)


def main() -> None:
    """Prints median, mean and 99th percentile of each part, in microseconds."""
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--cold", action="store_true", help="empty the processor's caches before each part")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = STEPS // 4 if args.cold else STEPS
    parts = measure(args.probes, args.requests, steps, Weights().read if args.cold else lambda: None)
    print(
        f"{args.requests} running requests, {args.probes} probes on {LAYERS} layers, {steps} steps"
        f"{', cold' * args.cold}; microseconds a step"
    )
    for name, seconds in parts.items():
        middle, slow = statistics.median(seconds) * 1e6, float(np.percentile(seconds, 99)) * 1e6
        mean = statistics.fmean(seconds) * 1e6
        print(f"{name:>10}: median {middle:6.1f}   mean {mean:6.1f}   99th percentile {slow:6.1f}")
    both = statistics.median(parts["worker"]) + statistics.median(parts["scheduler"])
    print(f"in the engine's process (worker + scheduler): {both * 1e6:.1f}")
    if args.cold:
        cold, warm = one_tap(Weights().read) * 1e6, one_tap() * 1e6
        print(
            f"one tap behind an operation, 32 rows of 768, 16 columns: {cold:.1f}, with warm caches {warm:.1f}"
        )
    judging = statistics.fmean(finishing(args.probes, FED))
    print(f"verdicts on an answer of {FED} tokens, in the API server: {judging * 1e6:.1f}")
    print(f"drift of one calibrated probe, when the metrics are read: {comparing() * 1e6:.1f}")


if __name__ == "__main__":
    main()
