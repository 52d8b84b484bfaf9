"""Each probe's golden inputs through the tap's own arithmetic, which must give the golden scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from monitor.bank import ProbeBank, Seat
from monitor.errors import TapError
from monitor.events import FloatArray
from monitor.seam.tap import TapBuffers, in_graph, make_scratch
from monitor.seam.transfer import Transfer

SELFTEST_TOLERANCE = 1e-3
"""Largest allowed difference from the golden scores, relative to 1 + their largest magnitude."""

ROWS_TOGETHER = 32
"""Golden inputs in one pass. Up to there a GPU's kernel shares its work out as in a decode step, which is to be
tested."""

Apply = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def score_golden_inputs(bank: ProbeBank, weights: torch.Tensor) -> dict[str, float]:
    """Largest difference from each probe's golden scores, through the tap's own arithmetic with ``weights [L, d, C]``.

    Raises ``TapError`` for one that is off."""
    errors: dict[str, float] = {}
    for apply in _ways(weights):
        for seats in _batches(bank.seats):
            for seat, states in zip(seats, _states(bank, seats, weights, apply), strict=True):
                name = seat.probe.manifest.name
                errors[name] = max(_error(seat, states), errors.get(name, 0.0))
    return errors


def _batches(seats: Sequence[Seat]) -> Iterator[list[Seat]]:
    """As many as have ``ROWS_TOGETHER`` golden inputs: a pass for each of many probes would take seconds."""
    together: list[Seat] = []
    rows = 0
    for seat in seats:
        together.append(seat)
        rows += len(seat.probe.golden_inputs)
        if rows >= ROWS_TOGETHER:
            yield together
            together, rows = [], 0
    if together:
        yield together


def _ways(weights: torch.Tensor) -> list[Apply]:
    """The operation, and on a CPU what the compiler gets in its place."""
    used = torch.ones(1, dtype=torch.int64, device=weights.device)
    # Of its own: the model may be computing on another stream.
    scratch = make_scratch(weights.shape[1], weights.shape[2], weights.device)

    def operation(x: Tensor, weight: Tensor, scores: Tensor, norms: Tensor) -> None:
        torch.ops.probewatch.tap(x, weight, scores, norms, used, scratch)

    return [operation, in_graph] if weights.is_cpu else [operation]


def _states(bank: ProbeBank, seats: Sequence[Seat], weights: Tensor, apply: Apply) -> list[FloatArray]:
    """Of each probe's golden inputs, ``[N, its states]``."""
    starts = np.cumsum([0, *(len(seat.probe.golden_inputs) for seat in seats)]).tolist()
    read_rows = {row for seat in seats for row in seat.layer_rows}
    streams = {row: torch.zeros(starts[-1], bank.d_model) for row in sorted(read_rows)}
    for seat, start in zip(seats, starts[:-1], strict=True):
        for inputs, row in zip(seat.probe.golden_inputs.transpose(0, 1), seat.layer_rows, strict=True):
            streams[row][start : start + len(inputs)] = inputs  # [N, d]
    buffers = TapBuffers.allocate(len(bank.layers), starts[-1], bank.capacity, True, weights.device)
    buffers.scores.zero_()
    for row, x in streams.items():
        apply(x.to(weights.device), weights[row], buffers.scores[row], buffers.squared_norms[row])
    read = Transfer(buffers.read(starts[-1])).arrived()
    states = bank.states(read["scores"], read["squared_norms"])
    return [
        states[start:end, seat.states] for seat, (start, end) in zip(seats, pairwise(starts), strict=True)
    ]


def _error(seat: Seat, states: FloatArray) -> float:
    probe = seat.probe
    found = probe.token_scores(torch.from_numpy(np.ascontiguousarray(states)))
    error = float((found - probe.golden_scores).abs().max())
    limit = SELFTEST_TOLERANCE * (1 + float(probe.golden_scores.abs().max()))
    if not error <= limit:
        raise TapError(
            f"probe {probe.manifest.name!r}: golden scores through the tap are off by {error:.3g}, limit "
            f"{limit:.3g}; the artifact or this build of torch is broken: run `probewatch verify`"
        )
    return error
