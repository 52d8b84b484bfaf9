"""One launch that takes a step's scores out of the tap buffers, beside the rows' positions and KV slots, and marks what
the step has written as unwritten again; so that one copy carries all of it to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from monitor.unscored import Reason, nan_for

_ROWS = 16
_MARK = int(nan_for(Reason.TAP_SILENT).view(np.int32))
_LONG = ("positions", "slots")


@triton.jit(do_not_specialize=["rows", "written", "requests", "room"])
def _take(
    scores,
    norms,
    positions,
    slots,
    starts,
    into_scores,
    into_norms,
    into_positions,
    into_slots,
    into_starts,
    rows,
    written,
    requests,
    room,
    MARK: tl.constexpr,
    C: tl.constexpr,
    LAYERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    NORMS: tl.constexpr,
    SETTLED: tl.constexpr,
):
    at = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    own, dirty = at < rows, at < written
    if layer < LAYERS:
        for panel in range((C + COLUMNS - 1) // COLUMNS):
            column = panel * COLUMNS + tl.arange(0, COLUMNS)
            one = (layer * room + at[:, None]) * C + column[None, :]
            is_column = (column < C)[None, :]
            found = tl.load(scores + one, mask=own[:, None] & is_column, other=0)
            target = into_scores + (layer * rows + at[:, None]) * C + column[None, :]
            tl.store(target, found, mask=own[:, None] & is_column)
            mark = tl.full((ROWS, COLUMNS), MARK, tl.int32)
            tl.store(scores + one, mark, mask=dirty[:, None] & is_column)
        if NORMS:
            squares = tl.load(norms + layer * room + at, mask=own, other=0)
            tl.store(into_norms + layer * rows + at, squares, mask=own)
            tl.store(norms + layer * room + at, tl.full((ROWS,), MARK, tl.int32), mask=dirty)
    elif not SETTLED:
        tl.store(into_positions + at, tl.load(positions + at, mask=own, other=0), mask=own)
        tl.store(into_slots + at, tl.load(slots + at, mask=own, other=0), mask=own)
        is_start = at <= requests
        tl.store(into_starts + at, tl.load(starts + at, mask=is_start, other=0), mask=is_start)


@dataclass(frozen=True)
class Layout:
    """Where everything lies in the bytes that travel."""

    layers: int
    rows: int
    columns: int
    norms: bool
    requests: int | None
    """None where the host knows positions, slots and boundaries already."""

    @property
    def parts(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name, element type and shape of each part, in order."""
        long = {} if self.requests is None else dict.fromkeys(_LONG, (torch.int64, (self.rows,)))
        starts = {} if self.requests is None else {"starts": (torch.int32, (self.requests + 1,))}
        norms = {"squared_norms": (torch.float32, (self.layers, self.rows))} if self.norms else {}
        scores = {"scores": (torch.float32, (self.layers, self.rows, self.columns))}
        return {**long, **starts, **norms, **scores}

    def split(self, packed: Tensor) -> dict[str, Tensor]:
        """The parts of ``packed [bytes]`` uint8 as tensors on the same memory."""
        found, at = {}, 0
        for name, (dtype, shape) in self.parts.items():
            size = math.prod(shape) * dtype.itemsize
            found[name] = packed[at : at + size].view(dtype).view(shape)
            at += _aligned(size)
        return found

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(_aligned(math.prod(shape) * dtype.itemsize) for dtype, shape in self.parts.values())


def _aligned(size: int) -> int:
    """Triton compiles a kernel anew for every alignment of its pointers, so all have the same."""
    return -(-size // 16) * 16


def fits(settled: Mapping[str, Any]) -> bool:
    """Whether these device tensors, by name, are those that ``take`` carries: ``starts`` int32, the others int64."""
    return not settled or (
        {*_LONG, "starts"} <= set(settled)
        and settled["starts"].dtype == torch.int32
        and all(settled[name].dtype == torch.int64 and settled[name].is_contiguous() for name in _LONG)
    )


def take(
    scores: Tensor, norms: Tensor, settled: Mapping[str, Tensor], rows: int, written: int
) -> tuple[Tensor, Layout]:
    """The first ``rows`` of ``scores [L, N, C]`` and ``norms [L, N]`` (or ``[L, 0]``), packed with ``settled``
    (``positions [rows]``, ``slots [rows]``, ``starts [requests + 1]``; or nothing). ``written`` rows are marked."""
    layers, room, columns = scores.shape
    requests = len(settled["starts"]) - 1 if settled else None
    layout = Layout(layers, rows, columns, bool(norms.shape[1]), requests)
    packed = torch.empty(layout.size, dtype=torch.uint8, device=scores.device)
    into = layout.split(packed)
    marks = scores.view(torch.int32)
    none = marks
    most = max(written, rows, (requests or 0) + 1)
    _take[(triton.cdiv(most, _ROWS), layers + (requests is not None))](
        marks,
        norms.view(torch.int32) if layout.norms else none,
        settled.get("positions", none),
        settled.get("slots", none),
        settled.get("starts", none),
        into["scores"].view(torch.int32),
        into["squared_norms"].view(torch.int32) if layout.norms else none,
        into.get("positions", none),
        into.get("slots", none),
        into.get("starts", none),
        rows,
        written,
        requests or 0,
        room,
        MARK=_MARK,
        C=columns,
        LAYERS=layers,
        COLUMNS=min(128, triton.next_power_of_2(columns)),
        ROWS=_ROWS,
        NORMS=layout.norms,
        SETTLED=requests is None,
        num_warps=2,
    )
    return packed, layout
