"""Are its probabilities right? Scores become probabilities by Platt scaling, fitted where the test set is not.

Brier score: mean (p - y)^2. Expected calibration error: sum over bins of n_bin / n |mean p - mean y|, over ten
bins of equal width (Guo et al. 2017). Both at the share of positives of the test set.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes import evaluation
from probes.evaluating.bench import Bench, share
from probes.evaluating.card import Bin, Reliability

Floats = NDArray[np.float64]
N_BINS: Final = 10
N_FOLDS: Final = 5


def brier(p: Floats, y: NDArray[np.int64]) -> float:
    """Mean squared difference between probability and outcome."""
    return float(np.mean((p - y) ** 2))


def calibration_error(p: Floats, y: NDArray[np.int64]) -> float:
    """Expected calibration error over `N_BINS` bins of equal width."""
    at = _bins(p)
    gaps = [abs(float(p[at == b].sum() - y[at == b].sum())) for b in range(N_BINS)]
    return sum(gaps) / len(p)


def platt(scores: Floats, labels: NDArray[np.int64], asked: Floats) -> Floats:
    """P(positive) of `asked`, by a logistic regression on the one score (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    centre, scale = float(scores.mean()), float(scores.std()) or 1.0
    model = LogisticRegression(C=1e3, max_iter=1000).fit(((scores - centre) / scale)[:, None], labels)
    return np.asarray(model.predict_proba(((asked - centre) / scale)[:, None])[:, 1], np.float64)


def reliability(bench: Bench) -> Reliability:
    """Of the test conversations; the scaling comes from validation, or from the other folds of the test groups."""
    y = bench.test.labels
    if len(set(bench.validation.labels.tolist())) == 2:
        fitted_on = "the validation split"
        known = evaluation.statistics(bench.probe, bench.validation.found)
        p = platt(known, bench.validation.labels, bench.scores)
    else:
        fitted_on = f"the other groups of the test split, in {N_FOLDS} folds"
        p = _cross_fitted(bench.scores, y, bench.test.groups)
    at, base = _bins(p), float(y.mean())
    bins = [
        Bin(predicted=float(p[at == b].mean()), observed=share(int(y[at == b].sum()), int((at == b).sum())))
        for b in range(N_BINS)
        if (at == b).any()
    ]

    return Reliability(
        brier=bench.figure(p, bench.test, _of_both(brier)),
        brier_of_base_rate=base * (1 - base),
        ece=bench.figure(p, bench.test, _of_both(calibration_error)),
        bins=tuple(bins),
        fitted_on=fitted_on,
    )


def _of_both(figure: Callable[[Floats, NDArray[np.int64]], float]) -> evaluation.Separation:
    """A figure of probabilities and outcomes, as the bootstrap asks for it: positives and negatives apart."""

    def separated(positive: Floats, negative: Floats) -> float:
        y = np.concatenate([np.ones(len(positive), np.int64), np.zeros(len(negative), np.int64)])
        return figure(np.concatenate([positive, negative]), y)

    return separated


def _bins(p: Floats) -> NDArray[np.intp]:
    return np.minimum((p * N_BINS).astype(np.intp), N_BINS - 1)


def _cross_fitted(scores: Floats, y: NDArray[np.int64], groups: list[str]) -> Floats:
    """Each group's probabilities from a scaling of the others; the base rate where those have one class."""
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    fold = np.random.default_rng(0).permutation(int(member.max()) + 1)[member] % N_FOLDS
    p = np.full(len(y), float(y.mean()))
    for k in range(N_FOLDS):
        held, others = fold == k, fold != k
        if held.any() and len(set(y[others].tolist())) == 2:
            p[held] = platt(scores[others], y[others], scores[held])
    return p
