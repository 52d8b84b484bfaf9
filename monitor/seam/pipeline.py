"""Pipeline parallelism: the scores of earlier stages travel to the last one with the hidden states.

Only the last stage samples, and only what it returns is read. So every stage hands on what its own taps wrote and
what it received, as one more entry of the tensors that vLLM sends anyway; the last stage then holds all layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from monitor.seam.tap import TapBuffers
from monitor.wire import CARRIER


class Relay:
    """One stage's part. Layers come in order, so a stage's own follow those of the stages before it."""

    def __init__(self, buffers: TapBuffers, upstream: int, own: int) -> None:
        self._buffers = buffers
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
        """Puts the earlier stages' scores where their taps would have written them on this stage."""
        if received is None or not self._upstream:
            return
        n, buffers = len(received), self._buffers
        scores = buffers.scores[: self._upstream, :n]
        size = self._upstream * buffers.scores.shape[2]
        scores.copy_(received[:, :size].reshape(n, self._upstream, -1).transpose(0, 1))
        if buffers.squared_norms.shape[1]:
            buffers.squared_norms[: self._upstream, :n] = received[:, size:].T

    def send(self, intermediate: Any, rows: int) -> Any:
        """``intermediate`` with the scores of this stage and those before, ``[rows, layers * columns (+ norms)]``."""
        buffers, k = self._buffers, self._through
        if not k:
            return intermediate
        parts = [buffers.scores[:k, :rows].transpose(0, 1).reshape(rows, -1)]
        if buffers.squared_norms.shape[1]:
            parts.append(buffers.squared_norms[:k, :rows].T)
        carrying = copy.copy(intermediate)
        carrying.tensors = {**intermediate.tensors, CARRIER: torch.cat(parts, dim=1)}
        return carrying
