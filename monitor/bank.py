"""All attached probes as one matrix a tapped layer, and their token states from what comes back."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monitor.errors import AttachError
from monitor.events import FloatArray, StepScores
from monitor.unscored import explain
from probes import Probe

Selection = slice | npt.NDArray[np.intp]

FEW_NUMBERS = 128
"""For a token to travel with: half a kilobyte."""
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
    factors: tuple[float, ...] | None
    """Of each layer, folded into the columns, when the state is one affine number; else None."""
    bias: float | None
    """Set when the state is one affine number: then it is the columns' sum over layers plus this."""


@dataclass(frozen=True)
class _AffineGroup:
    """Affine probes that read the same layers: their states are one sum over those layers.

    Other layers stay out of the sum: 0 times a NaN there would unscore a probe that does not read it.
    """

    layer_rows: tuple[int, ...]
    columns: Selection
    states: Selection
    bias: FloatArray


class ProbeBank:
    """Probes laid out for ``residual [n, d] @ weights[l] [d, C]`` at every tapped layer ``l``.

    Probes that share no layer share columns, so that a tap is hardly wider than its own probes need; what a column
    holds at a layer that its probe does not read is not its own. Where a probe's state is a single affine number
    (logistic, difference of means, projection ...), its per-layer factors are folded into the columns, so the
    states of all such probes are sums over layers; the others go through the probe library.
    """

    layers: tuple[int, ...]
    epoch: int
    capacity: int
    needs_norm: bool
    seats: tuple[Seat, ...]

    def __init__(
        self,
        probes: Sequence[Probe],
        layers: Sequence[int],
        d_model: int,
        capacity: int,
        before: ProbeBank | None = None,
        norms: bool = False,
    ) -> None:
        """``capacity``: columns of a tap, at least. ``norms``: whether the taps measure norms in any case.

        ``before``: the bank this one follows on a running server. A probe that it holds keeps its place, and neither
        layers nor room can change any more. Raises ``AttachError``.
        """
        names = [probe.manifest.name for probe in probes]
        if len(set(names)) != len(names):
            raise AttachError(f"probe names must differ, found {', '.join(names)}; rename one artifact")
        self.layers = tuple(layers)
        self.d_model = d_model
        self.epoch = 0 if before is None else before.epoch + 1
        """Of changes on a running server, the later the higher; none comes twice with other contents."""
        asked = norms or any(probe.needs_norm for probe in probes)
        self.needs_norm = asked if before is None else before.needs_norm
        kept = {} if before is None else {_identity(seat.probe): seat for seat in before.seats}
        columns, states = _Room(None if before is None else before.capacity), _Room(None)
        for seat in kept.values():
            columns.occupy(seat.columns, seat.layer_rows)
            states.occupy(seat.states)
        seats = []
        for probe in probes:
            old = kept.get(_identity(probe))
            seats.append(self._seat(probe, columns, states) if old is None else replace(old, probe=probe))
        self.seats = tuple(seats)
        widest = max((seat.columns.stop for seat in seats), default=0)
        self.used_columns = max(widest, 1)
        """Columns of the taps, from the first, that hold what probes read; the rest need not travel."""
        self.capacity = max(widest, capacity) if before is None else before.capacity
        self.state_columns = max((seat.states.stop for seat in seats), default=0)
        self._gaps = self.state_columns > sum(seat.states.stop - seat.states.start for seat in seats)
        self._affine = _groups(seats)
        self._other = [seat for seat in seats if seat.bias is None]

    def _seat(self, probe: Probe, columns: _Room, states: _Room) -> Seat:
        missing = [layer for layer in probe.manifest.layers if layer not in self.layers]
        if missing:
            raise AttachError(
                f"probe {probe.manifest.name!r} reads layer {missing[0]}, which is not tapped; tapped are layers "
                f"{', '.join(map(str, self.layers))}: start the server with --tap-layers {missing[0]}"
            )
        if probe.needs_norm and not self.needs_norm:
            raise AttachError(
                f"probe {probe.manifest.name!r} needs the norm of the residual, and the taps measure none; start the "
                "server with such a probe, or with PROBEWATCH_TAP_NORMS=1"
            )
        depth, _, width = probe.columns.shape  # [l, d, c]
        rows = tuple(self.layers.index(layer) for layer in probe.manifest.layers)
        where = columns.take(width, rows)
        if where is None:
            raise AttachError(
                f"probe {probe.manifest.name!r} needs {width} columns, the taps have room for {columns.size} each; "
                "detach one, or start the server with a larger PROBEWATCH_TAP_COLUMNS"
            )
        affine = _affine_form(probe, depth, width)
        place = states.take(_state_width(probe, depth, width))
        assert place is not None  # states have no limit of their own
        factors, bias = (None, None) if affine is None else (tuple(affine[0].tolist()), affine[1])
        return Seat(probe, where, place, rows, factors, bias)

    def weights(self) -> Tensor:
        """What the taps multiply by, ``[L, d, C]``. Made anew: only workers hold it."""
        found = torch.zeros(len(self.layers), self.d_model, self.capacity)
        for seat in self.seats:
            factors = seat.factors or (1.0,) * len(seat.layer_rows)
            for row, factor, weight in zip(seat.layer_rows, factors, seat.probe.columns, strict=True):
                found[row, :, seat.columns] = weight * factor
        return found

    @cached_property
    def state_places(self) -> Selection:
        """The state columns that belong to a probe."""
        return selection([c for seat in self.seats for c in range(seat.states.start, seat.states.stop)])

    @cached_property
    def actions(self) -> dict[str, str]:
        """What each probe does, by name."""
        return {seat.probe.manifest.name: seat.probe.manifest.default_action for seat in self.seats}

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Name and digest of every probe, in order: two processes with the same contents lay states out alike."""
        return [_identity(seat.probe) for seat in self.seats]

    def follow(self, probes: Sequence[Probe], epoch: int | None = None) -> ProbeBank:
        """The bank of the same taps with these probes instead (default: of the next epoch).

        Raises ``AttachError`` where they do not fit.
        """
        found = ProbeBank(probes, self.layers, self.d_model, self.capacity, before=self)
        found.epoch = found.epoch if epoch is None else epoch
        return found

    def shared_with(self, other: ProbeBank) -> list[Seat]:
        """The seats that are the same in both banks, probe and place."""
        places = {(_identity(seat.probe), seat.states.start) for seat in other.seats}
        return [seat for seat in self.seats if (_identity(seat.probe), seat.states.start) in places]

    def states(self, projections: FloatArray, squared_norms: FloatArray | None) -> FloatArray:
        """``projections [L, T, C]`` and ``squared_norms [L, T]`` (where ``needs_norm``) to states ``[T, K]``, each
        finite or with its reason."""
        make = np.zeros if self._gaps else np.empty  # gaps between probes are 0
        states = make((projections.shape[1], self.state_columns), np.float32)
        for group in self._affine:
            # Each [T, probes of the group]
            *others, last = (projections[row][:, group.columns] for row in group.layer_rows)
            summed = sum(others, group.bias)
            if isinstance(group.states, slice):
                np.add(last, summed, out=states[:, group.states])
            else:
                states[:, group.states] = last + summed
        for seat in self._other:
            rows = list(seat.layer_rows)
            own = torch.from_numpy(
                np.ascontiguousarray(projections[rows, :, seat.columns].transpose(1, 0, 2))
            )
            norms = None if squared_norms is None else torch.from_numpy(squared_norms[rows].T)
            states[:, seat.states] = seat.probe.state_from_projections(own, norms).numpy()
        explain(states, projections)
        return states

    @cached_property
    def travels_raw(self) -> bool:
        """Whether projections may travel in place of states: any process makes those with NumPy alone, and the
        projections are few, or at most twice as many."""
        numbers = len(self.layers) * self.used_columns
        return not self._other and numbers <= max(FEW_NUMBERS, 2 * self.state_columns)

    def made(self, step: StepScores) -> StepScores:
        """The step with its states made, where the worker left them raw. Raises ``ValueError`` where they are not laid
        out by this bank."""
        shape = step.states.shape
        expected: tuple[int, ...] = (int(step.counts.sum()), self.state_columns)
        if step.raw:
            if not self.travels_raw:
                raise ValueError("raw step scores for probes whose states travel; restart the whole server")
            expected = (len(self.layers), expected[0], self.used_columns)
        if shape != expected:
            raise ValueError(
                f"step scores of shape {shape} in epoch {step.epoch}, {expected} expected; restart the whole server"
            )
        return step._replace(states=self.states(step.states, None), raw=False) if step.raw else step


class _Room:
    """Which of ``size`` places (None: as many as wanted) are free at each layer."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self._taken: dict[int, list[slice]] = {}

    def occupy(self, place: slice, layers: Sequence[int] = (0,)) -> None:
        """Nobody else gets ``place`` at these layers."""
        for layer in layers:
            bisect.insort(self._taken.setdefault(layer, []), place, key=_start)

    def take(self, width: int, layers: Sequence[int] = (0,)) -> slice | None:
        """The first ``width`` places that are free at all of these layers; None if there are none."""
        at = 0
        for other in heapq.merge(*(self._taken.get(layer, ()) for layer in layers), key=_start):
            if other.start - at >= width:
                break
            at = max(at, other.stop)
        if self.size is not None and at + width > self.size:
            return None
        self.occupy(found := slice(at, at + width), layers)
        return found


def _start(place: slice) -> int:
    return int(place.start)


def _identity(probe: Probe) -> tuple[str, str]:
    return probe.manifest.name, probe.manifest.tensors_sha256


def selection(indices: list[int]) -> Selection:
    """Evenly rising indices as a slice, which numpy reads several times faster than a list."""
    steps = set(np.diff(indices).tolist()) or {1}
    # They fall where a probe that came later sits in a place that became free before the others'.
    if len(steps) > 1 or min(steps) < 1:
        return np.array(indices, np.intp)
    return slice(indices[0], indices[-1] + 1, steps.pop())


def _groups(seats: Sequence[Seat]) -> list[_AffineGroup]:
    by_layers: dict[tuple[int, ...], list[Seat]] = {}
    for seat in seats:
        if seat.bias is not None:
            by_layers.setdefault(seat.layer_rows, []).append(seat)
    return [
        _AffineGroup(
            rows,
            selection([seat.columns.start for seat in group]),
            selection([seat.states.start for seat in group]),
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
