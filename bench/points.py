"""Points on the curves of cost: what one core takes for a tap, for the host's share of a step, for the model itself.

Taps and host work are measured by themselves: beside a whole engine they drown in its noise (docs/performance.md).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from bench import host
from bench.arms import ARMS, STOCK, Arm
from bench.model import BenchModel, write_model
from bench.rounds import alone
from bench.running import Running, engine_arguments, environment, started
from bench.workload import Workload
from monitor.seam import tap

ONE_CORE = {"VLLM_CPU_OMP_THREADS_BIND": "0", "OMP_NUM_THREADS": "1"}
MANY = 12
"""Taps that take turns, as in a model: the matrix of one has left the core's cache when its turn comes again."""


@dataclass(frozen=True)
class TapPoint:
    """CPU seconds of one tap."""

    d_model: int
    rows: int
    columns: int
    seconds: float


@dataclass(frozen=True)
class HostPoint:
    """CPU seconds of a step that only decodes."""

    requests: int
    states: int
    engine: float
    server: float


@dataclass(frozen=True)
class FinishPoint:
    """CPU seconds of judging one sequence, in the API server."""

    tokens: int
    states: int
    seconds: float


@dataclass(frozen=True)
class StepPoint:
    """CPU seconds of one step of an engine. ``columns`` 0: of stock vLLM; else of taps on all blocks but the last."""

    requests: int
    context: int
    rows: int
    columns: int
    seconds: float


def taps(widths: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Iterator[TapPoint]:
    """On one core, in bfloat16, compiled as in a model's graph; there the compiler may save something of it by joining
    it with the model's own loops."""
    torch.set_num_threads(1)
    for d in widths:
        for c in columns:
            weights = tap.laid_out(torch.randn(MANY, d, c), torch.device("cpu"))
            scores, none = torch.empty(MANY, max(rows), c), torch.zeros(0)
            compiled = torch.compile(_sweep)
            for n in rows:
                streams = [torch.randn(n, d).to(torch.bfloat16) for _ in range(MANY)]
                for stream in streams if n > 1 else ():
                    torch._dynamo.mark_dynamic(stream, 0)
                sweep = partial(compiled, streams, list(weights), list(scores), none)
                yield TapPoint(d, n, c, median_of(sweep) / MANY)
            torch.compiler.reset()


def _sweep(
    streams: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    scores: Sequence[torch.Tensor],
    none: torch.Tensor,
) -> None:
    for stream, weight, out in zip(streams, weights, scores, strict=True):
        tap.in_graph(stream, weight, out, none)


def median_of(call: Callable[[], None], seconds: float = 0.4) -> float:
    """Median CPU seconds of a call, of as many as fit into ``seconds``, five at least."""
    call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 5 or time.perf_counter() < end:
        begun = time.thread_time()
        call()
        found.append(time.thread_time() - begun)
    return statistics.median(found)


def hosts(requests: Sequence[int], probes: Sequence[int]) -> Iterator[HostPoint]:
    """Single-layer probes on three layers. Of the server the mean: its counters are brought up to date now and then."""
    for n in requests:
        for count in probes:
            parts = host.measure(count, n, host.STEPS)
            engine = statistics.median(parts["worker"]) + statistics.median(parts["scheduler"])
            yield HostPoint(n, count, engine, statistics.fmean(parts["API server"]))


def finishes(tokens: Sequence[int], probes: Sequence[int]) -> Iterator[FinishPoint]:
    """Of sequences that are long or short."""
    for fed in tokens:
        for count in probes:
            yield FinishPoint(fed, count, statistics.fmean(host.finishing(count, fed)))


def steps(loads: Mapping[int, Sequence[Workload]], rounds: int) -> Iterator[StepPoint]:
    """The 134M model on one core, its front end in the same process; CPU seconds, so that what waits costs nothing.

    A decoding step is the difference of two rounds that differ in the length of the answers. ``loads``: by the
    columns of taps that are all in use (0: stock vLLM).
    """
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        for width, own in loads.items():
            arm = Arm(f"{width} columns", probes=model.layers - 1, layers="all", columns=width)
            with _engine(model, arm if width else ARMS[STOCK], own, Path(folder)) as one:
                for load in own:
                    short = Workload(load.requests, load.tokens_in, 1)
                    differences = [
                        _cpu_seconds(one, load, seed) - _cpu_seconds(one, short, seed)
                        for seed in range(rounds)
                    ]
                    decoded = load.tokens_out - 1
                    context = load.tokens_in + decoded // 2
                    yield StepPoint(
                        load.requests, context, load.requests, width, statistics.median(differences) / decoded
                    )


def _engine(model: BenchModel, arm: Arm, loads: Sequence[Workload], folder: Path) -> Running:
    engine = engine_arguments(loads, {"max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.15})
    log = Path(tempfile.gettempdir()) / f"probewatch-points.{arm.columns}.log"
    return started(arm, model, folder, engine, log, {**environment(in_process=True, kv_gib=2), **ONE_CORE})


def _cpu_seconds(one: Running, load: Workload, seed: int) -> float:
    return float(alone(one, load, seed)["cpu_seconds"])


def as_json(points: Sequence[TapPoint | HostPoint | FinishPoint | StepPoint]) -> list[dict[str, float]]:
    """For a file."""
    return [asdict(point) for point in points]


def processor() -> str:
    """What this machine calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
