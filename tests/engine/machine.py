"""What differs between engines on a CPU and on a GPU.

`pytest tests/engine` on a machine with a GPU tests vLLM's V2 runner, CUDA graphs and asynchronous scheduling."""

from __future__ import annotations

from typing import Any

import torch

ON_GPU = torch.cuda.is_available()
MEMORY: dict[str, Any] = (
    # Several engines share a GPU, so none may measure what is free.
    {"gpu_memory_utilization": 0.02, "kv_cache_memory_bytes": 1 << 28}
    if ON_GPU
    else {"gpu_memory_utilization": 0.3}
)
TOLERANCE = 3e-2 if ON_GPU else 1e-4
"""Largest allowed difference of a score in float32, relative to the standard deviation of the scores. On a GPU, vLLM's
attention multiplies float32 in TF32 (10 bits), so what differs there is the residual stream itself; the score of
another token or request would be off by about 1."""


LEAK = max(1e-2, 2 * TOLERANCE)
"""Smallest difference that a test which provokes a leak has to see, in the same unit."""


def options(memory: dict[str, Any]) -> list[str]:
    """Engine arguments as options of ``vllm serve``."""
    return [part for name, value in memory.items() for part in (f"--{name.replace('_', '-')}", str(value))]
