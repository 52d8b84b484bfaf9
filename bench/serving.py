"""``make serving-bench``: real servers under vLLM's own open-loop client (``vllm bench serve``), arms in turn.

Each arm is ``vllm serve`` in processes of its own, with HTTP, tokenizer and streaming; stock has no plugin. A round
sends the same requests to every server, one server after the other, in an order that rotates: at a rate (Poisson
arrivals, whether the server keeps up or not), or all at once. The prefix cache is emptied before each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.arms import AGAIN, ARMS, STOCK, Arm
from bench.model import SHAPES, BenchModel, write_model, write_tokenizer
from bench.report import publish
from bench.rounds import Round, measure
from bench.running import environment, kv_gib, tidy_when_terminated
from bench.usage import cpu_seconds, peak_mib
from bench.workload import Workload
from monitor.client import Server
from monitor.demo.server import ChildServer, free_port

DEFAULT_ARMS = ("8 probes", "8 probes streamed", "1000 probes")
NAME = "bench"


@dataclass(frozen=True)
class Offered(Workload):
    """``requests`` in all, ``rate`` of them a second."""

    rate: float = float("inf")

    @property
    def name(self) -> str:
        """For tables."""
        pace = "at once" if self.rate == float("inf") else f"at {self.rate:g} a second"
        return f"{super().name}, {pace}"

    @classmethod
    def parse(cls, text: str) -> Offered:
        """From ``REQUESTSxIN+OUT`` or ``REQUESTSxIN+OUT@RATE``."""
        load, _, rate = text.partition("@")
        base = Workload.parse(load)
        return cls(base.requests, base.tokens_in, base.tokens_out, float(rate or "inf"))


class Served:
    """An arm's server."""

    def __init__(self, arm: Arm, model: BenchModel, loads: list[Offered], folder: Path, log: Path) -> None:
        self.arm, self._model = arm, model
        room = kv_gib(json.loads((model.folder / "config.json").read_text()), loads)
        port, before = free_port(), set(psutil.Process().children())
        self.url = f"http://127.0.0.1:{port}"
        longest = max(load.tokens_in + load.tokens_out for load in loads) + 64
        command = serve_command(
            model, port, longest, max(load.requests for load in loads), monitored=arm.monitored
        )
        env = {
            **environment(in_process=False, kv_gib=room),
            "VLLM_PLUGINS": arm.plugins,
            "VLLM_SERVER_DEV_MODE": "1",  # for the route that empties the prefix cache
            **arm.environment(model, folder),
        }
        if arm.monitored:
            env["PROBEWATCH_EVIDENCE_PATH"] = "off"
        self._child = ChildServer(command, env, self.url, log)
        [self._process] = set(psutil.Process().children()) - before

    def up(self) -> None:
        """Waits for it."""
        begun = time.monotonic()
        self._child.wait_ready(lambda elapsed, message: None, lambda: False)
        print(f"{self.arm.name}: server up ({time.monotonic() - begun:.0f} s)", flush=True)

    def end(self) -> None:
        """And everything it started."""
        self._child.stop()

    def round(self, load: Offered, seed: int) -> Round:
        """Sends the requests of a round. Ends the benchmark where a request failed, or a token was not scored."""
        yield from ()  # one turn
        reset = urllib.request.Request(f"{self.url}/reset_prefix_cache", method="POST")
        urllib.request.urlopen(reset, timeout=60).close()
        before = cpu_seconds(self._process)
        found = run_client(self.url, self._model.folder, load, seed)
        used = cpu_seconds(self._process) - before
        if found["completed"] != load.requests:
            raise SystemExit(
                f"{self.arm.name}: {found['completed']} of {load.requests} requests were answered"
            )
        self._check()
        measured = {
            "tokens_per_second": found["total_token_throughput"],
            "inter_token_seconds": found["median_itl_ms"] / 1000,
            "inter_token_p99_seconds": found["p99_itl_ms"] / 1000,
            "first_token_seconds": found["median_ttft_ms"] / 1000,
            "cpu_seconds": used,
            "memory_mib": peak_mib(self._process),
        }
        return {name: float(value) for name, value in measured.items()}

    def _check(self) -> None:
        if self.arm.probes and set(Server(self.url).status()["coverage"].values()) != {1.0}:
            raise SystemExit(
                f"{self.arm.name}: not every token was scored; it would compare the wrong things"
            )
        if self.arm.expose and b'"probewatch"' not in self._streamed():
            raise SystemExit(
                f"{self.arm.name}: a streamed reply tells no verdict; it would compare the wrong things"
            )

    def _streamed(self) -> bytes:
        body = {"model": NAME, "prompt": "w5 w6", "max_tokens": 2, "stream": True}
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), head)
        with urllib.request.urlopen(request, timeout=60) as reply:
            said: bytes = reply.read()
        return said


