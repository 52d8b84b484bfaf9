"""Steering: one opaque operation in the compiled graph after a block, behind the block's tap.

It adds to the residual stream of a row what that row's line of coefficients says (``monitor.steering``), and, for rows
that a gate watches, decides on the device from the scores of this very forward pass whether to. Addresses are
fixed and values are data, so nothing is captured again when they change. Row 0 of the coefficients is zero, and
rows that nothing steers keep their bits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.residual import ResidualRule
from monitor.seam import tap

SCHEMA = 1
"""Raise it whenever the operation or the way it enters the graph changes: it is part of the compile key."""
GATES = 4
"""Probes that can gate at once."""
LONGEST = 1e12
"""Longest stream that steering may make: its square is still a float32."""
OFF = float("inf")
ON = float("-inf")


@dataclass
class Gates:
    """What the probes with a ``steer:`` action read, as data: changing them recompiles nothing. ``L`` tapped layers."""

    column: Tensor
    """[G] int64, in the taps"""
    uses: Tensor
    """[L, G] bool, the tapped layers that a gate sums over"""
    bias: Tensor
    """[G] float32"""
    last: Tensor
    """[G] int64, index of its last tapped layer"""
    line: Tensor
    """[G] int64, the coefficients it applies"""


@dataclass
class SteerBuffers:
    """Where the host says what to steer. ``S`` lines of coefficients, ``V`` vectors, ``N`` rows at most in a step."""

    table: Tensor
    """[S, 3, V] float32; line 0 is zero"""
    lines: Tensor
    """[N] int64, a line for each row"""
    levels: Tensor
    """[N, G] float32: the token score above which a gate fires; ``OFF`` never, ``ON`` whatever the score"""
    fired: Tensor
    """[N, G] bool, written by the operation: which gates were open for a row at the last steered layer"""
    busy: Tensor
    """[1] int64: whether there is anything to do. Only the CPU looks at it."""
    gates: Gates

    @classmethod
    def allocate(cls, lines: int, vectors: int, rows: int, taps: int, device: torch.device) -> SteerBuffers:
        """Buffers that steer nothing."""
        gates = Gates(
            torch.zeros(GATES, dtype=torch.int64, device=device),
            torch.zeros(taps, GATES, dtype=torch.bool, device=device),
            torch.zeros(GATES, device=device),
            torch.full((GATES,), taps, dtype=torch.int64, device=device),
            torch.zeros(GATES, dtype=torch.int64, device=device),
        )
        return cls(
            torch.zeros(lines, 3, vectors, device=device),
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.full((rows, GATES), OFF, device=device),
            torch.zeros(rows, GATES, dtype=torch.bool, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            gates,
        )


def _open_gates(
    scores: Sequence[Tensor], levels: Tensor, column: Tensor, uses: Tensor, bias: Tensor, last: Tensor
) -> Tensor:
    """[n, G]: which gates are open, from the tap rows ``scores`` ([n, C] each) that have been written so far."""
    fired = levels == ON
    if scores:
        read = torch.stack([one.index_select(1, column) for one in scores])  # [taps, n, G]
        # A layer that a gate does not read may hold anything, NaN too.
        summed = torch.where(uses[: len(scores)].unsqueeze(1), read, 0.0).sum(0) + bias
        fired = fired | ((summed > levels) & (last < len(scores)))
    return fired


def _change(
    x: Tensor, lines: Tensor, fired: Tensor, table: Tensor, line: Tensor, units: Tensor, lengths: Tensor
) -> Tensor:
    """[n, d] float32: what is added to ``x [n, d]``."""
    own = table[lines] + torch.einsum("ng,gcv->ncv", fired.float(), table[line])  # [n, 3, V]
    along = x @ units.T  # [n, V]
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return (own[:, 0] * lengths + own[:, 1] * norm + own[:, 2] * along) @ units


def _bounded(x: Tensor, change: Tensor, dtype: torch.dtype) -> Tensor:
    """``x + change`` [n, d] float32, no longer than ``dtype`` and the layers behind can bear.

    What is not finite would stay in the KV cache, and the next owner of the block would multiply it by its zeros.
    """
    most = min(torch.finfo(dtype).max / 4, LONGEST)
    found = x + change
    length = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    return torch.where(torch.isfinite(length), found * (most / length).clamp(max=1.0), x)


def _steer_all(
    h: Tensor,
    residual: Tensor | None,
    units: Tensor,
    lengths: Tensor,
    table: Tensor,
    lines: Tensor,
    levels: Tensor,
    fired: Tensor,
    busy: Tensor,
    column: Tensor,
    uses: Tensor,
    bias: Tensor,
    last: Tensor,
    line: Tensor,
    scores: list[Tensor],
) -> None:
    """For a device whose kernels are queued: every row is computed, and no host branch looks at data."""
    flat = h.view(-1, units.shape[1])
    n = flat.shape[0]
    opened = _open_gates([one[:n] for one in scores], levels[:n], column, uses, bias, last)
    fired[:n] = opened
    x = (flat if residual is None else flat + residual.view(-1, units.shape[1])).float()
    change = _change(x, lines[:n], opened, table, line, units, lengths)
    changed = (flat.float() + (_bounded(x, change, h.dtype) - x)).to(h.dtype)
    touched = ((lines[:n] > 0) | opened.any(1)).unsqueeze(1)
    flat.copy_(torch.where(touched, changed, flat))


def _steer_where_busy(*given: Any) -> None:
    """For the CPU, which may look at data: nothing at all where nothing is to be done."""
    if int(given[_BUSY]):
        _steer_all(*given)


_BUSY = list(inspect.signature(_steer_all).parameters).index("busy")


def define_operation(dispatch_key: str) -> None:
    """Registers the tap's operation and ``torch.ops.probewatch.steer``, once in this process."""
    tap.define_operation(dispatch_key)
    tap.register("steer", _steer_all, _steer_where_busy, ["h", "fired"], dispatch_key)


