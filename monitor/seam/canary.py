"""What the proof before readiness needs: every way in which an engine runs its model, and which worker is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

ROWS = 4


def is_read() -> bool:
    """Whether vLLM reads this worker's output: the first tensor-parallel rank of the last pipeline stage."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


def dummy_runs(worker: Any) -> list[tuple[int, Callable[[], Any]]]:
    """Every way in which this engine executes the model, with the rows it computes: on CUDA, decodes are replayed from
    a graph of their own, so one request decodes as vLLM's own idle ranks do."""
    runner = worker.model_runner
    rows = min(ROWS, int(runner.max_num_reqs))
    runs: list[tuple[int, Callable[[], Any]]] = [(rows, functools.partial(runner._dummy_run, rows))]
    if worker.device.type == "cuda":
        decode = int(getattr(runner, "uniform_decode_query_len", 0) or getattr(runner, "decode_query_len", 1))
        runs.append((decode, functools.partial(runner._dummy_run, decode, uniform_decode=True)))
    return runs
