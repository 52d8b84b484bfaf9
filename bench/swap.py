"""How long clients wait for a token while probes come and go: ``make swap-bench``, or ``python -m bench.swap``.

One monitored server of a random Llama, several clients that stream all the time. A gap is the time between two
chunks of one stream, which is one engine step and what delays it. A window reaches from the request of a change until
``TAIL_SECONDS`` after its answer; what counts is its largest gap, in steps (medians of all quiet gaps). Each window is
compared with the quiet one of the same length right before it, so that what the machine does of itself counts alike on
both sides; ``APART_SECONDS`` lie between the two, so that the gap in which a change was asked for is not in both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.arms import tapped
from bench.model import SHAPES, write_model, write_tokenizer
from bench.running import environment
from bench.served import served
from bench.serving import NAME, serve_command
from monitor.client import ADMIN_KEY_VARIABLE, Server
from monitor.demo.server import free_port
from probes.estimate import bootstrap

Floats = npt.NDArray[np.float64]

KEY = "a-key-of-the-benchmark"
LONGEST = 500
WARM_SECONDS = 15.0
CHANGES = ("attach", "set", "detach")
TOGETHER_SECONDS = 0.5e-3
"""What a client reads within that time was sent together: it waited once."""
TAIL_SECONDS = 0.1
"""A change is felt in the steps after it too."""
APART_SECONDS = 0.1
ALLOWED_STEPS = 2.0
QUARTILES = (0.25, 0.5, 0.75)


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
            "model": NAME,
            "prompt": f"w{self.number + 5} w{self.number + 6}",
            "max_tokens": LONGEST - 100,
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


def gaps(streams: Sequence[Stream], start: float, end: float) -> list[float]:
    """Seconds between two chunks of one completion, of all that lie at least partly between ``start`` and ``end``."""
    return [
        later - earlier
        for stream in streams
        for chunks in stream.chunks
        for earlier, later in pairwise(chunks)
        if later >= start and earlier <= end
    ]


@dataclass(frozen=True)
class Change:
    """One change of probes: when it was asked for and answered (seconds, monotonic)."""

    name: str
    asked: float
    answered: float

    @property
    def seconds(self) -> float:
        """Length of its window."""
        return self.answered + TAIL_SECONDS - self.asked


def measure(url: str, coming: str, rounds: int, clients: int, pause: float) -> dict[str, Any]:
    """Streams all the time, and changes with pauses between them. ``coming``: the probe that comes and goes."""
    server, stop = Server(url, admin_key=KEY), threading.Event()
    streams = [Stream(url, number, stop) for number in range(clients)]
    threads = [threading.Thread(target=stream.run) for stream in streams]
    apply: dict[str, Callable[[], Any]] = {
        "attach": lambda: server.attach(f"{coming}.safetensors"),
        "set": lambda: server.change(coming, {"threshold": 2.5, "action": "alert"}),
        "detach": lambda: server.detach(coming),
    }
    changes: list[Change] = []
    for thread in threads:
        thread.start()
    try:
        time.sleep(WARM_SECONDS)
        check(streams)
        for _ in range(rounds):
            for name in CHANGES:
                # Room for a quiet window as long as the last of this kind, once the last change is over.
                time.sleep(max([pause, *(2 * one.seconds + APART_SECONDS for one in changes[-3:])]))
                asked = time.monotonic()
                apply[name]()
                changes.append(Change(name, asked, time.monotonic()))
                time.sleep(TAIL_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check(streams)
    return report(streams, changes)


def check(streams: Sequence[Stream]) -> None:
    """Ends the benchmark where a stream broke: a dropped request is worse than any gap."""
    if faults := [fault for stream in streams for fault in stream.faults]:
        raise SystemExit("; ".join(faults))


def report(streams: Sequence[Stream], changes: Sequence[Change]) -> dict[str, Any]:
    """By kind of change: the largest gap of its windows and of the quiet ones before, in steps."""
    over = [float("-inf"), *(change.asked + change.seconds for change in changes)]
    pairs: list[tuple[Change, list[float], list[float]]] = []
    for change, free_since in zip(changes, over, strict=False):
        end = change.asked - APART_SECONDS
        begin = end - change.seconds
        quiet = gaps(streams, begin, end)
        during = gaps(streams, change.asked, change.asked + change.seconds)
        if begin >= free_since and quiet and during:
            pairs.append((change, during, quiet))
    step = statistics.median([gap for _, _, quiet in pairs for gap in quiet])
    found: dict[str, Any] = {"step_ms": step * 1000, "left_out": len(changes) - len(pairs), "changes": {}}
    for name in CHANGES:
        own = [pair for pair in pairs if pair[0].name == name]
        largest = np.array([[max(during), max(quiet)] for _, during, quiet in own]) / step
        found["changes"][name] = compare(largest[:, 0], largest[:, 1])
        found["changes"][name]["request_ms"] = [(one.answered - one.asked) * 1000 for one, _, _ in own]
    return found


def compare(during: Floats, quiet: Floats) -> dict[str, Any]:
    """Largest gaps in steps, ``[n]`` each, paired: quartiles, shares under two steps, and 95% bootstrap intervals over
    pairs of the median difference and of the difference of the shares."""
    difference = bootstrap(during - quiet, np.median)
    share = bootstrap((during < ALLOWED_STEPS).astype(float) - (quiet < ALLOWED_STEPS), np.mean)
    return {
        "windows": len(during),
        "during_steps": during.tolist(),
        "quiet_steps": quiet.tolist(),
        "during_quartiles": np.quantile(during, QUARTILES).tolist(),
        "quiet_quartiles": np.quantile(quiet, QUARTILES).tolist(),
        "during_share": float((during < ALLOWED_STEPS).mean()),
        "quiet_share": float((quiet < ALLOWED_STEPS).mean()),
        "difference": difference.value,
        "difference_interval": [difference.low, difference.high],
        "share_interval": [share.low, share.high],
    }


def serve_and_measure(size: str, rounds: int, clients: int, pause: float) -> dict[str, Any]:
    """The server, with one probe that stays, and the measurement on it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", size)
        write_tokenizer(model.folder)
        layers = tapped("three", model.layers)
        staying, coming = model.write_probes(Path(folder) / "probes", 2, layers)
        settings = {
            "PROBEWATCH_TAP_LAYERS": ",".join(map(str, layers)),
            "PROBEWATCH_PROBES": str(staying),
            "PROBEWATCH_PROBE_DIR": str(coming.parent),
            "PROBEWATCH_EVIDENCE_PATH": "off",
            ADMIN_KEY_VARIABLE: KEY,
        }
        command = serve_command(model, port, LONGEST, clients)
        child = {**environment(in_process=False, kv_gib=1), **settings}
        with served(command, child, port, Path(folder) / "server.log") as url:
            return measure(url, coming.stem, rounds, clients, pause)


