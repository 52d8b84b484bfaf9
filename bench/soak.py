"""Twenty minutes and more of mixed traffic on one monitored server, and what its memory does meanwhile.

    make soak                       # 25 minutes; prints a table and writes JSON with --json FILE
    python -m bench.soak --minutes 5

Chats and completions, streamed and not, several answers, abandoned streams; recent requests are kept at their smallest
bound, so that the bound is reached early. Memory is the resident set of the API server and of the engine (/proc).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from bench.served import served
from monitor.client import Server
from monitor.demo.server import free_port, serve_command, serve_environment
from monitor.shipped import MODEL_NAME, paths
from probes.organism import cases

CLIENTS = 6
SAMPLE_SECONDS = 30.0
SMALLEST_MIB = 50.0
"""Helpers of Python's that are smaller are left out."""


def processes() -> dict[str, int]:
    """Process ids of the server and of everything it started, by name (vLLM renames its own)."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, IndexError):
            continue  # no process, or one that has just ended
        parents[int(entry.name)], names[int(entry.name)] = int(rest.split()[1]), name
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    found = {f"{names[pid]} {pid}": pid for pid in sorted(family - {os.getpid()})}
    return {name: pid for name, pid in found.items() if resident_mib(pid) >= SMALLEST_MIB}


def resident_mib(pid: int) -> float:
    """Resident set of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0  # it has just ended


def client(url: str, seed: int, stop: threading.Event, done: list[int]) -> None:
    """Asks until told to stop; every fifth stream is abandoned in the middle."""
    rng = random.Random(seed)
    asked = cases(400, seed=seed, split="test", conditions=("incentivised", "plain", "audited", "chitchat"))
    while not stop.is_set():
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "messages": list(rng.choice(asked).messages),
            "max_tokens": rng.choice([1, 20, 60]),
            "temperature": rng.choice([0, 1]),
            "stream": rng.random() < 0.5,
        }
        if not body["stream"] and body["temperature"]:
            body["n"] = rng.choice([1, 2, 3])
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            if body["stream"] and rng.random() < 0.2:
                reply.readline()  # and goes away
            else:
                reply.read()
        done[0] += 1


def soak(minutes: float) -> dict[str, Any]:
    """Runs the server and the clients; samples memory."""
    found, port = paths(), free_port()
    artifacts = [str(path) for path in (*found["probes"], *found["vectors"])]  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **serve_environment(os.environ),
            "PROBEWATCH_RECENT_REQUESTS": "1024",
            "PROBEWATCH_EVIDENCE_PATH": str(Path(folder) / "evidence.sqlite"),
        }
        # A small KV cache, so that all of its pages and of vLLM's own records of them are in use early.
        command = [*serve_command(str(found["model"]), artifacts, port), "--num-gpu-blocks-override", "256"]
        with served(command, environment, port, Path(folder) / "server.log") as url:
            return _measure(url, minutes)


def _measure(url: str, minutes: float) -> dict[str, Any]:
    stop, done = threading.Event(), [0]
    threads = [threading.Thread(target=client, args=(url, seed, stop, done)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []
    started = time.monotonic()
    try:
        while (elapsed := time.monotonic() - started) < minutes * 60:
            sample = {role: resident_mib(pid) for role, pid in processes().items()}
            samples.append({"seconds": elapsed, "requests": done[0], **sample})
            print("  ".join(f"{name} {value:.0f}" for name, value in samples[-1].items()), flush=True)
            time.sleep(SAMPLE_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return {"samples": samples, "status": Server(url).status(), "growth": growth(samples)}


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """MiB an hour by least squares over the second half, when every bound has been reached."""
    late = samples[len(samples) // 2 :]
    hours = np.array([sample["seconds"] for sample in late]) / 3600
    roles = [
        role for role in late[0] if role not in ("seconds", "requests") and all(role in one for one in late)
    ]
    return {role: float(np.polyfit(hours, [sample[role] for sample in late], 1)[0]) for role in roles}


def main() -> None:
    """Prints the samples, the growth and the coverage."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    result = soak(options.minutes)
    first, last = result["samples"][len(result["samples"]) // 2], result["samples"][-1]
    print(
        f"{last['requests']:.0f} requests in {last['seconds'] / 60:.1f} minutes; "
        f"coverage {result['status']['coverage']}"
    )
    for role, slope in result["growth"].items():
        print(
            f"{role}: {first[role]:.0f} MiB half way, {last[role]:.0f} MiB at the end, {slope:+.1f} MiB an hour"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