def install(
    block: nn.Module,
    rule: ResidualRule,
    units: Tensor,
    lengths: Tensor,
    buffers: SteerBuffers,
    scores: Sequence[Tensor],
) -> None:
    """Puts the operation after ``block`` and behind its tap. ``units [V, d]``, ``lengths [V]`` at this layer.

    ``scores``: the buffers ``[N, C]`` of the taps up to this layer, the very tensors that the taps write, so that the
    compiler sees the order; empty where gates cannot work.
    """
    shared = {f.name: getattr(buffers, f.name) for f in fields(SteerBuffers) if f.name != "gates"}
    gates = {f"gate_{f.name}": getattr(buffers.gates, f.name) for f in fields(Gates)}
    taps = {f"score_{i}": one for i, one in enumerate(scores)}
    for name, tensor in {"units": units, "lengths": lengths, **shared, **gates, **taps}.items():
        block.register_buffer(f"probewatch_steer_{name}", tensor, persistent=False)
    block.register_forward_hook(functools.partial(_after_block, rule, len(taps)))


def _after_block(rule: ResidualRule, taps: int, block: Any, inputs: Any, output: Any) -> None:
    first, *others = output if isinstance(output, tuple) else (output,)
    torch.ops.probewatch.steer(
        first,
        others[0] if rule is ResidualRule.FUSED else None,
        block.probewatch_steer_units,
        block.probewatch_steer_lengths,
        block.probewatch_steer_table,
        block.probewatch_steer_lines,
        block.probewatch_steer_levels,
        block.probewatch_steer_fired,
        block.probewatch_steer_busy,
        block.probewatch_steer_gate_column,
        block.probewatch_steer_gate_uses,
        block.probewatch_steer_gate_bias,
        block.probewatch_steer_gate_last,
        block.probewatch_steer_gate_line,
        [getattr(block, f"probewatch_steer_score_{i}") for i in range(taps)],
    )


def as_rows(values: np.ndarray[Any, Any], into: Tensor) -> None:
    """Copies ``values [n, ...]`` over the first rows of ``into [N, ...]``."""
    into[: len(values)].copy_(torch.from_numpy(values), non_blocking=True)
