"""Keeping the residual stream itself: one more opaque operation after a block, in graphs compiled to collect.

``residual [n, d]`` is copied into ``rows[:n]``, in the model's own dtype: the numbers that a tap would multiply. No
serving graph holds it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from monitor.residual import ResidualRule, residual_stream
from monitor.seam.tap import register

SCHEMA = 1
"""Raise it whenever the operation or the way it enters the graph changes: it is part of the compile key."""

_MARK: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float32: (torch.int32, 0x7FA52525),
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float16: (torch.int16, 0x7D25),
}
"""Integers as wide as a number, and the bits of a signalling NaN: no arithmetic ever gives one. (Quiet ones do come
out of dummy tokens, with all bits set on a CPU.)"""


def _keep(residual: Tensor, rows: Tensor) -> None:
    x = residual.reshape(-1, rows.shape[1])  # [n, d]
    rows[: x.shape[0]].copy_(x)


def define_operation(dispatch_key: str) -> None:
    """Registers ``torch.ops.probewatch.keep`` once in this process."""
    register("keep", _keep, _keep, ["rows"], dispatch_key)


class KeptRows:
    """Where all layers of a model write: ``rows [L, N, d]``, ``N`` rows at most in a step."""

    def __init__(
        self, layers: int, rows: int, d_model: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = torch.empty(layers, rows, d_model, dtype=dtype, device=device)
        self.silence()

    def silence(self) -> None:
        """Marks every row as unwritten."""
        bits, mark = _MARK[self.rows.dtype]
        self.rows.view(bits).fill_(mark)

    def silent_layers(self, rows: int) -> list[int]:
        """Indices of the layers of which some of the first rows were not written."""
        return silent(self.rows[:, :rows])


def silent(rows: Tensor) -> list[int]:
    """Indices of the layers of ``rows [L, n, d]`` of which some row still bears the mark of ``KeptRows.silence``."""
    bits, mark = _MARK[rows.dtype]
    return [int(i) for i in torch.nonzero((rows.contiguous().view(bits) == mark).all(dim=2).any(dim=1))]


def install(block: nn.Module, rule: ResidualRule, rows: Tensor) -> None:
    """Keeps the stream after ``block`` in ``rows [N, d]``. Must happen before the model is traced."""
    block.register_buffer("probewatch_rows", rows, persistent=False)
    block.register_forward_hook(functools.partial(_after_block, rule))


def _after_block(rule: ResidualRule, block: Any, inputs: Any, output: Any) -> None:
    torch.ops.probewatch.keep(residual_stream(rule, output), block.probewatch_rows)
