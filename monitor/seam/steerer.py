"""Steering in one worker: who wants what, written where the compiled graph reads it, before each forward pass."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from monitor.bank import ProbeBank
from monitor.errors import AttachError, RequestError
from monitor.events import FloatArray, IntArray, StepRows
from monitor.gates import gating, steer_of
from monitor.seam import view_v1, view_v2
from monitor.seam.steer import GATES, OFF, SteerBuffers, as_rows
from monitor.steering import KEY, Steer, VectorBank, parse

logger = logging.getLogger("probewatch")

Levels = Callable[[StepRows, int], FloatArray | None]


@dataclass(frozen=True)
class Steered:
    """What a step was told to steer."""

    lines: IntArray
    """[T] the line of coefficients of every row"""
    gates: IntArray
    """[G] the line that each gate applies"""


class Steerer:
    """Keeps what running requests asked for."""

    def __init__(self, vectors: VectorBank, buffers: SteerBuffers, steered_taps: Mapping[str, int]) -> None:
        """``steered_taps``: of each vector, how many tapped layers lie at or before the last layer it steers."""
        self._vectors = vectors
        self._buffers = buffers
        self._steered_taps = steered_taps
        self.levels: Levels | None = None
        """Asks when rows open gates; None until there is one who knows, and in workers where gates cannot work."""
        self._wishes: dict[str, tuple[tuple[Steer, ...], tuple[Steer, ...]]] = {}
        """(prompt, generated) of each running request that asked"""
        self._line_of: OrderedDict[tuple[Steer, ...], int] = OrderedDict()
        """Least recently used first."""
        self._effect: npt.NDArray[np.bool_] = np.zeros((len(buffers.table), len(vectors.names)), bool)
        """[S, V] whether a line touches a vector"""
        self._written = 0
        """Rows of the buffers that hold something."""
        self._gate_lines: IntArray = np.zeros(GATES, np.int64)
        self._gated = False
        self.last: Steered | None = None
        """Of the latest forward pass; None if nothing was steered in it."""

    def watch(self, runner: Any, v2: bool, guard: Callable[[Exception], None]) -> None:
        """Puts ``before_forward`` behind the method of the runner that settles the rows of a step.

        ``guard`` hears of errors of ours; a step that meets one goes unsteered.
        """
        name, rows_of = (
            ("prepare_inputs", view_v2.step_rows) if v2 else ("_prepare_inputs", view_v1.step_rows)
        )
        original = getattr(runner, name)

        @functools.wraps(original)
        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            prepared = original(*args, **kwargs)
            if self._wishes or self._gated or self._written:
                try:
                    self.before_forward(rows_of(runner, prepared))
                except Exception as error:
                    self._steer_nothing()
                    guard(error)
            return prepared

        setattr(runner, name, prepare_inputs)

    def follow(self, scheduler_output: Any) -> None:
        """Notes what requests that are new in this step ask for, and forgets those that have ended."""
        for request_id in scheduler_output.finished_req_ids:
            self._wishes.pop(request_id, None)
        for request in scheduler_output.scheduled_new_reqs:
            asked = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEY)
            if asked is not None:
                self._note(request.req_id, asked)

    def _note(self, request_id: str, asked: object) -> None:
        try:
            steers = self._vectors.parse(asked)
        except RequestError as error:  # admission has refused it: only a fault of ours can lead here
            logger.error("probewatch: request %s goes unsteered: %s", request_id, error)
            return
        self._wishes[request_id] = (
            tuple(s for s in steers if s.prompt),
            tuple(s for s in steers if s.generated),
        )

    def set_gates(self, bank: ProbeBank) -> None:
        """The gates of these probes, from the next forward pass on. ``check_gates`` has accepted them."""
        seats = gating(bank)
        gates = self._buffers.gates
        self._gated = bool(seats)
        self._gate_lines = np.zeros(GATES, np.int64)
        gates.last.fill_(len(gates.uses))
        gates.uses.zero_()
        for g, seat in enumerate(seats):
            wish = self._vectors.parse(steer_of(seat))
            self._gate_lines[g] = self._line(wish, keep=set(self._gate_lines[:g].tolist()))
            gates.column[g] = seat.columns.start
            gates.uses[list(seat.layer_rows), g] = True
            gates.bias[g] = float(seat.bias or 0.0)
            # One that reads behind what it steers never opens on the device: the next token is its first.
            if max(seat.layer_rows) < self._steered_taps[wish[0].vector]:
                gates.last[g] = max(seat.layer_rows)
        gates.line.copy_(torch.from_numpy(self._gate_lines))

    def before_forward(self, step: StepRows) -> None:
        """Writes what this step steers. Costs nothing while no request asks and no gate is there."""
        lines = self._lines(step) if self._wishes else None
        levels = self.levels(step, GATES) if self._gated and self.levels is not None else None
        if lines is None and levels is None:
            self._steer_nothing()
            return
        rows = step.rows
        self._clear(rows)
        self._written = rows
        if lines is None:
            lines = np.zeros(rows, np.int64)
        if levels is None:
            levels = np.full((rows, GATES), OFF, np.float32)
        as_rows(lines, self._buffers.lines)
        as_rows(levels, self._buffers.levels)
        self._buffers.busy.fill_(1)
        self.last = Steered(lines, self._gate_lines)

    def _steer_nothing(self) -> None:
        self._clear(0)
        self._buffers.busy.zero_()
        self.last = None

    def _clear(self, rows: int) -> None:
        """A graph may compute more rows than the step has."""
        if self._written > rows:
            self._buffers.lines[rows : self._written] = 0
            self._buffers.levels[rows : self._written] = OFF
        self._written = min(self._written, rows)

    def _lines(self, step: StepRows) -> IntArray | None:
        asking = [(r, self._wishes[name]) for r, name in enumerate(step.request_ids) if name in self._wishes]
        if not asking:
            return None
        found = np.zeros(step.rows, np.int64)
        in_use = set(self._gate_lines.tolist())
        for r, (prompt, generated) in asking:
            start, stop = int(step.query_start_loc[r]), int(step.query_start_loc[r + 1])
            left = int(step.prompt_tokens[r] - step.first_position[r])
            edge = min(max(start + left, start), stop)
            for wish, own in ((prompt, slice(start, edge)), (generated, slice(edge, stop))):
                if wish and own.start < own.stop:
                    line = self._line(wish, in_use)
                    in_use.add(line)
                    found[own] = line
        return found

    def _line(self, wish: tuple[Steer, ...], keep: set[int]) -> int:
        """The line that holds these coefficients; one that nothing uses in this step is written over."""
        line = self._line_of.get(wish)
        if line is None:
            if len(self._line_of) < len(self._buffers.table) - 1:
                line = len(self._line_of) + 1
            else:
                oldest = next(w for w, held in self._line_of.items() if held not in keep)
                line = self._line_of.pop(oldest)
            self._line_of[wish] = line
            coefficients = self._vectors.coefficients(wish)
            self._buffers.table[line].copy_(torch.from_numpy(coefficients))
            self._effect[line] = coefficients.any(axis=0)
        self._line_of.move_to_end(wish)
        return line

    def fired(self, rows: int) -> dict[str, torch.Tensor]:
        """The gates that were open, ``fired [rows, G]``, to be transferred."""
        return {"fired": self._buffers.fired[:rows]}

    def count(self, steered: Steered, fired: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Rows that each vector has touched, given which gates were open, ``fired [T, G]``."""
        touched = self._effect[steered.lines[: len(fired)]]  # [T, V]
        for g in np.flatnonzero(fired.any(axis=0)).tolist():
            touched = touched | (fired[:, g, None] & self._effect[steered.gates[g]])
        return {name: int(n) for name, n in zip(self._vectors.names, touched.sum(axis=0), strict=True) if n}


def check_gates(bank: ProbeBank, vectors: Sequence[str], possible: str | None) -> None:
    """Raises ``AttachError`` for a probe whose ``steer:`` action cannot be carried out.

    ``possible``: why gates cannot work in this engine; None if they can.
    """
    seats = gating(bank)
    if len(seats) > GATES:
        raise AttachError(f"{len(seats)} probes steer, at most {GATES} can; give one of them another action")
    for seat in seats:
        manifest = seat.probe.manifest
        try:
            wish = parse(steer_of(seat), vectors)
        except RequestError as error:
            raise AttachError(
                f"probe {manifest.name!r}, action {manifest.default_action!r}: {error}"
            ) from error
        if possible is not None:
            raise AttachError(
                f"probe {manifest.name!r} steers, which needs {possible}; give it another action"
            )
        if seat.bias is None:
            raise AttachError(
                f"probe {manifest.name!r} is no affine score of the residual stream, so it cannot steer; use the "
                "action alert or stop"
            )
        if not wish[0].generated:
            raise AttachError(
                f"probe {manifest.name!r} is to steer prompts alone; a gate opens at generated tokens"
            )
