"""How long clients wait for a token while probes come and go: ``make swap-bench``, or ``python -m bench.swap``.

One monitored server of the shipped model, several clients that stream all the time. A gap is the time between two
chunks of one stream, which is one engine step and what delays it. Gaps around each change are compared with those of
quiet times of the same length, of which there are as many, in turn. A step is the median quiet gap.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from monitor.client import ADMIN_KEY_VARIABLE, Server
from monitor.demo.server import ChildServer, free_port, serve_command, serve_environment
from monitor.shipped import MODEL_NAME, paths

KEY = "a-key-of-the-benchmark"
TAPPED = "0,1,2,3,4"
WARM_SECONDS = 15.0
CHANGES = ("attach", "set", "detach")
TOGETHER_SECONDS = 0.5e-3
"""What a client reads within that time was sent together: it waited once."""
NOISY_STEPS = 4.0
"""A quiet gap as long says that the server does not get the cores it needs, whatever the monitor does."""


@dataclass
class Stream:
    """A client that streams one long completion after the other."""

    url: str
    number: int
    stop: threading.Event
    chunks: list[list[float]] = field(default_factory=list)
    """When each chunk came (seconds, monotonic), a list a completion."""
    faults: list[str] = field(default_factory=list)

    def arrived(self, when: float) -> None:
        """Notes a chunk, unless it came together with the one before."""
        own = self.chunks[-1]
        if not own or when - own[-1] > TOGETHER_SECONDS:
            own.append(when)

    def run(self) -> None:
        """Until told to stop."""
        body = {
            "model": MODEL_NAME,
            "prompt": f"The bridge {self.number} is",
            "max_tokens": 400,
            "temperature": 1,
            "ignore_eos": True,
            "stream": True,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            while not self.stop.is_set():
                self.chunks.append([])
                with urllib.request.urlopen(request, timeout=120) as reply:
                    for line in reply:
                        if line.startswith(b"data: {"):
                            self.arrived(time.monotonic())
                        if self.stop.is_set():
                            return
        except OSError as error:
            said = error.read()[:300] if isinstance(error, urllib.error.HTTPError) else ""
            self.faults.append(f"client {self.number}: {type(error).__name__}: {error} {said!r}")


def gaps(streams: list[Stream], start: float, end: float) -> list[float]:
    """Seconds between two chunks of one completion, of all that lie at least partly between ``start`` and ``end``."""
    return [
        later - earlier
        for stream in streams
        for chunks in stream.chunks
        for earlier, later in pairwise(chunks)
        if later >= start and earlier <= end
    ]


def measure(url: str, rounds: int, clients: int, seconds: float) -> dict[str, Any]:
    """Streams all the time; quiet windows and changes in turn."""
    server, stop = Server(url, admin_key=KEY), threading.Event()
    streams = [Stream(url, number, stop) for number in range(clients)]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    apply: dict[str, Callable[[], Any]] = {
        "attach": lambda: server.attach("deception.safetensors"),
        "set": lambda: server.change("deception", {"threshold": 2.5, "action": "alert"}),
        "detach": lambda: server.detach("deception"),
    }
    windows: list[tuple[str, float, float, float]] = []
    for thread in threads:
        thread.start()
    try:
        time.sleep(WARM_SECONDS)
        check(streams)
        for _ in range(rounds):
            for name in CHANGES:
                start = time.monotonic()
                time.sleep(seconds)
                windows.append(("quiet", start, time.monotonic(), 0.0))
                start = time.monotonic()
                apply[name]()
                took = time.monotonic() - start
                time.sleep(max(0.0, seconds - took))
                windows.append((name, start, time.monotonic(), took))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check(streams)
    return report(streams, windows)


def check(streams: list[Stream]) -> None:
    """Ends the benchmark where a stream broke: a dropped request is worse than any gap."""
    if faults := [fault for stream in streams for fault in stream.faults]:
        raise SystemExit("; ".join(faults))


def report(streams: list[Stream], windows: list[tuple[str, float, float, float]]) -> dict[str, Any]:
    """Gaps in milliseconds by what happened in the window, and their ratios."""
    found: dict[str, Any] = {}
    for name in ("quiet", *CHANGES):
        own = [(gaps(streams, start, end), took) for kind, start, end, took in windows if kind == name]
        every = [gap * 1000 for of_window, _ in own for gap in of_window]
        found[name] = {
            "windows": len(own),
            "gaps": len(every),
            "median_ms": statistics.median(every),
            "p99_ms": statistics.quantiles(every, n=100)[98],
            "largest_ms": max(every),
            "largest_of_each_window_ms": [max(of_window, default=0.0) * 1000 for of_window, _ in own],
            "request_ms": [took * 1000 for _, took in own],
        }
    step, quiet = found["quiet"]["median_ms"], found["quiet"]["largest_ms"]
    during = max(found[name]["largest_ms"] for name in CHANGES)
    return {
        "gaps": found,
        "step_ms": step,
        "largest_during_ms": during,
        "largest_during_over_largest_quiet": during / quiet,
        "largest_during_in_steps": during / step,
        "largest_quiet_in_steps": quiet / step,
    }


def serve_and_measure(rounds: int, clients: int, seconds: float) -> dict[str, Any]:
    """The server, and the measurement on it."""
    shipped, port = paths(), free_port()
    probes = [Path(str(path)) for path in shipped["probes"]]  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **serve_environment(os.environ),
            "PROBEWATCH_PROBE_DIR": str(probes[0].parent),
            ADMIN_KEY_VARIABLE: KEY,
        }
        served = [str(path) for path in probes if path.stem == "being-audited"]
        command = [*serve_command(str(shipped["model"]), served, port), "--tap-layers", TAPPED]
        url = f"http://127.0.0.1:{port}"
        server = ChildServer(command, environment, url, Path(folder) / "server.log")
        try:
            server.wait_ready(lambda elapsed, message: None, lambda: False)
            return measure(url, rounds, clients, seconds)
        finally:
            server.stop()


def main() -> int:
    """Prints the gaps and their ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=5, help="of attach, set and detach")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    result = serve_and_measure(options.rounds, options.clients, options.seconds)
    for name, found in result["gaps"].items():
        print(
            f"{name:7} {found['windows']:3} windows: median {found['median_ms']:.1f} ms, 99th {found['p99_ms']:.1f}, "
            f"largest {found['largest_ms']:.1f}; the request itself {statistics.median(found['request_ms']):.0f} ms"
        )
    print(
        f"largest gap around a change {result['largest_during_ms']:.1f} ms: "
        f"{result['largest_during_over_largest_quiet']:.2f} times the largest quiet one, "
        f"{result['largest_during_in_steps']:.2f} steps (quiet: {result['largest_quiet_in_steps']:.2f})"
    )
    if result["largest_quiet_in_steps"] > NOISY_STEPS:
        print(
            f"the largest quiet gap is {result['largest_quiet_in_steps']:.0f} steps long: this machine is too small or "
            "busy with other work, and the figures say nothing of the monitor"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
