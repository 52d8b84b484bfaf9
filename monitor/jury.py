"""The verdicts of all probes on a finished sequence: those that count alike are judged as one matrix.

The same verdicts as ``monitor.verdict.judge`` (held equal by a test), without a walk through the library for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitor.bank import ProbeBank, Seat, Selection, selection
from monitor.events import FloatArray
from monitor.verdict import Floats, Verdicts, judge
from probes.manifest import TokenMask
from probes.masks import span

LOOP_FROM = 256
"""Probes from which a loop over tokens is quicker than one array of all running values, which no cache holds."""
TOGETHER = ("mean", "max", "last")
"""Methods of one number a token whose running values need no loop over tokens."""


@dataclass(frozen=True)
class _Bench:
    """Probes with one mask, aggregation and statistic."""

    places: Selection
    """Among all probes."""
    columns: Selection
    token_mask: TokenMask
    method: str
    sup_from: int | None
    """In-mask tokens before the statistic may take its supremum; None: the final value counts."""


class Jury:
    """Judges by one bank."""

    def __init__(self, bank: ProbeBank) -> None:
        manifests = [seat.probe.manifest for seat in bank.seats]
        self.names = [manifest.name for manifest in manifests]
        """In the order of a verdict's columns."""
        self._place = {name: index for index, name in enumerate(self.names)}
        thresholds = [math.inf if m.threshold is None else m.threshold for m in manifests]
        self.thresholds = np.array(thresholds, np.float64)
        """Infinite without one."""
        self.children = {phase: [(name, phase) for name in self.names] for phase in ("prompt", "generation")}
        """Labels of every probe's token counters, by phase."""
        self.acting = [(name, action) for name, action in bank.actions.items() if action != "observe"]
        """Name and action of the probes that do more than observe."""
        self.acting_places = np.array([self._place[name] for name, _ in self.acting], np.intp)
        """[acting] among all probes."""
        known = [
            (index, manifest, manifest.benign_quantiles)
            for index, manifest in enumerate(manifests)
            if manifest.benign_quantiles is not None
        ]
        contents = bank.contents
        self.calibrated = [(index, contents[index]) for index, _, _ in known]
        """Place, and name with digest, of the probes that know benign traffic."""
        margins = [
            (index, m.name, benign.iqr)
            for index, m, benign in known
            if benign.iqr > 0 and m.threshold is not None
        ]
        self.margin_places = np.array([index for index, _, _ in margins], np.intp)
        """Among all probes, those whose scores have a margin."""
        self.margin_children = [(name,) for _, name, _ in margins]
        self.margin_iqrs = np.array([iqr for _, _, iqr in margins], np.float64)
        """Their benign interquartile ranges."""
        alike: dict[object, list[Seat]] = {}
        self._alone: list[Seat] = []
        for seat in bank.seats:
            manifest, width = seat.probe.manifest, seat.states.stop - seat.states.start
            if width == 1 and manifest.aggregation.method in TOGETHER:
                key = (manifest.token_mask, manifest.aggregation, manifest.statistic)
                alike.setdefault(key, []).append(seat)
            else:
                self._alone.append(seat)
        for seats in alike.values():
            seats.sort(
                key=lambda seat: seat.states.start
            )  # then the columns are a slice, and nothing is copied
        self._benches = [(_bench(seats, self._place), seats) for seats in alike.values()]

    def undecided(self) -> Verdicts:
        """That no probe has a score of any token that counts."""
        return Verdicts(self.names, self.thresholds)

    def judge(self, states: FloatArray, prompt_tokens: int) -> Verdicts:
        """``states [T, K]`` as the bank lays them out, NaN where unscored; row ``t`` is position ``t``."""
        found = self.undecided()
        alone = list(self._alone)
        for bench, seats in self._benches:
            inside = span(len(states), prompt_tokens, bench.token_mask)
            own = None if inside is None else states[inside, bench.columns]
            if inside is None or own is None or not np.isfinite(own).all():
                alone += seats
            elif len(own):
                found.fill(bench.places, _statistics(bench, own), _peaks(own) + inside.start, len(own))
        for seat in alone:
            name = seat.probe.manifest.name
            found.put(self._place[name], judge(seat.probe, states[:, seat.states], prompt_tokens))
        return found


def _bench(seats: list[Seat], place: Mapping[str, int]) -> _Bench:
    first = seats[0].probe.manifest
    return _Bench(
        places=selection([place[seat.probe.manifest.name] for seat in seats]),
        columns=selection([seat.states.start for seat in seats]),
        token_mask=first.token_mask,
        method=first.aggregation.method,
        sup_from=first.aggregation.min_tokens if first.statistic == "running_sup" else None,
    )


def _statistics(bench: _Bench, own: FloatArray) -> Floats:
    """``own [n, P]``, finite scores of the in-mask tokens -> ``[P]``"""
    n = len(own)
    if bench.method == "max":
        found = own.max(axis=0)
    elif bench.sup_from is None or n < bench.sup_from:
        found = own[-1] if bench.method == "last" else own.mean(axis=0, dtype=np.float64)
    elif bench.method == "last":
        found = own[bench.sup_from - 1 :].max(axis=0)
    else:
        found = _largest_mean(own, bench.sup_from)
    return np.asarray(found, np.float64)


def _largest_mean(own: FloatArray, least: int) -> Floats:
    """``[P]`` of the first ``least`` tokens of ``own [n, P]``, the first ``least + 1``, and so on to all of them."""
    if own.shape[1] < LOOP_FROM:
        running = np.cumsum(own, axis=0, dtype=np.float64)
        running /= np.arange(1, len(own) + 1)[:, None]
        found: Floats = running[least - 1 :].max(axis=0)
        return found
    total = own[:least].sum(axis=0, dtype=np.float64)
    found = total / least
    for n in range(least, len(own)):
        total += own[n]
        np.maximum(found, total / (n + 1), out=found)
    return found


def _peaks(own: FloatArray) -> npt.NDArray[np.intp]:
    """The first row of the largest score of each column. NumPy's ``argmax`` of columns takes longer than all this."""
    found: npt.NDArray[np.intp] = (own == own.max(axis=0)).argmax(axis=0)
    return found
