"""Prompts that a bookkeeping mistake cannot survive: shared stems, ragged lengths, distinguishable tails."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny


def mixed(requests: int, seed: int, longest: int = 330) -> dict[str, Any]:
    """A phase of requests; every second one begins with a stem that others share (prefix-cache hits)."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> list[int]:
        found: list[int] = rng.integers(3, tiny.VOCABULARY, n).tolist()
        return found

    stems = [ids(70), ids(100)]
    prompts = []
    for i in range(requests):
        tail = int(rng.integers(1, 60)) if i % 10 else int(rng.integers(200, longest - 100))
        prompts.append([*(stems[i % 4 // 2] if i % 2 else []), *ids(tail)])
    return {"prompts": prompts, "max_tokens": rng.integers(1, 24, requests).tolist()}
