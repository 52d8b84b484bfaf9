"""One launch that takes a step's scores out of the tap buffers, beside the rows' positions and KV slots, and marks what
the step has written as unwritten again; so that one copy carries all of it to the host.

On the host every call into torch costs more than the bytes do, so everything travels as 32-bit words of one tensor, and
NumPy finds the parts (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from monitor.unscored import Reason, nan_for

_ROWS = 16
_MARK = int(nan_for(Reason.TAP_SILENT).view(np.int32))


@triton.jit(do_not_specialize=["rows", "written", "used", "requests", "room"])
def _take(
    scores,
    norms,
    positions,
    slots,
    starts,
    into,
    rows,
    written,
    used,
    requests,
    room,
    MARK: tl.constexpr,
    C: tl.constexpr,
    LAYERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    NORMS: tl.constexpr,
):
    at = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    own, dirty = at < rows, at < written
    squares = into + LAYERS * rows.to(tl.int64) * used
    if layer < LAYERS:
        for panel in range((C + COLUMNS - 1) // COLUMNS):
            column = panel * COLUMNS + tl.arange(0, COLUMNS)
            one = scores + (layer * room + at[:, None]) * C + column[None, :]
            kept = own[:, None] & (column < used)[None, :]
            target = into + (layer * rows + at[:, None]) * used + column[None, :]
            tl.store(target, tl.load(one, mask=kept, other=0), mask=kept)
            mark = tl.full((ROWS, COLUMNS), MARK, tl.int32)
            tl.store(one, mark, mask=dirty[:, None] & (column < C)[None, :])
        if NORMS:
            found = tl.load(norms + layer * room + at, mask=own, other=0)
            tl.store(squares + layer * rows + at, found, mask=own)
            tl.store(norms + layer * room + at, tl.full((ROWS,), MARK, tl.int32), mask=dirty)
    else:
        rest = squares
        if NORMS:
            rest += LAYERS * rows.to(tl.int64)
        tl.store(rest + at, tl.load(positions + at, mask=own, other=0).to(tl.int32), mask=own)
        tl.store(rest + rows + at, tl.load(slots + at, mask=own, other=0).to(tl.int32), mask=own)
        is_start = at <= requests
        tl.store(rest + 2 * rows + at, tl.load(starts + at, mask=is_start, other=0), mask=is_start)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in the words that travel."""

    layers: int
    rows: int
    columns: int
    norms: bool
    requests: int | None
    """None where the host knows positions, slots and boundaries already."""

    @property
    def words(self) -> int:
        """Of 32 bits."""
        settled = 0 if self.requests is None else 2 * self.rows + self.requests + 1
        return self.layers * self.rows * (self.columns + self.norms) + settled

    def split(self, words: npt.NDArray[np.int32]) -> dict[str, np.ndarray[Any, Any]]:
        """The parts of ``words`` as arrays on the same memory."""
        layers, rows = self.layers, self.rows
        at = layers * rows * self.columns
        found: dict[str, np.ndarray[Any, Any]] = {
            "scores": words[:at].view(np.float32).reshape(layers, rows, self.columns)
        }
        if self.norms:
            found["squared_norms"] = words[at : at + layers * rows].view(np.float32).reshape(layers, rows)
            at += layers * rows
        if self.requests is not None:
            found["positions"], found["slots"] = words[at : at + rows], words[at + rows : at + 2 * rows]
            found["starts"] = words[at + 2 * rows : at + 2 * rows + self.requests + 1]
        return found


class Packer:
    """Takes steps out of ``scores [L, N, C]`` float32 and ``norms [L, N]`` (or ``[L, 0]``)."""

    def __init__(self, scores: Tensor, norms: Tensor) -> None:
        self._layers, self._room, self._columns = scores.shape
        self._norms = bool(norms.shape[1])
        self._marks = scores.view(torch.int32)  # bits, not numbers: a NaN says why
        self._squares = norms.view(torch.int32) if self._norms else self._marks

    def take(
        self, settled: Mapping[str, Tensor], rows: int, written: int, used: int
    ) -> tuple[Tensor, Layout]:
        """The first ``rows`` and the first ``used`` columns, packed with ``settled`` (``positions [rows]``,
        ``slots [rows]``, ``starts [requests + 1]``, each contiguous; or nothing). ``written`` rows are marked."""
        requests = len(settled["starts"]) - 1 if settled else None
        layout = Layout(self._layers, rows, used, self._norms, requests)
        packed = torch.empty(layout.words, dtype=torch.int32, device=self._marks.device)
        most = max(written, rows, (requests or 0) + 1)
        none = self._marks
        _take[(triton.cdiv(most, _ROWS), self._layers + (requests is not None))](
            none,
            self._squares,
            settled.get("positions", none),
            settled.get("slots", none),
            settled.get("starts", none),
            packed,
            rows,
            written,
            used,
            requests or 0,
            self._room,
            MARK=_MARK,
            C=self._columns,
            LAYERS=self._layers,
            COLUMNS=min(128, triton.next_power_of_2(self._columns)),
            ROWS=_ROWS,
            NORMS=self._norms,
            num_warps=2,
        )
        return packed, layout
