"""Each probe's golden inputs through the tap's own arithmetic, which must give the golden scores."""

from __future__ import annotations

import numpy as np
import torch

from monitor.bank import ProbeBank
from monitor.errors import TapError
from monitor.seam.tap import TapBuffers, in_graph, make_scratch, used_layers
from monitor.seam.transfer import Transfer

SELFTEST_TOLERANCE = 1e-3
"""Largest allowed difference from the golden scores, relative to 1 + their largest magnitude."""


def score_golden_inputs(bank: ProbeBank, weights: torch.Tensor) -> dict[str, float]:
    """Largest difference from each probe's golden scores, through the tap's own arithmetic with ``weights [L, d, C]``.

    Raises ``TapError`` for one that is off."""
    errors, used = {}, used_layers(weights)
    # Of its own: the model may be computing on another stream.
    scratch = make_scratch(weights.shape[1], bank.capacity, weights.device)
    for seat in bank.seats:
        probe = seat.probe
        inputs = probe.golden_inputs.to(weights.device)  # [N, l, d]
        n = len(inputs)
        buffers = TapBuffers.allocate(len(bank.layers), n, bank.capacity, True, weights.device)
        buffers.scores.zero_()
        for column, row in enumerate(seat.layer_rows):
            x, norms = inputs[:, column].contiguous(), buffers.squared_norms[row]
            torch.ops.probewatch.tap(
                x, weights[row], buffers.scores[row], norms, used[row : row + 1], scratch
            )
            if x.is_cpu:  # as compiled; what is not compiled has just been run
                in_graph(x, weights[row], buffers.scores[row], norms)
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
        errors[probe.manifest.name] = error
    return errors
