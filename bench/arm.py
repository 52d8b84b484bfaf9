"""One arm: an engine in its own process that runs a round whenever a line arrives on standard input."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import psutil

from bench.workload import Workload, run


def _coverage(llm: Any) -> float | None:
    """Lowest share of tokens scored by any probe so far; None in an engine without probes."""
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    found = {} if tap is None else tap.engines.coverage()
    return min(found.values()) if found else None


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes())


def main() -> None:
    """Reads one JSON line of settings, then a JSON line a round; answers each with one JSON line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM writes to standard output; the answers must stay alone on theirs
    job = json.loads(sys.stdin.readline())
    from vllm import LLM

    llm = LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        disable_log_stats=False,
        dtype="bfloat16",
        **job["engine"],
    )
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        before = _cpu_seconds()
        result: dict[str, Any] = run(llm, Workload(*asked["load"]), asked["seed"], job["steered"])
        result["cpu_seconds"] = _cpu_seconds() - before
        result["memory_mib"] = sum(process.memory_info().rss for process in _processes()) / 2**20
        result["coverage"] = _coverage(llm)
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
