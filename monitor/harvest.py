"""Rows of the residual stream on the host, filed by conversation and position until a shard is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from monitor.errors import CollectError
from monitor.events import IntArray, StepView
from monitor.slices import row_owners

KEEP = "probewatch_keep"
"""Argument of a request: ``[number of the conversation in the shard, first position, position after the last]``."""


class Harvest:
    """The rows ``[L, n, d]`` of one shard at a time.

    A row is filed by its position, so chunked prefill, preemption and recomputation need no thought: what is
    computed twice is written twice.
    """

    def __init__(self, layers: Sequence[int], d_model: int, dtype: torch.dtype) -> None:
        self._layers = tuple(layers)
        self._d_model, self._dtype = d_model, dtype
        self._expected: dict[str, tuple[int, int, int]] = {}
        """By request: place in the shard of position 0 (may be negative), first position, position after the last."""
        self.begin((), ())

    def begin(self, names: Sequence[str], rows: Sequence[int]) -> None:
        """Makes room for a shard. ``rows``: how many of each conversation are kept."""
        self._names = list(names)
        self._starts = np.cumsum([0, *rows])
        total = int(self._starts[-1])
        self._rows = torch.empty(len(self._layers), total, self._d_model, dtype=self._dtype)
        self._filled = np.zeros(total, bool)
        self._expected.clear()

    def expect(self, request_id: str, number: int, first: int, stop: int) -> None:
        """A request whose positions ``first .. stop - 1`` are the rows of conversation ``number``."""
        room = int(self._starts[number + 1] - self._starts[number])
        if stop - first != room:
            raise CollectError(
                f"{stop - first} rows asked of {self._names[number]!r}, room for {room}; collect again"
            )
        self._expected[request_id] = (int(self._starts[number]) - first, first, stop)

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests are over."""
        for request_id in request_ids:
            self._expected.pop(request_id, None)

    def locate(self, view: StepView) -> tuple[IntArray, IntArray]:
        """``(rows, places) [n]``: which rows of a step are kept, and where in the shard each belongs."""
        known = np.array([self._expected.get(name, (0, 0, 0)) for name in view.request_ids], np.int64)
        place, first, stop = known.T
        owner, offset = row_owners(np.diff(view.query_start_loc))
        position = view.first_position[owner] + offset
        rows = np.flatnonzero((position >= first[owner]) & (position < stop[owner]))
        return rows, place[owner[rows]] + position[rows]

    def put(self, places: IntArray, rows: Tensor) -> None:
        """Files ``rows [L, n, d]`` at ``places [n]``."""
        self._rows[:, torch.from_numpy(places)] = rows
        self._filled[places] = True

    def finish(self) -> Tensor:
        """The shard ``[L, rows, d]``. Raises ``CollectError`` for a row that is missing or not finite."""
        if not self._filled.all():
            where = self._where(int(np.argmin(self._filled)))
            raise CollectError(
                f"{int((~self._filled).sum())} of {len(self._filled)} rows never came (first: {where}); run it again"
            )
        for layer, rows in zip(self._layers, self._rows, strict=True):
            finite = torch.isfinite(rows).all(dim=1)
            if not bool(finite.all()):
                where = self._where(int(finite.int().argmin()))
                raise CollectError(
                    f"NaN or infinity after layer {layer} in {int((~finite).sum())} rows (first: {where}); the model "
                    "overflows in this dtype: try --dtype bfloat16 or float32"
                )
        return self._rows

    def _where(self, row: int) -> str:
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        return f"kept token {row - int(self._starts[number])} of {self._names[number]!r}"
