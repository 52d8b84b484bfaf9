"""A random storm of requests on one engine, the same for the same seed.

Shared and disjoint prefixes, ragged lengths, priorities, aborts in mid-flight, several answers a prompt, early stops:
on an engine whose KV cache is small enough to preempt and whose steps are small enough to split prompts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import machine
import numpy as np
import tiny

ENGINE = {
    "max_model_len": 320,
    "max_num_batched_tokens": 96,
    "max_num_seqs": 24,
    "block_size": 32,
    "num_gpu_blocks_override": 40,
    "scheduling_policy": "priority",
    **machine.MEMORY,
    "dtype": "float32",
}
SPECULATIVE = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@dataclass(frozen=True)
class Storm:
    """How much of it."""

    seed: int
    requests: int
    arrivals: float = 1.5
    """Mean number of new requests between two steps."""
    aborts: float = 0.08
    """Chance that some running request is aborted between two steps."""


def drive(engine: Any, storm: Storm) -> Counter[str]:
    """Runs the storm on an ``LLMEngine`` until nothing is left; counts what happened."""
    rng = np.random.default_rng(storm.seed)
    stems = [rng.integers(3, tiny.VOCABULARY, 130).tolist() for _ in range(6)]
    happened: Counter[str] = Counter()
    running: list[str] = []
    left = storm.requests
    while left or engine.has_unfinished_requests():
        for _ in range(min(left, int(rng.poisson(storm.arrivals)))):
            name = f"storm-{storm.seed}-{left}"
            prompt, params = _request(rng, stems)
            engine.add_request(name, {"prompt_token_ids": prompt}, params, priority=int(rng.integers(0, 4)))
            running.append(name)
            left -= 1
            happened["several answers"] += params.n > 1
        if running and rng.random() < storm.aborts:
            name = running.pop(int(rng.integers(len(running))))
            engine.abort_request([name])
            happened["aborted"] += 1
        for output in engine.step():
            if output.finished:
                running = [name for name in running if name != output.request_id]
                happened["finished"] += 1
        happened["steps"] += 1
    return happened


def _request(rng: np.random.Generator, stems: list[list[int]]) -> tuple[list[int], Any]:
    from vllm import SamplingParams

    stem = stems[int(rng.integers(len(stems)))][: int(rng.integers(0, 131))] if rng.random() < 0.7 else []
    prompt = [*stem, *rng.integers(3, tiny.VOCABULARY, int(rng.integers(1, 100))).tolist()]
    greedy = rng.random() < 0.6  # greedy answers of a random network repeat themselves: drafts get accepted
    params = SamplingParams(
        max_tokens=int(rng.choice([1, 2, 8, 30, 60])),
        n=1 if greedy else int(rng.choice([1, 1, 2, 3])),
        temperature=0.0 if greedy else 1.0,
        stop_token_ids=rng.integers(3, tiny.VOCABULARY, 12).tolist(),
        ignore_eos=True,
        detokenize=False,
    )
    return prompt, params
