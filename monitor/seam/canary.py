"""The proof before readiness: every way in which an engine runs its model writes to every tap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from monitor.errors import TapError

ROWS = 4


def is_read() -> bool:
    """Whether vLLM reads this worker's output: the first tensor-parallel rank of the last pipeline stage."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


class Taps(Protocol):
    """What the graph writes to, a row a token after each tapped layer."""

    def silence(self) -> None:
        """Marks every row as unwritten."""

    def silent_layers(self, rows: int) -> list[int]:
        """Indices of the layers of which some of the first rows were not written."""


def require_taps(worker: Any, taps: Taps, layers: Mapping[int, int]) -> None:
    """Runs the compiled model on dummy tokens. Raises ``TapError`` where a tap leaves a row unwritten.

    ``layers``: by index, of the taps in this pipeline stage.
    """
    for rows, dummy_run in dummy_runs(worker):
        taps.silence()
        dummy_run()
        silent = [layers[index] for index in taps.silent_layers(rows) if index in layers]
        if silent:
            raise TapError(
                f"the taps of layers {silent} did not fire in the compiled model; a stale compile cache or an "
                "unsupported execution mode: remove the vLLM compile cache and start again"
            )
    taps.silence()


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
