"""Each probe's golden inputs through the tap's own arithmetic, which must give the golden scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from monitor.bank import ProbeBank, Seat
from monitor.errors import TapError
from monitor.seam.tap import TapBuffers, in_graph, make_scratch
from monitor.seam.transfer import Transfer

SELFTEST_TOLERANCE = 1e-3
"""Largest allowed difference from the golden scores, relative to 1 + their largest magnitude."""

Apply = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def score_golden_inputs(bank: ProbeBank, weights: torch.Tensor) -> dict[str, float]:
    """Largest difference from each probe's golden scores, through the tap's own arithmetic with ``weights [L, d, C]``.

    Raises ``TapError`` for one that is off."""
    errors: dict[str, float] = {}
    for apply in _ways(weights):
        for seat in bank.seats:
            error = _error(bank, seat, weights, apply)
            errors[seat.probe.manifest.name] = max(error, errors.get(seat.probe.manifest.name, 0.0))
    return errors


def _ways(weights: torch.Tensor) -> list[Apply]:
    """The operation, and on a CPU what the compiler gets in its place."""
    used = torch.ones(1, dtype=torch.int64, device=weights.device)
    # Of its own: the model may be computing on another stream.
    scratch = make_scratch(weights.shape[1], weights.shape[2], weights.device)

    def operation(x: Tensor, weight: Tensor, scores: Tensor, norms: Tensor) -> None:
        torch.ops.probewatch.tap(x, weight, scores, norms, used, scratch)

    return [operation, in_graph] if weights.is_cpu else [operation]


def _error(bank: ProbeBank, seat: Seat, weights: torch.Tensor, apply: Apply) -> float:
    probe = seat.probe
    inputs = probe.golden_inputs.to(weights.device)  # [N, l, d]
    n = len(inputs)
    buffers = TapBuffers.allocate(len(bank.layers), n, bank.capacity, True, weights.device)
    buffers.scores.zero_()
    for column, row in enumerate(seat.layer_rows):
        x, norms = inputs[:, column].contiguous(), buffers.squared_norms[row]
        apply(x, weights[row], buffers.scores[row], norms)
    read = Transfer(buffers.read(n)).arrived()
    states = bank.states(read["scores"], read["squared_norms"])[:, seat.states]
    found = probe.token_scores(torch.from_numpy(np.ascontiguousarray(states)))
    error = float((found - probe.golden_scores).abs().max())
    limit = SELFTEST_TOLERANCE * (1 + float(probe.golden_scores.abs().max()))
    if not error <= limit:
        raise TapError(
            f"probe {probe.manifest.name!r}: golden scores through the tap are off by {error:.3g}, limit "
            f"{limit:.3g}; the artifact or this build of torch is broken: run `probewatch verify`"
        )
    return error
