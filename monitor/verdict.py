"""From the token states of one sequence to verdicts, by the rule of the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from monitor.events import FloatArray, ProbeVerdict
from probes import Probe
from probes.masks import mask

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


def nothing_scored(threshold: float | None) -> ProbeVerdict:
    """Of a probe that has no score of any token that counts."""
    return ProbeVerdict(None, math.inf if threshold is None else threshold, False, True, None, 0)


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
