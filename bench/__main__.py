"""``make bench``: stock vLLM against monitored vLLM, alternating rounds, medians of paired ratios.

Three engines run side by side, one at a time: two stock ones (their ratio is the noise floor) and a
monitored one. Each round gives all arms the same seed, in an order that rotates. Everything the monitor
does is inside the measured time: taps, bookkeeping, accounting, verdicts, metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.model import write_model, write_probes

ARMS = ("stock", "stock again", "monitored")
MEASURES = {"tokens_per_second": "throughput", "inter_token_seconds": "inter-token latency"}


@dataclass
class Arm:
    """A running engine process and what it measured."""

    name: str
    process: subprocess.Popen[str]
    rounds: list[dict[str, float]] = field(default_factory=list)

    def send(self, line: str) -> None:
        """Writes one line to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer; ends the benchmark if the engine died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the {self.name!r} engine ended with status {self.process.wait()}; see --log")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def running(args: argparse.Namespace, folder: Path) -> Iterator[list[Arm]]:
    """The three engines, started one after the other."""
    model = write_model(folder / "model")
    probes = write_probes(folder, model, args.probes, tuple(args.layers))
    job = {"model": str(model), **{k: getattr(args, k) for k in ("requests", "tokens_in", "tokens_out")}}
    arms: list[Arm] = []
    with args.log.open("w") as log:
        try:
            for name in ARMS:
                # The arms differ by what is set here and by nothing that the caller's shell happens to hold.
                inherited = {
                    k: v
                    for k, v in os.environ.items()
                    if k != "VLLM_PLUGINS" and not k.startswith("PROBEWATCH_")
                }
                environment = {
                    **inherited,
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                    "VLLM_USE_AOT_COMPILE": "0",
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                }
                if name == "monitored":
                    environment["PROBEWATCH_PROBES"] = ",".join(map(str, probes))
                process = subprocess.Popen(
                    [sys.executable, "-m", "bench.arm"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                )
                arms.append(Arm(name, process))
                arms[-1].send(json.dumps(job))
                arms[-1].answer()
                print(f"{name}: engine up", flush=True)
            yield arms
        finally:
            for arm in arms:
                arm.process.kill()
                arm.process.wait()


def check_arm(name: str, coverage: float | None) -> None:
    """Ends the benchmark unless the monitored arm scored every token and the stock arms none."""
    if coverage != (1.0 if name == "monitored" else None):
        raise SystemExit(
            f"the {name!r} arm has coverage {coverage}; the benchmark would compare the wrong things"
        )


def measure(arms: list[Arm], rounds: int) -> None:
    """Warms every arm up, then runs paired rounds in rotating order."""
    for number in range(-1, rounds):
        for arm in arms[number % 3 :] + arms[: number % 3]:
            arm.send(str(1000 + number))
            result = arm.answer()
            check_arm(arm.name, result.pop("coverage"))
            if number >= 0:
                arm.rounds.append(result)
        if number >= 0:
            shown = ", ".join(f"{arm.name} {arm.rounds[-1]['tokens_per_second']:.0f}" for arm in arms)
            print(f"round {number + 1}: tokens/s {shown}", flush=True)


def ratio(arms: list[Arm], arm: str, measure_name: str) -> dict[str, float]:
    """Median of the paired ratios to stock, with a 95% bootstrap interval of that median."""
    of = {a.name: np.array([r[measure_name] for r in a.rounds]) for a in arms}
    paired = of[arm] / of["stock"]
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(paired, (10_000, len(paired))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {"median": float(np.median(paired)), "low": float(low), "high": float(high)}


def main() -> int:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens-in", type=int, default=64)
    parser.add_argument("--tokens-out", type=int, default=64)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[4, 8], help="0-based blocks that are probed"
    )
    parser.add_argument("--json", type=Path, help="write every round and ratio here")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "probewatch-bench.log")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(args, Path(folder)) as arms:
        measure(arms, args.rounds)
    stock = arms[0].rounds
    for name, label in MEASURES.items():
        print(f"stock {label}: median {statistics.median(r[name] for r in stock):.4g}")
    report: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(args).items()}, "ratios": {}}
    print(f"\nratio to stock, {args.rounds} paired rounds: median [95% interval]")
    for arm in ARMS[1:]:
        for name, label in MEASURES.items():
            found = report["ratios"][f"{arm}: {label}"] = ratio(arms, arm, name)
            what = "null (stock against stock)" if arm != "monitored" else "monitored"
            print(f"{what:28s}{label:22s}{found['median']:.4f} [{found['low']:.4f}, {found['high']:.4f}]")
    if args.json:
        report["rounds"] = {arm.name: arm.rounds for arm in arms}
        args.json.write_text(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
