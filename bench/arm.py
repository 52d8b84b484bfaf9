"""One arm: an engine in its own process that runs a round whenever a seed arrives on standard input."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np

from bench.model import VOCABULARY


def _round(llm: Any, seed: int, requests: int, tokens_in: int, tokens_out: int) -> dict[str, float | None]:
    from vllm import SamplingParams

    rng = np.random.default_rng(seed)
    prompts: Any = [
        {"prompt_token_ids": rng.integers(3, VOCABULARY, tokens_in).tolist()} for _ in range(requests)
    ]
    params = SamplingParams(max_tokens=tokens_out, temperature=0, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    gaps = [
        (output.metrics.last_token_ts - output.metrics.first_token_ts) / (tokens_out - 1)
        for output in outputs
    ]
    llm.reset_prefix_cache()
    return {
        "tokens_per_second": requests * (tokens_in + tokens_out) / seconds,
        "inter_token_seconds": statistics.median(gaps),
        "coverage": _coverage(llm),
    }


def _coverage(llm: Any) -> float | None:
    """Lowest share of tokens scored by any probe so far; None in an engine without the monitor."""
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    return None if tap is None else min(tap.engines.coverage().values())


def main() -> None:
    """Reads one JSON line of settings, then a seed a line; answers each with one JSON line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM writes to standard output; the answers must stay alone on theirs
    job = json.loads(sys.stdin.readline())
    from vllm import LLM

    llm = LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        disable_log_stats=False,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=job["requests"],
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.2,
    )
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        result = _round(llm, int(line), job["requests"], job["tokens_in"], job["tokens_out"])
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
