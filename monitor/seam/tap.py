"""The tap: one opaque operation in the compiled graph after a block.

``residual [n, d] @ weight [d, C]`` lands in ``scores[:n]``, and the residual's squared norm in
``squared_norms[:n]`` where a probe asks for it. The add that makes the residual stays a plain add outside
the operation, so the compiler can share it with the next block's fused norm. Inside the operation: fixed
addresses, no host branch on data, nothing that outlives it; so it can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.residual import ResidualRule, residual_stream
from monitor.unscored import Reason, nan_for

SCHEMA = 1
"""Raise it whenever the operation or the way it enters the graph changes: it is part of the compile key."""

_library: torch.library.Library | None = None


def _tap(residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor) -> None:
    x = residual.reshape(
        -1, weight.shape[0]
    ).float()  # [n, d]; dot products in float32 whatever the model's dtype
    n = x.shape[0]
    torch.mm(x, weight, out=scores[:n])
    if squared_norms.shape[0]:
        torch.linalg.vecdot(x, x, out=squared_norms[:n])


def _tap_fake(residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor) -> None:
    return None


def define_operation(dispatch_key: str) -> None:
    """Registers ``torch.ops.probewatch.tap`` once in this process."""
    global _library
    if _library is not None:
        return
    library = torch.library.Library("probewatch", "FRAGMENT")
    schema = torch.library.infer_schema(_tap, mutates_args=["scores", "squared_norms"])
    library.define("tap" + schema)
    library.impl("tap", _tap, dispatch_key=dispatch_key)
    library._register_fake("tap", _tap_fake)
    _library = library


@dataclass
class TapBuffers:
    """Where all taps of a model write. ``L`` tapped layers, ``N`` rows at most in a step, ``C`` columns."""

    scores: Tensor
    """[L, N, C] float32"""
    squared_norms: Tensor
    """[L, N] float32, or [L, 0] where no probe needs it"""

    @classmethod
    def allocate(cls, layers: int, rows: int, columns: int, norms: bool, device: torch.device) -> TapBuffers:
        """Buffers that no tap has written yet."""
        buffers = cls(
            torch.empty(layers, rows, columns, device=device),
            torch.empty(layers, rows if norms else 0, device=device),
        )
        buffers.silence()
        return buffers

    def silence(self, rows: int | None = None) -> None:
        """Marks the first rows (None: all) as unwritten, so that a tap that does not fire is seen and not believed."""
        self.scores[:, :rows] = float(nan_for(Reason.TAP_SILENT))

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """Views ``scores [L, rows, C]`` and, where a probe asks for them, ``squared_norms [L, rows]``."""
        found = {"scores": self.scores[:, :rows]}
        if self.squared_norms.shape[1]:
            found["squared_norms"] = self.squared_norms[:, :rows]
        return found

    def silent_layers(self, rows: int) -> list[int]:
        """Indices of the tapped layers of which some of the first rows were not written.

        Dummy inputs may give NaN honestly, so this compares bits with the mark of ``silence``.
        """
        bits = self.scores[:, :rows].cpu().numpy().view(np.uint32)
        mark = nan_for(Reason.TAP_SILENT).view(np.uint32)
        return [int(i) for i in np.flatnonzero((bits == mark).any(axis=(1, 2)))]


def install(
    block: nn.Module, rule: ResidualRule, weight: Tensor, scores: Tensor, squared_norms: Tensor
) -> None:
    """Puts a tap after ``block``. Must happen before the model is traced for the first time.

    The tensors become non-persistent buffers: not parameters (the loader refuses ones it cannot fill), not
    module wrappers (names of weights would change).
    """
    for name, tensor in (("weight", weight), ("scores", scores), ("squared_norms", squared_norms)):
        block.register_buffer(f"probewatch_{name}", tensor, persistent=False)
    block.register_forward_hook(functools.partial(_after_block, rule))


def _after_block(rule: ResidualRule, block: Any, inputs: Any, output: Any) -> None:
    torch.ops.probewatch.tap(
        residual_stream(rule, output),
        block.probewatch_weight,
        block.probewatch_scores,
        block.probewatch_squared_norms,
    )
