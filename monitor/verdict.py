"""From the token states of one sequence to verdicts, by the rule of the contract."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from monitor.bank import Selection
from monitor.events import FloatArray, ProbeVerdict
from probes import Probe
from probes.masks import mask

Floats = npt.NDArray[np.float64]
OK, FLAGGED, UNSCORED = "ok", "flagged", "unscored"
_SEVERITY = {OK: 0, UNSCORED: 1, FLAGGED: 2}


def judge(probe: Probe, states: FloatArray, prompt_tokens: int) -> ProbeVerdict:
    """The verdict of one probe on the tokens fed so far.

    ``states [T, K]``: the probe's own state columns, NaN where unscored; row ``t`` is position ``t``.
    Missing tokens leave the statistic to the others, but never pass as scored.
    """
    manifest = probe.manifest
    inside = mask(np.arange(len(states)), prompt_tokens, manifest.token_mask)
    scored = inside & np.isfinite(states).all(axis=1)
    n = int(scored.sum())
    statistic = probe.statistic(states, scored) if n else math.nan
    peak = None
    if n:
        token_scores = probe.token_scores(torch.from_numpy(states[scored])).numpy()
        peak = int(np.flatnonzero(scored)[int(token_scores.argmax())])
    threshold = manifest.threshold
    return ProbeVerdict(
        score=float(statistic) if n else None,
        threshold=math.inf if threshold is None else threshold,
        flagged=threshold is not None and bool(n) and probe.crossed(statistic),
        unscored=n == 0 or n < int(inside.sum()),
        peak_token=peak,
        tokens_scored=n,
    )


class Verdicts(Mapping[str, ProbeVerdict]):
    """Of many probes on one sequence, as columns ``[P]``: most are never looked at one by one."""

    def __init__(self, names: Sequence[str], thresholds: Floats) -> None:
        """Nothing scored yet. ``thresholds``: infinite without one."""
        self._names = names
        self._thresholds = thresholds
        self.scores = np.full(len(names), np.nan)
        """[P], as all of these; NaN without one"""
        self.flagged = np.zeros(len(names), bool)
        self.unscored = np.ones(len(names), bool)
        self._peaks = np.full(len(names), -1)
        self._counts = np.zeros(len(names), np.int64)

    def fill(self, where: Selection, scores: Floats, peaks: npt.NDArray[np.intp], count: int) -> None:
        """Probes that scored all of ``count`` in-mask tokens."""
        self.scores[where] = scores
        self.flagged[where] = scores > self._thresholds[where]
        self.unscored[where] = False
        self._peaks[where] = peaks
        self._counts[where] = count

    def put(self, index: int, one: ProbeVerdict) -> None:
        """A probe that was judged by itself."""
        self.scores[index] = np.nan if one.score is None else one.score
        self.flagged[index], self.unscored[index] = one.flagged, one.unscored
        self._peaks[index] = -1 if one.peak_token is None else one.peak_token
        self._counts[index] = one.tokens_scored

    def worst_of(self, places: Selection) -> str:
        """The worst verdict of the probes at ``places``; ``ok`` where there are none."""
        if self.flagged[places].any():
            return FLAGGED
        return UNSCORED if self.unscored[places].any() else OK

    @cached_property
    def _each(self) -> dict[str, ProbeVerdict]:
        columns = (self._thresholds, self.flagged, self.unscored)
        scores = [None if math.isnan(score) else score for score in self.scores.tolist()]
        peaks = [None if peak < 0 else peak for peak in self._peaks.tolist()]
        # In the order of its fields: by name it takes more than twice as long.
        rows = zip(scores, *(one.tolist() for one in columns), peaks, self._counts.tolist(), strict=True)
        return dict(zip(self._names, map(ProbeVerdict._make, rows), strict=True))

    def __getitem__(self, name: str) -> ProbeVerdict:
        return self._each[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def of_probe(verdict: ProbeVerdict) -> str:
    """``flagged``, ``unscored`` or ``ok`` for a single probe."""
    if verdict.flagged:
        return FLAGGED
    return UNSCORED if verdict.unscored else OK


def of_sequence(verdicts: Mapping[str, ProbeVerdict], actions: Mapping[str, str]) -> str:
    """The verdict of a sequence: only probes whose action is not ``observe`` count."""
    return worst([of_probe(v) for name, v in verdicts.items() if actions[name] != "observe"])


def worst(verdicts: Sequence[str]) -> str:
    """The worst of several verdicts; ``ok`` if there are none."""
    return max(verdicts, key=_SEVERITY.__getitem__, default=OK)
