"""The verdicts of all probes on a finished sequence: those that count alike are judged as one matrix.

The same verdicts as ``monitor.verdict.judge`` (held equal by a test), without a walk through the library for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from monitor.bank import ProbeBank, Seat, Selection, selection
from monitor.events import FloatArray
from monitor.verdict import OK, Floats, Verdicts, judge
from probes.manifest import TokenMask
from probes.masks import span

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
        self._order = [manifest.name for manifest in manifests]
        self._place = {name: index for index, name in enumerate(self._order)}
        thresholds = [math.inf if m.threshold is None else m.threshold for m in manifests]
        self._thresholds = np.array(thresholds, np.float64)
        self.ok = [(name, OK) for name in self._order]
        """Labels of every probe's verdict where all are ``ok``."""
        self.children = {phase: [(name, phase) for name in self._order] for phase in ("prompt", "generation")}
        """Labels of every probe's token counters, by phase."""
        self.acting = [(name, action) for name, action in bank.actions.items() if action != "observe"]
        """Name and action of the probes that do more than observe."""
        self.calibrated = [
            (content, seat.probe.manifest.benign_quantiles.iqr)
            for content, seat in zip(bank.contents, bank.seats, strict=True)
            if seat.probe.manifest.benign_quantiles is not None
        ]
        """Name with digest, and benign interquartile range, of the probes that know benign traffic."""
        alike: dict[object, list[Seat]] = {}
        self._alone: list[Seat] = []
        for seat in bank.seats:
            manifest, width = seat.probe.manifest, seat.states.stop - seat.states.start
            if width == 1 and manifest.aggregation.method in TOGETHER:
                key = (manifest.token_mask, manifest.aggregation, manifest.statistic)
                alike.setdefault(key, []).append(seat)
            else:
                self._alone.append(seat)
        self._benches = [(_bench(seats, self._place), seats) for seats in alike.values()]

    def undecided(self) -> Verdicts:
        """That no probe has a score of any token that counts."""
        return Verdicts(self._order, self._thresholds)

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
                peaks = own.argmax(axis=0) + inside.start
                found.fill(bench.places, _statistics(bench, own), peaks, len(own))
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
    else:
        running = own
        if bench.method == "mean":
            running = np.cumsum(own, axis=0, dtype=np.float64)
            running /= np.arange(1, n + 1)[:, None]
        found = running[bench.sup_from - 1 :].max(axis=0)
    return np.asarray(found, np.float64)
