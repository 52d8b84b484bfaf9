"""One arm: an engine in its own process that runs a round, or a step of it, for each line on standard input."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

import psutil

from bench.usage import cpu_seconds, peak_mib
from bench.workload import Turns, Workload, run


def _coverage(llm: Any) -> float | None:
    """Lowest share of tokens scored by any probe so far; None in an engine without probes."""
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    found = {} if tap is None else tap.engines.coverage()
    return min(found.values()) if found else None


def _settle(llm: Any) -> None:
    """What waits for somebody who reads the metrics: adding up counters and margins."""
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    if tap is not None:
        tap.engines.first.metrics.flush()


def _compiled() -> dict[str, float]:
    """What torch has compiled in this process so far, and how often it found the result in its cache."""
    from torch._dynamo.utils import counters, cumulative_time_spent_ns

    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    return {
        "compile_seconds": cumulative_time_spent_ns["entire_frame_compile"] / 1e9,
        "cache_hits": inductor["fxgraph_cache_hit"] + autograd["autograd_cache_hit"],
        "cache_misses": inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"],
    }


def main() -> None:
    """Reads one JSON line of settings, then a JSON line a round or a step; answers each with one JSON line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM writes to standard output; the answers must stay alone on theirs
    job, own = json.loads(sys.stdin.readline()), psutil.Process()
    from vllm import LLM

    llm = LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        disable_log_stats=False,
        dtype="bfloat16",
        **job["engine"],
    )
    print(json.dumps({"ready": True, "cpu_seconds": cpu_seconds(own), **_compiled()}), file=answers)

    def wait() -> None:
        print(json.dumps({"paused": True}), file=answers)
        sys.stdin.readline()

    while line := sys.stdin.readline():
        asked = json.loads(line)
        before = cpu_seconds(own)
        turns = Turns(wait if job["alternating"] else None)
        load = Workload(*asked["load"])
        result: dict[str, Any] = run(llm, load, asked["seed"], job["wish"], turns, partial(_settle, llm))
        result["cpu_seconds"] = cpu_seconds(own) - before
        result["memory_mib"] = peak_mib(own)
        result["coverage"] = _coverage(llm)
        if job["alternating"]:
            result["step_seconds"] = turns.seconds
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
