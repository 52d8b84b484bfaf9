"""Where the host's time goes in an engine's steps: ``python -m bench.profile``, with or without the monitor.

The named functions of vLLM and of the monitor are timed in every process of one engine, while the benchmark's workload
runs. A part contains the ones that it calls. Collections of Python's garbage are counted beside them.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import mmap
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.arms import ARMS, OFFLINE
from bench.model import SHAPES, config_of, write_model
from bench.peers import why_not
from bench.running import engine_arguments, environment, kv_gib
from bench.workload import Workload, run

FOLDER = "BENCH_PROFILE_FOLDER"
"""Names, to the processes of the engine, where they tell the parent what they measured."""
PARTS = """
vllm.v1.core.sched.async_scheduler:AsyncScheduler.schedule
vllm.v1.core.sched.scheduler:Scheduler.update_from_output
vllm.v1.worker.gpu_worker:Worker.execute_model
vllm.v1.worker.gpu_worker:Worker.sample_tokens
vllm.v1.worker.gpu.async_utils:AsyncOutput.get_output
vllm.v1.engine.output_processor:OutputProcessor.process_outputs
monitor.seam.worker:WorkerMonitor.before_step
monitor.seam.worker:WorkerMonitor.after_forward
monitor.seam.worker:WorkerMonitor._complete
monitor.seam.tap:TapBuffers.send
monitor.seam.transfer:Transfer.arrived
monitor.bank:ProbeBank.states
monitor.store:ScoreStore.write
monitor.seam.scheduler:deliver
monitor.seam.outputs:OutputTap.take
monitor.seam.outputs:OutputTap.finished
"""
Spent = dict[str, list[float]]
"""By part: calls, seconds, seconds of the slowest."""


class Watch:
    """Adds up what one process spends, and writes it down whenever the phase of the benchmark changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._phase = 0
        self._spent: Spent = defaultdict(lambda: [0, 0.0, 0.0])
        with (folder / "phase").open("r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 1)
        gc.callbacks.append(self._collected)

    def note(self, part: str, seconds: float) -> None:
        """One call."""
        if self.shared[0] != self._phase:
            self._write()
        entry = self._spent[part]
        entry[0] += 1
        entry[1] += seconds
        entry[2] = max(entry[2], seconds)

    def _write(self) -> None:
        if self._phase and self._spent:
            (self._folder / f"{self._phase}.{os.getpid()}.json").write_text(json.dumps(self._spent))
        self._phase = self.shared[0]
        self._spent.clear()

    def _collected(self, stage: str, _: dict[str, int]) -> None:
        if stage == "start":
            self._started = time.perf_counter()
        else:
            self.note("Python's garbage", time.perf_counter() - self._started)


def time_parts(watch: Watch) -> None:
    """Wraps the parts that this process has. One that another vLLM does not have is left out."""
    for part in PARTS.split():
        module, _, path = part.partition(":")
        try:
            owner: Any = importlib.import_module(module)
            *outer, name = path.split(".")
            owner = functools.reduce(getattr, outer, owner)
            setattr(owner, name, _timed(getattr(owner, name), watch, path))
        except (ImportError, AttributeError) as error:
            print(f"not timed: {part} ({error})")


def _timed(function: Callable[..., Any], watch: Watch, part: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            watch.note(part, time.perf_counter() - started)

    return timed


def collect(folder: Path, phase: int) -> Spent:
    """What all processes spent in a phase."""
    found: Spent = defaultdict(lambda: [0, 0.0, 0.0])
    for file in folder.glob(f"{phase}.*.json"):
        for part, (calls, seconds, slowest) in json.loads(file.read_text()).items():
            entry = found[part]
            found[part] = [entry[0] + calls, entry[1] + seconds, max(entry[2], slowest)]
    return found


def main() -> None:
    """Prints a table for each load."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--arm", default="8 probes", choices=OFFLINE)
    parser.add_argument("--loads", type=Workload.parse, nargs="+", default=[Workload(32, 64, 64)])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", default="134m", choices=SHAPES, help="size of the random Llama")
    parser.add_argument(
        "--engine", default='{"gpu_memory_utilization": 0.15}', help="more arguments of vllm.LLM, as JSON"
    )
    args = parser.parse_args()
    arm = ARMS[args.arm]
    if arm.peer and (reason := why_not(args.arm)):
        parser.error(reason)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "phase").write_bytes(b"\0")
        model = write_model(folder / "model", args.model)
        settings = {
            **environment(in_process=False, kv_gib=kv_gib(config_of(args.model).to_dict(), args.loads)),
            FOLDER: temporary,
            "VLLM_PLUGINS": arm.plugins,
            **arm.environment(model, folder),
        }
        os.environ.clear()
        os.environ.update(settings)
        watch = Watch(folder)
        time_parts(watch)
        from vllm import LLM

        llm = LLM(
            model=str(model.folder),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            **engine_arguments(args.loads, json.loads(args.engine)),
        )
        for phase, load in enumerate(args.loads, 1):
            watch.shared[0] = 0
            run(llm, load, 1, arm.wish)
            watch.shared[0] = phase
            for seed in range(args.rounds):
                run(llm, load, 2 + seed, arm.wish)
        watch.shared[0] = 0
        run(llm, Workload(1, 8, 8), 0, arm.wish)  # every process writes down the last phase
        for phase, load in enumerate(args.loads, 1):
            _print(args.arm, load, collect(folder, phase))


def _print(arm: str, load: Workload, spent: Spent) -> None:
    print(
        f"\n{arm}, {load.name}\n| part | calls | us a call | slowest, ms | ms in all |\n|---|---|---|---|---|"
    )
    for part, (calls, seconds, slowest) in sorted(spent.items(), key=lambda one: -one[1][1]):
        print(
            f"| {part} | {calls:.0f} | {seconds / calls * 1e6:.0f} | {slowest * 1e3:.1f} | {seconds * 1e3:.0f} |"
        )


if FOLDER in os.environ and __name__ != "__main__":
    time_parts(Watch(Path(os.environ[FOLDER])))  # a process that was spawned imports the main module anew
if __name__ == "__main__":
    main()
