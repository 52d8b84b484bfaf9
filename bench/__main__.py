"""``make bench``: stock vLLM against monitored vLLM, alternating rounds, paired ratios.

Every arm is an engine in a process of its own; one works at a time. Each round gives all arms the same seed, in an
order that rotates; in one process they alternate step by step. All engines are started many times, for where its
memory happens to lie makes an engine some percent slower or faster as long as it lives: a start gives one figure, the
median of its rounds, of throughput step by step where arms alternate so. Of a single start the rounds are compared. An
interval takes six of either. Two arms are stock vLLM: their ratio is the noise floor, and the others' is to both.
What the monitor does is inside the measured time: taps, bookkeeping, accounting, verdicts, counters, margins; not the
comparison with benign traffic, which begins at more requests than a start has (``bench.host`` measures it), nor a reply
that nobody reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.arms import AGAIN, ARMS, OFFLINE, STOCK, able
from bench.forked import Forked, forget, prepare
from bench.model import SHAPES, BenchModel, config_of, write_model
from bench.ratios import Found
from bench.report import publish
from bench.rounds import measure
from bench.running import (
    Running,
    engine_arguments,
    environment,
    kv_gib,
    started,
    tidy_when_terminated,
)
from bench.workload import Workload

DEFAULT_ARMS = ("8 probes", "8 probes all layers", "1000 probes")


@contextlib.contextmanager
def engines(args: argparse.Namespace, model: BenchModel, folder: Path, first: int) -> Iterator[list[Running]]:
    """The engines of all arms, beginning with arm ``first``; they start side by side where ``--together`` says so."""
    engine = engine_arguments(args.loads, json.loads(args.engine))
    env = environment(args.processes == 1, kv_gib(config_of(args.model).to_dict(), args.loads))
    alternating = args.processes == 1  # an engine of its own would not wait
    running: list[Running] = []
    try:
        names = [STOCK, AGAIN, *args.arms]
        for name in able((*names[first % len(names) :], *names[: first % len(names)])):
            log = args.log.with_suffix(f".{name.replace(' ', '-')}.log")
            running.append(started(ARMS[name], model, folder, engine, log, env, alternating, launch=Forked))
            if not args.together:
                _up(running[-1])
        if args.together:
            for one in running:
                _up(one)
        yield running
    finally:
        for one in running:
            one.end()
        forget()


def _up(one: Running) -> None:
    begun = time.perf_counter()
    one.answer()
    print(f"{one.arm.name}: engine up ({time.perf_counter() - begun:.0f} s)", flush=True)


def main() -> int:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--starts",
        type=int,
        default=10,
        help="of all engines; an interval takes 6 of them, or of the rounds of a single one",
    )
    parser.add_argument("--rounds", type=int, default=3, help="after each start")
    parser.add_argument("--minutes", type=float, default=35.0, help="stop after it, with what there is")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(DEFAULT_ARMS),
        choices=[a for a in OFFLINE if a not in (STOCK, AGAIN)],
    )
    parser.add_argument(
        "--loads", type=Workload.parse, nargs="+", default=[Workload(32, 64, 64)], metavar="REQUESTSxIN+OUT"
    )
    parser.add_argument("--model", default="134m", choices=SHAPES, help="size of the random Llama")
    parser.add_argument("--device", default="cpu", help="where its weights are drawn")
    parser.add_argument(
        "--engine",
        default='{"max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.15}',
        help="more arguments of vllm.LLM, as JSON",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        choices=(1, 2),
        help="1: front end and engine together, so that nothing is hidden behind a step, and arms alternate step by "
        "step; 2: apart, as in a server, and arms alternate round by round",
    )
    parser.add_argument("--together", action="store_true", help="start all engines at once")
    parser.add_argument("--folder", type=Path, help="keep model and artifacts here")
    parser.add_argument("--json", type=Path, help="write every round and ratio here")
    parser.add_argument("--picture", type=Path, help="draw throughput and latencies here (PNG or SVG)")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "probewatch-bench")
    args = parser.parse_args()
    tidy_when_terminated()
    prepare()
    until = time.monotonic() + 60 * args.minutes
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        model = write_model(folder / "model", args.model, args.device)
        for number in range(args.starts):
            with engines(args, model, folder, first=number) as running:
                found.append(measure(running, args.loads, args.rounds, until))
            if time.monotonic() > until:
                print(f"out of time after {number + 1} of {args.starts} starts", flush=True)
                break
    publish(found, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