def printed(result: dict[str, Any]) -> str:
    """A table with a line for each kind of change."""
    lines = [
        f"a step is {result['step_ms']:.1f} ms; largest gap of a window in steps: median [quartiles], share under "
        f"{ALLOWED_STEPS:g}; intervals of 95% over windows"
    ]
    for name, one in result["changes"].items():
        sides = [
            "{1:.2f} [{0:.2f}, {2:.2f}]".format(*one[f"{side}_quartiles"]) + f" {one[f'{side}_share']:4.0%}"
            for side in ("during", "quiet")
        ]
        low, high = one["difference_interval"]
        least, most = one["share_interval"]
        lines.append(
            f"{name:7}{one['windows']:3} windows: {sides[0]}, quiet {sides[1]}; median difference "
            f"{one['difference']:+.2f} [{low:+.2f}, {high:+.2f}], of shares "
            f"{one['during_share'] - one['quiet_share']:+.0%} [{least:+.0%}, {most:+.0%}]; "
            f"the request itself {statistics.median(one['request_ms']):.0f} ms"
        )
    if result["left_out"]:
        lines.append(f"{result['left_out']} changes are left out: none as long and quiet came before them")
    return "\n".join(lines)


def main() -> int:
    """Prints the largest gaps around changes and in quiet times."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="of attach, set and detach")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--model", default="134m", choices=SHAPES, help="size of the random Llama")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between changes, at least")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    result = serve_and_measure(options.model, options.rounds, options.clients, options.pause)
    print(printed(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
