"""An arm's engine, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from bench.arms import Arm
from bench.forked import Forked
from bench.model import BenchModel
from bench.rounds import Round
from bench.workload import Workload
from monitor.demo.patience import patient
from monitor.shape import Shape


class Running:
    """The process, and the lines that go in and out."""

    def __init__(self, arm: Arm, process: subprocess.Popen[str] | Forked, log: Path) -> None:
        self.arm = arm
        self.process = process
        self.log = log
        self.begun = time.monotonic()
        """When its process was there; what the benchmark wrote for it came before."""

    def __enter__(self) -> Running:
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """At once, with the engine's own processes: they would outlive their parent, and keep its memory."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own yet, or is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def send(self, message: dict[str, Any]) -> None:
        """Writes one line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer; ends the benchmark if the engine died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the {self.arm.name!r} engine ended with status {self.process.wait()}; see {self.log}"
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def round(self, load: Workload, seed: int) -> Round:
        """What one round measures. Ends the benchmark unless an arm with probes scored every token and others none."""
        self.send({"load": astuple(load), "seed": seed})
        while "paused" in (result := self.answer()):
            yield
            self.send({})
        coverage = result.pop("coverage")
        if coverage != (1.0 if self.arm.probes else None):
            raise SystemExit(
                f"the {self.arm.name!r} arm has coverage {coverage}; it would compare the wrong things"
            )
        return result


def tidy_when_terminated() -> None:
    """A benchmark that is told to end takes its engines with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def environment(in_process: bool, kv_gib: int) -> dict[str, str]:
    """The arms differ by what the arm sets and by nothing that the caller's shell happens to hold."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PROBEWATCH_")}
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if in_process else "1",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
    }
    return patient({**inherited, **settings})


def kv_gib(config: Mapping[str, Any], loads: Sequence[Workload]) -> int:
    """Room for keys and values, so that no request of any load is preempted."""
    tokens = max(load.requests * (load.tokens_in + load.tokens_out + 128) for load in loads)  # blocks of 128
    return math.ceil(1.1 * tokens * Shape.of(config).kv_bytes / 2**30)


def engine_arguments(loads: Sequence[Workload], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``vllm.LLM``: room for the longest request and for as many as any load has; ``extra`` goes before."""
    return {
        "max_model_len": max(load.tokens_in + load.tokens_out for load in loads) + 16,
        "max_num_seqs": max(load.requests for load in loads),
        **extra,
    }


def started(
    arm: Arm,
    model: BenchModel,
    folder: Path,
    engine: dict[str, Any],
    log: Path,
    env: Mapping[str, str],
    alternating: bool = False,
    launch: Callable[[Mapping[str, str], Path], subprocess.Popen[str] | Forked] | None = None,
) -> Running:
    """An engine that is on its way up; its first ``answer`` says that it is there.

    ``alternating``: others have their turn after each step; else a round is one turn. ``launch`` makes the process,
    given its environment and where it logs; None: a new interpreter."""
    env = {**env, "VLLM_PLUGINS": arm.plugins, **arm.environment(model, folder)}
    running = Running(arm, (launch or _fresh)(env, log), log)
    try:
        running.send(
            {"model": str(model.folder), "engine": engine, "wish": arm.wish, "alternating": alternating}
        )
    except BaseException:
        running.end()
        raise
    return running


def _fresh(env: Mapping[str, str], log: Path) -> subprocess.Popen[str]:
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.arm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
            env=env,
        )
