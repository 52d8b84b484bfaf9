"""The verdicts of all probes on a finished sequence: those that count alike are judged as one matrix.

The same verdicts as ``monitor.verdict.judge`` (held equal by a test), without a walk through the library for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from monitor.bank import ProbeBank, Seat, Selection, selection
from monitor.events import FloatArray, ProbeVerdict
from monitor.verdict import judge, nothing_scored
from probes.manifest import TokenMask
from probes.masks import span

TOGETHER = ("mean", "max", "last")
"""Methods of one number a token whose running values need no loop over tokens."""


@dataclass(frozen=True)
class _Bench:
    """Probes with one mask, aggregation and statistic."""

    names: tuple[str, ...]
    columns: Selection
    thresholds: npt.NDArray[np.float64]
    """Infinite without one."""
    token_mask: TokenMask
    method: str
    sup_from: int | None
    """In-mask tokens before the statistic may take its supremum; None: the final value counts."""


class Jury:
    """Judges by one bank."""

    def __init__(self, bank: ProbeBank) -> None:
        self._order = [seat.probe.manifest.name for seat in bank.seats]
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
        self._benches = [(_bench(seats), seats) for seats in alike.values()]

    def judge(self, states: FloatArray, prompt_tokens: int) -> dict[str, ProbeVerdict]:
        """``states [T, K]`` as the bank lays them out, NaN where unscored; row ``t`` is position ``t``."""
        found: dict[str, ProbeVerdict] = {}
        alone = list(self._alone)
        for bench, seats in self._benches:
            inside = span(len(states), prompt_tokens, bench.token_mask)
            if inside is None:
                alone += seats
                continue
            own = states[inside, bench.columns]
            if not len(own):
                thresholds = zip(bench.names, bench.thresholds.tolist(), strict=True)
                found.update((name, nothing_scored(threshold)) for name, threshold in thresholds)
            elif np.isfinite(own).all():
                found.update(_verdicts(bench, own, inside.start))
            else:
                alone += seats
        for seat in alone:
            found[seat.probe.manifest.name] = judge(seat.probe, states[:, seat.states], prompt_tokens)
        return {name: found[name] for name in self._order}


def _bench(seats: list[Seat]) -> _Bench:
    manifests = [seat.probe.manifest for seat in seats]
    first = manifests[0]
    return _Bench(
        names=tuple(m.name for m in manifests),
        columns=selection([seat.states.start for seat in seats]),
        thresholds=np.array([math.inf if m.threshold is None else m.threshold for m in manifests]),
        token_mask=first.token_mask,
        method=first.aggregation.method,
        sup_from=first.aggregation.min_tokens if first.statistic == "running_sup" else None,
    )


def _verdicts(bench: _Bench, own: FloatArray, first: int) -> dict[str, ProbeVerdict]:
    """``own [n, P]``: finite scores of the in-mask tokens, which stand at positions ``first`` and on."""
    scores = _statistics(bench, own.astype(np.float64))
    flagged = scores > bench.thresholds
    peaks = own.argmax(axis=0) + first
    score, threshold, crossed, peak = (one.tolist() for one in (scores, bench.thresholds, flagged, peaks))
    unscored, counted = repeat(False), repeat(len(own))
    # In the order of its fields: by name it takes more than twice as long.
    rows = zip(score, threshold, crossed, unscored, peak, counted, strict=False)
    return dict(zip(bench.names, map(ProbeVerdict._make, rows), strict=True))


def _statistics(bench: _Bench, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, P] -> [P]"""
    n = len(own)
    if bench.sup_from is None or n < bench.sup_from:
        final = {"mean": lambda: own.mean(axis=0), "max": lambda: own.max(axis=0), "last": lambda: own[-1]}
        return np.asarray(final[bench.method]())
    if bench.method == "max":
        return np.asarray(own.max(axis=0))
    if bench.method == "mean":
        own = own.cumsum(axis=0) / np.arange(1, n + 1)[:, None]
    return np.asarray(own[bench.sup_from - 1 :].max(axis=0))