def serve_command(
    model: BenchModel, port: int, longest: int, requests: int, monitored: bool = True
) -> list[str]:
    """Of a server of the random model. ``longest``: tokens of a request; ``requests``: at once."""
    module = "monitor.cli" if monitored else "monitor.seam.serve"  # the latter is vLLM's own command line
    return [
        *(sys.executable, "-m", module, "serve", str(model.folder)),
        *("--host=127.0.0.1", f"--port={port}", f"--served-model-name={NAME}"),
        *("--dtype=bfloat16", "--gpu-memory-utilization=0.15", "--max-num-batched-tokens=2048"),
        *(f"--max-model-len={longest}", f"--max-num-seqs={requests}"),
    ]


def run_client(url: str, tokenizer: Path, load: Offered, seed: int) -> dict[str, Any]:
    """``vllm bench serve``, in this process: importing vLLM takes longer than a round."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    options = ["--base-url", url, "--model", NAME, "--tokenizer", str(tokenizer), "--dataset-name", "random"]
    options += ["--random-input-len", str(load.tokens_in), "--random-output-len", str(load.tokens_out)]
    options += ["--num-prompts", str(load.requests), "--request-rate", str(load.rate), "--seed", str(seed)]
    options += ["--temperature", "0", "--disable-tqdm", "--percentile-metrics", "ttft,itl"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found: dict[str, Any] = bench_serve(parser.parse_args(options))
    return found


@contextlib.contextmanager
def servers(args: argparse.Namespace, folder: Path) -> Iterator[list[Served]]:
    """Of all arms, started one after the other."""
    model = write_model(folder / "model", args.model)
    write_tokenizer(model.folder)
    running: list[Served] = []
    try:
        for name in (STOCK, AGAIN, *args.arms):
            log = args.log.with_suffix(f".{name.replace(' ', '-')}.log")
            running.append(Served(ARMS[name], model, args.loads, folder, log))
            running[-1].up()
        yield running
    finally:
        for one in running:
            one.end()


def main() -> int:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=25.0, help="stop after it, with what there is")
    known = [name for name, arm in ARMS.items() if arm.monitored]
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=known)
    loads = [Offered(16, 64, 64, 2.0), Offered(32, 64, 64)]
    parser.add_argument(
        "--loads", type=Offered.parse, nargs="+", default=loads, metavar="REQUESTSxIN+OUT[@RATE]"
    )
    parser.add_argument("--model", default="134m", choices=SHAPES, help="size of the random Llama")
    parser.add_argument("--json", type=Path, help="write every round and ratio here")
    parser.add_argument("--picture", type=Path, help="draw the ratios here (PNG or SVG)")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir()) / "probewatch-serving")
    args = parser.parse_args()
    tidy_when_terminated()
    os.environ["HF_HUB_OFFLINE"] = "1"
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as temporary, servers(args, Path(temporary)) as running:
        found = measure(running, args.loads, args.rounds, until)
    publish([found], args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
