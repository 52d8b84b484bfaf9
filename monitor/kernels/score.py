"""``scores = residual @ weights`` for all probes of a tapped layer, in one launch.

A decode step has a few rows and thousands of residual dimensions, so the sum over dimensions is shared out: each
program adds up its part, and the last one to arrive adds the parts, always in the same order. Products are exact to
about float32: the residual (bfloat16, float16) is exact in TF32, and a weight is split into TF32 numbers ("3xTF32",
https://github.com/NVIDIA/cutlass/tree/main/examples/27_ampere_3xtf32_fast_accurate_tensorop_gemm).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 64
"""Of one program."""


@triton.jit(do_not_specialize=["n"])
def _score(
    x,
    weights,
    scores,
    norms,
    parts,
    norm_parts,
    arrived,
    n,
    D: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    SHARES: tl.constexpr,
    NORMS: tl.constexpr,
):
    tile, panel, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = panel * COLUMNS + tl.arange(0, COLUMNS)
    steps = tl.arange(0, STEP)
    is_row, is_column = rows < n, columns < C
    inside = is_row[:, None] & is_column[None, :]
    wide = rows.to(tl.int64)
    TURNS: tl.constexpr = (D + SHARES * STEP - 1) // (SHARES * STEP)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for turn in range(TURNS):
        k = (share * TURNS + turn) * STEP + steps
        own = tl.load(x + wide[:, None] * D + k[None, :], mask=is_row[:, None] & (k < D)[None, :], other=0.0)
        own = own.to(tl.float32)
        weight = tl.load(
            weights + k[:, None] * C + columns[None, :], mask=(k < D)[:, None] & is_column[None, :], other=0.0
        )
        total = tl.dot(own, weight, total, input_precision="tf32x3")
        if NORMS:
            squares += tl.sum(own * own, axis=1)
    found = wide[:, None] * C + columns[None, :]
    if SHARES == 1:
        tl.store(scores + found, total, mask=inside)
        if NORMS:
            tl.store(norms + rows, squares, mask=is_row & (panel == 0))
    else:
        size = tl.num_programs(0).to(tl.int64) * ROWS
        tl.store(parts + share * size * C + found, total, mask=inside)
        if NORMS:
            tl.store(norm_parts + share * size + rows, squares, mask=is_row & (panel == 0))
        tl.debug_barrier()
        counter = arrived + tile * tl.num_programs(1) + panel
        if tl.atomic_add(counter, 1, sem="acq_rel") == SHARES - 1:
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            squares = tl.zeros((ROWS,), tl.float32)
            for one in range(SHARES):
                total += tl.load(parts + one * size * C + found, mask=inside, other=0.0, volatile=True)
                if NORMS:
                    squares += tl.load(norm_parts + one * size + rows, mask=is_row, other=0.0, volatile=True)
            tl.store(scores + found, total, mask=inside)
            if NORMS:
                tl.store(norms + rows, squares, mask=is_row & (panel == 0))
            tl.store(counter, 0)


@dataclass(frozen=True)
class Shape:
    """How a number of rows is shared out among programs."""

    up_to: int
    rows: int
    step: int
    shares: int


SHAPES = (Shape(32, 16, 64, 32), Shape(512, 32, 64, 8), Shape(1 << 31, 64, 64, 1))


@dataclass(frozen=True)
class Plan:
    """How launches for ``[n, d] @ [d, columns]`` are cut, and what their programs need to tell each other."""

    columns: int
    """Of one program."""
    panels: int
    shapes: tuple[Shape, ...]
    counters: int
    parts: int
    norm_parts: int

    @property
    def scratch(self) -> int:
        """Numbers of 4 bytes: counters, parts of the scores, parts of the norms."""
        return self.counters + self.parts + self.norm_parts


@functools.cache
def plan(d_model: int, columns: int) -> Plan:
    """The plan for a layer's taps. Small steps are cut along the residual dimension as well."""
    own = min(MOST_COLUMNS, max(16, triton.next_power_of_2(columns)))
    panels = triton.cdiv(columns, own)
    shapes = tuple(
        Shape(s.up_to, s.rows, s.step, max(1, min(s.shares // panels, d_model // s.step))) for s in SHAPES
    )
    shared = [s for s in shapes if s.shares > 1]
    size = max((s.shares * s.up_to for s in shared), default=0)
    tiles = max((triton.cdiv(s.up_to, s.rows) for s in shared), default=0)
    # Triton compiles a kernel anew for every alignment of its pointers: 16 bytes.
    return Plan(own, panels, shapes, -(-tiles * panels // 4) * 4, size * -(-columns // 4) * 4, size)


def compile_for(dtype: torch.dtype, weights: Tensor, scores: Tensor, norms: Tensor, scratch: Tensor) -> None:
    """Compiles every shape that a step may need, so that none is compiled while a graph is captured."""
    rows = {min(n, len(scores)) for n in (1, *(s.up_to + 1 for s in SHAPES[:-1]))}
    for n in sorted(rows):
        residual = torch.zeros(n, len(weights), dtype=dtype, device=weights.device)
        score(residual, weights, scores, norms, scratch)


def score(residual: Tensor, weights: Tensor, scores: Tensor, norms: Tensor, scratch: Tensor) -> None:
    """``residual [n, d]``, ``weights [d, C]`` float32: writes ``scores[:n]`` and, unless it is empty, ``norms[:n]``.

    All contiguous; ``norms`` takes squared lengths. ``scratch``: float32, zero before its first use,
    ``plan(d, C).scratch`` long; launches that may overlap need one each.
    """
    n, d = residual.shape
    columns = weights.shape[1]
    cut = plan(d, columns)
    shape = next(s for s in cut.shapes if n <= s.up_to)
    counters, parts, norm_parts = scratch.split([cut.counters, cut.parts, cut.norm_parts])
    _score[(triton.cdiv(n, shape.rows), cut.panels, shape.shares)](
        residual,
        weights,
        scores,
        norms,
        parts,
        norm_parts,
        counters.view(torch.int32),
        n,
        D=d,
        C=columns,
        ROWS=shape.rows,
        COLUMNS=cut.columns,
        STEP=shape.step,
        SHARES=shape.shares,
        NORMS=bool(norms.numel()),
        num_warps=4,
        num_stages=3,
    )
