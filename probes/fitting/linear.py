"""Affine scores fitted to token rows, or to the mean row of each conversation (`Options.pooled`).

Each fit gives weight [L, d] and bias []: score = sum_l x_l . weight_l + bias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from probes.fitting.rows import Floats, Labels, TokenRows
from probes.fitting.types import Fit, Options
from probes.kinds import fold_scaling


@dataclass(frozen=True)
class Rows:
    """Rows to fit: x [n, L * d], y [n] of 0 and 1, weight [n]."""

    x: Floats
    y: Labels
    weight: Floats


RowFit = Callable[[Rows, float], tuple[Floats, float]]
"""rows, regularisation C -> (weight [L * d], bias)"""


def thinned(rows: Rows, most: int) -> Rows:
    """At most `most` of the rows, drawn evenly and always the same ones."""
    if len(rows.x) <= most:
        return rows
    kept = np.sort(np.random.default_rng(0).choice(len(rows.x), most, replace=False))
    return Rows(rows.x[kept], rows.y[kept], rows.weight[kept])


def rows_of(found: TokenRows, labels: Labels, options: Options) -> Rows:
    """The rows that an affine fit reads."""
    if options.pooled:
        weight = found.conversations / (len(np.unique(labels)) * np.bincount(labels)[labels])
        return Rows(found.means, labels, np.asarray(weight, np.float64))
    return thinned(Rows(found.flat, labels[found.owner], found.row_weights(labels)), options.max_rows)


def standardisation(rows: Rows) -> tuple[Floats, Floats]:
    """(mean, scale), each [L * d]; scale 1 where nothing varies."""
    mean = np.average(rows.x, axis=0, weights=rows.weight)
    variance = np.average((rows.x - mean) ** 2, axis=0, weights=rows.weight)
    return np.asarray(mean), np.sqrt(np.where(variance > 0, variance, 1.0))


def fit_logistic(rows: Rows, regularisation: float = 1.0) -> tuple[Floats, float]:
    """L2 logistic regression on standardised rows, the scaling folded into (weight, bias) afterwards."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = standardisation(rows)
    model = LogisticRegression(C=regularisation, max_iter=300, tol=1e-3)
    model.fit((rows.x - mean) / scale, rows.y, sample_weight=rows.weight)
    return fold_scaling(model.coef_[0], float(model.intercept_[0]), mean, scale)


def fit_ridge(rows: Rows, regularisation: float = 1.0) -> tuple[Floats, float]:
    """Least squares to +1 and -1 with the penalty |w|^2 / C on standardised rows."""
    from sklearn.linear_model import Ridge

    mean, scale = standardisation(rows)
    model = Ridge(alpha=1 / regularisation)
    model.fit((rows.x - mean) / scale, 2.0 * rows.y - 1.0, sample_weight=rows.weight)
    return fold_scaling(model.coef_, float(model.intercept_), mean, scale)


def class_means(rows: Rows) -> tuple[Floats, Floats]:
    """(mean of the positives, mean of the negatives), each [L * d]."""
    means = [np.average(rows.x[rows.y == y], axis=0, weights=rows.weight[rows.y == y]) for y in (1, 0)]
    return means[0], means[1]


def fit_difference_of_means(rows: Rows, _regularisation: float = 1.0) -> tuple[Floats, float]:
    """w = mu+ - mu-, b = -w . (mu+ + mu-) / 2: zero halfway between the class means."""
    positive, negative = class_means(rows)
    return halfway(positive - negative, positive, negative)


def fit_mass_mean(rows: Rows, _regularisation: float = 1.0) -> tuple[Floats, float]:
    """w = pinv(Sigma) (mu+ - mu-), Sigma the weighted covariance within classes (2310.06824)."""
    positive, negative = class_means(rows)
    centred = rows.x - np.where(rows.y[:, None] == 1, positive, negative)
    covariance = (centred * rows.weight[:, None]).T @ centred / rows.weight.sum()
    return halfway(np.linalg.pinv(covariance, hermitian=True) @ (positive - negative), positive, negative)


def fit_lda(rows: Rows, _regularisation: float = 1.0) -> tuple[Floats, float]:
    """As mass-mean, with the covariance shrunk towards a multiple of the identity (Ledoit and Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    positive, negative = class_means(rows)
    centred = rows.x - np.where(rows.y[:, None] == 1, positive, negative)
    weighted = centred * np.sqrt(rows.weight / rows.weight.mean())[:, None]
    covariance, _ = ledoit_wolf(weighted, assume_centered=True)
    covariance = covariance + np.finfo(np.float64).eps * np.trace(covariance) * np.eye(len(covariance))
    return halfway(np.linalg.solve(covariance, positive - negative), positive, negative)


def halfway(weight: Floats, positive: Floats, negative: Floats) -> tuple[Floats, float]:
    """(weight, bias) with score 0 halfway between the class means."""
    return weight, float(-weight @ (positive + negative) / 2)


def affine_tensors(weight: Floats, bias: float, n_layers: int) -> dict[str, Tensor]:
    """The tensors of an affine kind: weight [L, d] and bias []."""
    return {
        "weight": torch.from_numpy(weight.reshape(n_layers, -1)).float(),
        "bias": torch.tensor(bias, dtype=torch.float32),
    }


def _fit(by: RowFit, found: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    weight, bias = by(rows_of(found, labels, options), options.regularisation)
    return affine_tensors(weight, bias, found.hidden.shape[1])


def on_rows(by: RowFit) -> Fit:
    """A fit of the registry from one that reads rows."""
    return partial(_fit, by)
