"""All attached probes as one matrix a tapped layer, and their token states from what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monitor.errors import AttachError
from monitor.events import FloatArray
from probes import Probe

LARGEST_BIAS = 2.0**16
"""Beyond it, float32 can no longer tell the factors of an affine state from its bias."""


@dataclass(frozen=True)
class Seat:
    """Where one probe sits: its columns in the taps and its columns in the states."""

    probe: Probe
    columns: slice
    states: slice
    layer_rows: tuple[int, ...]
    """Index among the tapped layers of each layer the probe reads."""
    bias: float | None
    """Set when the state is one affine number: then it is the columns' sum over layers plus this."""


@dataclass(frozen=True)
class _AffineGroup:
    """Affine probes that read the same layers: their states are one sum over those layers.

    Other layers stay out of the sum: 0 times a NaN there would unscore a probe that does not read it.
    """

    layer_rows: tuple[int, ...]
    columns: npt.NDArray[np.intp]
    states: npt.NDArray[np.intp]
    bias: FloatArray


class ProbeBank:
    """Probes laid out for ``residual [n, d] @ weights[l] [d, C]`` at every tapped layer ``l``.

    A probe's columns are zero at layers it does not read. Where a probe's state is a single affine number
    (logistic, difference of means, projection ...), its per-layer factors are folded into the columns, so the
    states of all such probes are sums over layers; the others go through the probe library.
    """

    def __init__(self, probes: Sequence[Probe], layers: Sequence[int], d_model: int, capacity: int) -> None:
        names = [probe.manifest.name for probe in probes]
        if len(set(names)) != len(names):
            raise AttachError(f"probe names must differ, found {', '.join(names)}; rename one artifact")
        self.layers = tuple(layers)
        self.needs_norm = any(probe.needs_norm for probe in probes)
        needed = sum(probe.columns.shape[2] for probe in probes)
        self.capacity = max(needed, capacity)
        self.weights = torch.zeros(len(self.layers), d_model, self.capacity)  # [L, d, C]
        seats = []
        column = state = 0
        for probe in probes:
            seat = self._seat(probe, column, state)
            seats.append(seat)
            column, state = seat.columns.stop, seat.states.stop
        self.seats = tuple(seats)
        self.state_columns = state
        self._affine = _groups(seats)
        self._other = [seat for seat in seats if seat.bias is None]

    def _seat(self, probe: Probe, column: int, state: int) -> Seat:
        columns = probe.columns  # [l, d, c]
        rows = tuple(self.layers.index(layer) for layer in probe.manifest.layers)
        where = slice(column, column + columns.shape[2])
        affine = _affine_form(probe, columns.shape[0], columns.shape[2])
        factors = torch.ones(len(rows)) if affine is None else affine[0]
        for row, factor, weight in zip(rows, factors, columns, strict=True):
            self.weights[row, :, where] = weight * factor
        width = _state_width(probe, columns.shape[0], columns.shape[2])
        return Seat(probe, where, slice(state, state + width), rows, None if affine is None else affine[1])

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Name and digest of every probe, in order: two processes with the same contents lay states out alike."""
        return [(seat.probe.manifest.name, seat.probe.manifest.tensors_sha256) for seat in self.seats]

    def states(self, projections: FloatArray, squared_norms: FloatArray | None) -> FloatArray:
        """``projections [L, T, C]`` and ``squared_norms [L, T]`` (where ``needs_norm``) to states ``[T, K]``."""
        states = np.empty((projections.shape[1], self.state_columns), np.float32)
        for group in self._affine:
            first, *others = group.layer_rows
            summed = projections[first][:, group.columns]  # [T, probes of the group]
            for row in others:
                summed = summed + projections[row][:, group.columns]
            states[:, group.states] = summed + group.bias
        for seat in self._other:
            rows = list(seat.layer_rows)
            own = torch.from_numpy(
                np.ascontiguousarray(projections[rows, :, seat.columns].transpose(1, 0, 2))
            )
            norms = None if squared_norms is None else torch.from_numpy(squared_norms[rows].T)
            states[:, seat.states] = seat.probe.state_from_projections(own, norms).numpy()
        return states


def _groups(seats: Sequence[Seat]) -> list[_AffineGroup]:
    by_layers: dict[tuple[int, ...], list[Seat]] = {}
    for seat in seats:
        if seat.bias is not None:
            by_layers.setdefault(seat.layer_rows, []).append(seat)
    return [
        _AffineGroup(
            rows,
            np.array([seat.columns.start for seat in group], np.intp),
            np.array([seat.states.start for seat in group], np.intp),
            np.array([seat.bias for seat in group], np.float32),
        )
        for rows, group in by_layers.items()
    ]


def _affine_form(probe: Probe, layers: int, columns: int) -> tuple[Tensor, float] | None:
    """``(factor of each layer, bias)`` if the state is ``sum_l factor_l * projection_l + bias``, else None."""
    if probe.needs_norm or columns != 1:
        return None
    basis = torch.cat([torch.zeros(1, layers), torch.eye(layers)]).unsqueeze(-1)  # [1 + l, l, 1]
    state = probe.state_from_projections(basis)
    if state.shape[1] != 1:
        return None
    bias, factors = float(state[0, 0]), state[1:, 0] - state[0, 0]
    trial = torch.randn(32, layers, 1, generator=torch.Generator().manual_seed(0)) * 10
    expected = (trial[:, :, 0] * factors).sum(1) + bias
    if abs(bias) > LARGEST_BIAS or not torch.allclose(
        probe.state_from_projections(trial)[:, 0], expected, rtol=1e-4, atol=1e-4
    ):
        return None
    return factors, bias


def _state_width(probe: Probe, layers: int, columns: int) -> int:
    norms = torch.ones(1, layers) if probe.needs_norm else None
    return int(probe.state_from_projections(torch.zeros(1, layers, columns), norms).shape[1])
