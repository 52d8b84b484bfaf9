"""Unsupervised directions from contrast pairs; labels only say which end is positive.

Pairs are `TokenRows.pairs`, or one conversation of either class from each group. A conversation stands in by its
mean row. Neither method has a sign of its own: it is read off the labelled pairs, whose sides differ in the concept,
rather than off the classes at large, which may differ in much besides.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import DataError
from probes.fitting.linear import affine_tensors, halfway
from probes.fitting.rows import Floats, Labels, TokenRows
from probes.fitting.types import Options
from probes.kinds import fold_scaling

TRIES = 8
"""Starts of CCS, of which the one with the lowest loss is kept."""
STEPS = 400


def pairs_of(rows: TokenRows, labels: Labels, seed: int) -> NDArray[np.int64]:
    """[p, 2] conversations. `DataError` without any.

    Pairs made from groups come in random order, so that the first of a pair says nothing about its label.
    """
    if rows.pairs is not None:
        found = np.asarray(rows.pairs, np.int64).reshape(-1, 2)
        if not len(found) or found.min() < 0 or found.max() >= rows.conversations:
            raise DataError(
                f"pairs name conversations outside 0 .. {rows.conversations - 1}, or are none; give them anew"
            )
        return found
    by_group: dict[str, tuple[list[int], list[int]]] = {}
    for i, group in enumerate(rows.groups):
        by_group.setdefault(group, ([], []))[int(labels[i] > 0)].append(i)
    made = [
        pair for negative, positive in by_group.values() for pair in zip(negative, positive, strict=False)
    ]
    if not made:
        raise DataError(
            "no group holds conversations of both classes, so there are no contrast pairs; give `pairs`"
        )
    return np.random.default_rng(seed).permuted(np.array(made, np.int64), axis=1)


def fit_lat(rows: TokenRows, labels: Labels, _options: Options, seed: int) -> dict[str, Tensor]:
    """The first principal component of pair differences, not centred: the order within pairs does not matter
    (2310.01405). Length 1. It follows variance, so an axis that is loud for other reasons can win."""
    first, second = pairs_of(rows, labels, seed).T
    _, _, components = np.linalg.svd(rows.means[first] - rows.means[second], full_matrices=False)
    return _signed(components[0], rows, labels, first, second)


def fit_ccs(rows: TokenRows, labels: Labels, options: Options, seed: int) -> dict[str, Tensor]:
    """Contrast-consistent search (2212.03827): p of one side of a pair is 1 - p of the other, and not 1/2.

    Each side is centred by itself, so that what tells the sides apart as such is not learnt; the score uses the
    middle of the two centres.
    """
    first, second = pairs_of(rows, labels, seed).T
    centres = rows.means[first].mean(0), rows.means[second].mean(0)
    sides = [rows.means[side] - centre for side, centre in zip((first, second), centres, strict=True)]
    deviation = np.concatenate(sides).std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    one, other = (torch.from_numpy(side / scale) for side in sides)
    weight, bias = _consistent(one, other, options, seed)
    folded, shifted = fold_scaling(weight, bias, (centres[0] + centres[1]) / 2, scale)
    return _signed(folded, rows, labels, first, second, shifted)


def _consistent(one: Tensor, other: Tensor, options: Options, seed: int) -> tuple[Floats, float]:
    """(weight [L * d], bias) of the best of `TRIES` random starts, side by side. one, other: [p, L * d]"""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(one.shape[1], TRIES, generator=generator, dtype=torch.float64)
    weight = (start / start.norm(dim=0)).requires_grad_()
    bias = torch.zeros(TRIES, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay)
    losses = torch.zeros(TRIES)
    for _ in range(STEPS):
        p, q = (one @ weight + bias).sigmoid(), (other @ weight + bias).sigmoid()
        losses = ((p - (1 - q)).square() + torch.minimum(p, q).square()).mean(dim=0)
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
    best = int(losses.detach().argmin())
    return weight.detach()[:, best].numpy(), float(bias.detach()[best])


def _signed(
    weight: Floats,
    rows: TokenRows,
    labels: Labels,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    bias: float | None = None,
) -> dict[str, Tensor]:
    """The tensors with the positives of labelled pairs above their negatives; where no pair has both, with the
    class means so. Without a bias, 0 is halfway between the class means."""
    positive, negative = rows.means[labels > 0].mean(0), rows.means[labels == 0].mean(0)
    order = np.sign(np.sign(labels[first]) - np.sign(labels[second]))
    upwards = order @ (rows.means[first] - rows.means[second]) if order.any() else positive - negative
    sign = 1.0 if weight @ upwards >= 0 else -1.0
    weight = sign * weight
    shifted = halfway(weight, positive, negative)[1] if bias is None else sign * bias
    return affine_tensors(weight, shifted, rows.hidden.shape[1])
