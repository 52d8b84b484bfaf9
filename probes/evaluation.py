"""How well a probe separates, with honest intervals.

Scores are one deployed statistic a conversation. Intervals are percentile intervals of a bootstrap over
GROUPS (entities): conversations of one entity share its facts, and counting them as independent would make
the intervals too narrow. A threshold is estimated anew inside each resample, so its own uncertainty is in
the interval.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from probes.calibration import threshold_at
from probes.errors import CalibrationError, DataError
from probes.estimate import Estimate, Floats, percentile
from probes.hf import Activations
from probes.probe import Probe

Separation = Callable[[Floats, Floats], float]
"""(scores of positives, scores of negatives) -> figure"""

RESAMPLES = 1000


def statistics(probe: Probe, found: Sequence[Activations]) -> Floats:
    """[n] the deployed statistic of each conversation. `DataError` where a mask holds no token, and for NaN."""
    rule = probe.manifest
    scores, empty, broken = [], 0, 0
    for a in found:
        states = probe.token_state(a.at(rule.layers))[a.mask(rule.token_mask)]
        empty += not len(states)
        broken += not bool(
            states.isfinite().all()
        )  # of a token: the highest of several hides a minus infinity
        scores.append(probe.statistic(states))
    if empty:
        raise DataError(
            f"{empty} of {len(found)} conversations have no token in the mask of {rule.name!r}; widen it"
        )
    if broken:
        raise DataError(
            f"{broken} of {len(found)} conversations score NaN or infinity under {rule.name!r}; collect their "
            "activations again"
        )
    return np.array(scores)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """P(positive > negative) + P(equal) / 2, the Mann-Whitney statistic; NaN without both classes."""
    high, low = np.asarray(positive, np.float64), np.sort(np.asarray(negative, np.float64))
    if not len(high) or not len(low):
        return float("nan")
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / (2 * len(low)))


def auroc_of(labels: Sequence[int]) -> Callable[[Floats], float]:
    """The AUROC of scores in the order of `labels`, as an objective."""
    y = np.asarray(labels)
    return lambda scores: auroc(scores[y == 1], scores[y == 0])


def recall_at(fpr: float) -> Separation:
    """Recall with the threshold that the negatives give for `fpr`; NaN where there are too few of them."""

    def recall(positive: Floats, negative: Floats) -> float:
        try:
            return float((positive > threshold_at(negative, fpr)).mean())
        except CalibrationError:
            return float("nan")

    return recall


def bootstrap(
    figure: Separation,
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The figure with its group-clustered 95% interval. scores, labels, groups: one a conversation."""
    s, y = np.asarray(scores, np.float64), np.asarray(labels).astype(bool)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(member.max()) + 1
    rows = [np.flatnonzero(member == g) for g in range(n_groups)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = np.concatenate([rows[g] for g in rng.integers(n_groups, size=n_groups)])
        values.append(figure(s[drawn][y[drawn]], s[drawn][~y[drawn]]))
    return percentile(figure(s[y], s[~y]), [value for value in values if not np.isnan(value)])


def detection_tokens(probe: Probe, found: Activations) -> int | None:
    """Answer tokens the model had been fed when the running value first crossed; None if it never did.

    0: at the prompt's last token or before, so before anything was said.
    """
    rule = probe.manifest
    inside = found.mask(rule.token_mask)
    state, positions = probe.token_state(found.at(rule.layers))[inside], found.positions[inside]
    stream = probe.stream()
    for row, position in zip(state, positions, strict=True):
        stream.update(row[None])
        if probe.crossed(stream.live):
            return max(0, int(position) - found.prompt_length + 1)
    return None
