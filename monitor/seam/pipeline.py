"""Pipeline parallelism: the scores of earlier stages travel to the last one with the hidden states.

Only the last stage samples, and only what it returns is read. So every stage hands on what its own taps wrote and
what it received, as one more entry of the tensors that vLLM sends anyway; the last stage then holds all layers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from monitor.wire import CARRIER


class Relay:
    """One stage's part. Layers come in order, so a stage's own follow those of the stages before it."""

    def __init__(self, arrays: Sequence[Tensor], upstream: int, own: int) -> None:
        """``arrays``: what the taps of ``L`` layers write, each ``[L, N]`` or ``[L, N, ...]``, of one dtype."""
        self._arrays = arrays
        self._upstream = upstream
        """Tapped layers of the stages before this one."""
        self._through = upstream + own

    def take(self, intermediate: Any) -> Tensor | None:
        """Removes our entry from what the stage before has sent; vLLM would not know what to do with it."""
        if intermediate is None:
            return None
        found: Tensor | None = intermediate.tensors.pop(CARRIER, None)
        return found

    def fill(self, received: Tensor | None) -> None:
        """Puts the earlier stages' rows where their taps would have written them on this stage."""
        if received is None or not self._upstream:
            return
        at = 0
        for array in self._arrays:
            part = array[: self._upstream, : len(received)].transpose(0, 1)  # [n, layers, ...]
            size = part[0].numel()
            part.copy_(received[:, at : at + size].reshape(part.shape))
            at += size

    def send(self, intermediate: Any, rows: int) -> Any:
        """``intermediate`` with the rows of this stage and those before: of each array ``[rows, layers * ...]``."""
        if not self._through:
            return intermediate
        parts = [array[: self._through, :rows].transpose(0, 1).reshape(rows, -1) for array in self._arrays]
        carrying = copy.copy(intermediate)
        carrying.tensors = {**intermediate.tensors, CARRIER: torch.cat(parts, dim=1)}
        return carrying


def relay_through(
    runner: Any,
    relay: Relay,
    active: Callable[[], bool],
    silence: Callable[[int], None],
    guard: Callable[[Exception], None],
) -> None:
    """Has the relay work around each forward pass of the runner, once ``active``. ``silence``: marks so many rows as
    unwritten when they have been sent on."""
    from vllm.distributed.parallel_state import get_pp_group

    stage = get_pp_group()
    original = runner.execute_model

    @functools.wraps(original)
    def execute_model(
        scheduler_output: Any, intermediate_tensors: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if not active() or kwargs.get("dummy_run"):
            return original(scheduler_output, intermediate_tensors, *args, **kwargs)
        received = relay.take(intermediate_tensors)
        result = original(scheduler_output, intermediate_tensors, *args, **kwargs)
        rows = scheduler_output.total_num_scheduled_tokens
        if rows:
            try:
                relay.fill(received)
                if not stage.is_last_rank:
                    result = relay.send(result, rows)
                    silence(rows)
            except Exception as error:
                guard(error)
        return result

    runner.execute_model = execute_model


def stages() -> int:
    """How many pipeline stages the model has."""
    from vllm.distributed.parallel_state import get_pp_group

    return int(get_pp_group().world_size)
