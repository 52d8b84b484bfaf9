"""``make startup-bench``: what the monitor adds to the start of an engine, cold and warm, and to its memory.

The plugin where nothing is configured: milliseconds of its import, in a new interpreter each time, and what that
interpreter had to load for it. Then engines, each in a new process: stock vLLM twice (their difference is the noise
floor) and monitored ones, first with an empty compile cache, then with the one that the first start has left. A warm
start must find its graphs there, taps included, and must score what it is asked: both are checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.arms import AGAIN, ARMS, OFFLINE, STOCK, Arm, able
from bench.model import SHAPES, BenchModel, write_model
from bench.rounds import alone
from bench.running import environment, started, tidy_when_terminated
from bench.targets import reached
from bench.workload import Workload
from probes.estimate import Estimate, hodges_lehmann

MOST_IMPORT_MS, MOST_ADDED_SECONDS = 50.0, 2.0
"""The targets."""
LOAD = Workload(4, 64, 8)
_IMPORT = """
import json, sys, time
before = set(sys.modules)
begun = time.perf_counter()
from monitor import plugin
plugin.register()
seconds = time.perf_counter() - begun
print(json.dumps({"ms": 1000 * seconds, "torch": "torch" in sys.modules, "new": sorted(sys.modules.keys() - before)}))
"""


@dataclass(frozen=True)
class Start:
    """One start of an engine. Seconds since its process was there."""

    arm: str
    cold: bool
    seconds: float
    cpu_seconds: float
    compile_seconds: float
    """That torch has spent on tracing and compiling, or on loading what it had compiled."""
    loaded: bool
    """Whether it found all its graphs in the cache."""
    memory_mib: float
    """Largest resident memory, after it has served."""


def imports(times: int) -> list[dict[str, Any]]:
    """Of the inert plugin, each in an interpreter of its own."""
    env = environment(in_process=True, kv_gib=1)
    runs = [
        subprocess.run([sys.executable, "-c", _IMPORT], env=env, capture_output=True, text=True, check=True)
        for _ in range(times)
    ]
    return [json.loads(one.stdout) for one in runs]


def start(arm: Arm, cold: bool, model: BenchModel, folder: Path, cache: Path) -> Start:
    """Starts an engine, lets it serve a little, ends it. Ends the benchmark where it did not score what it should."""
    log = folder / f"{arm.name.replace(' ', '-')}.log"
    env = {
        **environment(in_process=True, kv_gib=1),
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    engine = {
        "max_model_len": 512,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 2048,
        "gpu_memory_utilization": 0.15,
    }
    running = started(arm, model, folder, engine, log, env)
    try:
        ready = running.answer()
        seconds = time.monotonic() - running.begun
        served = alone(running, LOAD, seed=0)
    finally:
        running.end()
    return Start(
        arm.name,
        cold,
        seconds,
        ready["cpu_seconds"],
        ready["compile_seconds"],
        ready["cache_hits"] > 0 and not ready["cache_misses"],
        served["memory_mib"],
    )


def starts(arms: Sequence[str], rounds: int, size: str) -> list[Start]:
    """Of every arm: a cold start, then ``rounds`` warm ones, arms in turn."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_model(folder / "model", size)
        for number in range(rounds + 1):
            turn = number % len(arms)
            for name in (*arms[turn:], *arms[:turn]):
                one = start(
                    ARMS[name], number == 0, model, folder, folder / f"cache-{name.replace(' ', '-')}"
                )
                print(one, flush=True)
                found.append(one)
    return found


def table(found: Sequence[Start], arms: Sequence[str]) -> str:
    """Markdown; medians of each arm and their difference to that of all starts of stock."""
    heads = (
        "engine",
        "start",
        "seconds",
        "added",
        "CPU seconds",
        "added",
        "compiled for, s",
        "graphs from cache",
        "peak resident, MiB",
        "added",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for cold in (True, False):
        own = {name: [one for one in found if one.arm == name and one.cold == cold] for name in arms}
        stock = own[STOCK] + own[AGAIN]
        for name in arms:
            cells = []
            for field in ("seconds", "cpu_seconds"):
                here = _middle(own[name], field)
                cells += [f"{here:.1f}", f"{here - _middle(stock, field):+.1f}"]
            memory = _middle(own[name], "memory_mib")
            cells += [
                f"{_middle(own[name], 'compile_seconds'):.1f}",
                "yes" if all(o.loaded for o in own[name]) else "no",
            ]
            cells += [f"{memory:.0f}", f"{memory - _middle(stock, 'memory_mib'):+.0f}"]
            lines.append(f"| {name} | {'cold' if cold else 'warm'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def added(found: Sequence[Start], name: str) -> Estimate:
    """Seconds that an arm's warm starts take longer: in each round than the mean of both stock arms, those of stock
    again than the other's."""
    own, stock, again = (
        np.array([one.seconds for one in found if one.arm == arm and not one.cold])
        for arm in (name, STOCK, AGAIN)
    )
    return hodges_lehmann(own - (stock if name == AGAIN else (stock + again) / 2))


def verdict(found: Estimate, null: Estimate) -> str:
    """``met`` where the interval excludes a longer start, ``missed`` where it excludes the target, else
    ``unresolved``; so it is where stock differs from itself."""
    if not null.low <= 0.0 <= null.high:
        return "unresolved"
    return reached(found, MOST_ADDED_SECONDS)


def _middle(starts_: Sequence[Start], field: str) -> float:
    return float(statistics.median(getattr(one, field) for one in starts_))


def main() -> int:
    """Prints both; status 1 where a target is missed or a warm start compiled anew."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--imports", type=int, default=20, help="interpreters")
    parser.add_argument(
        "--rounds", type=int, default=6, choices=range(1, 100), metavar="N", help="warm starts of each engine"
    )
    arms = [name for name in OFFLINE if name not in (STOCK, AGAIN)]
    parser.add_argument("--arms", nargs="+", default=["8 probes", "1000 probes"], choices=arms)
    parser.add_argument("--model", default="134m", choices=SHAPES, help="size of the random Llama")
    parser.add_argument("--json", type=Path, help="keep every start here")
    args = parser.parse_args()
    tidy_when_terminated()
    runs = imports(args.imports)
    milliseconds = [run["ms"] for run in runs]
    torch = any(run["torch"] for run in runs)
    middle = statistics.median(milliseconds)
    print(
        f"inert plugin: median {middle:.1f} ms of {len(runs)}, largest {max(milliseconds):.1f} ms; torch: {torch}; "
        f"imports {', '.join(runs[0]['new'])}"
    )
    args.arms = able(args.arms)
    arms = [STOCK, AGAIN, *args.arms]
    found = starts(arms, args.rounds, args.model)
    print(table(found, arms))
    if args.json:
        args.json.write_text(
            json.dumps({"imports": runs, "starts": [asdict(one) for one in found]}, indent=1)
        )
    missed = [] if middle < MOST_IMPORT_MS and not torch else ["import"]
    missed += [f"{one.arm} compiled anew" for one in found if not one.cold and not one.loaded]
    null = added(found, AGAIN)
    print(f"{AGAIN}: warm start {null:+.1f} s")
    for name in args.arms:
        own = added(found, name)
        said = verdict(own, null)
        print(f"{name}: warm start {own:+.1f} s, target {MOST_ADDED_SECONDS:g} s: {said}")
        missed += [f"start of {name}"] if said == "missed" else []
    print(f"missed: {', '.join(missed) or 'nothing'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
