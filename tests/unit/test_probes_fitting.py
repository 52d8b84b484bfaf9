"""Every fit of the registry recovers what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probes
from probes import fitting
from probes.fitting import FITTERS, Options, TokenRows
from probes.hf import Activations
from probes.kinds import KINDS
from probes.manifest import TokenMask

torch.set_num_threads(1)

L, D, AXIS = 2, 8, 3


def planted(n: int = 240, *, shift: float = 3.0, seed: int = 0) -> tuple[TokenRows, np.ndarray]:
    """Conversations of 2 to 5 tokens; positives are shifted along AXIS of the last layer.

    Axis 5 has a large mean and variance that say nothing.
    """
    g = torch.Generator().manual_seed(seed)
    labels = np.arange(n) % 2
    counts = 2 + np.arange(n) % 4
    hidden = torch.randn(int(counts.sum()), L, D, generator=g)
    hidden[:, :, 5] = 100 + 5 * hidden[:, :, 5]
    hidden[:, -1, AXIS] += shift * torch.from_numpy(np.repeat(labels, counts)).float()
    groups = tuple(f"g{i // 2}" for i in range(n))
    return TokenRows(hidden, np.cumsum([0, *counts]), groups), labels


def scaled(weight: torch.Tensor) -> torch.Tensor:
    """[L, d] -> [L * d] what a step of one standard deviation along each axis changes."""
    deviation = torch.ones(L, D)
    deviation[:, 5] = 5
    return (weight * deviation).flatten()


AFFINE = [
    name for name, found in FITTERS.items() if KINDS[found.kind, found.scoring] is KINDS["affine", "logit"]
]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_fits_find_the_planted_direction(name: str, pooled: bool) -> None:
    rows, labels = planted()
    tensors = fitting.fit(name, rows, labels, Options(pooled=pooled))
    step = scaled(tensors["weight"])
    if name == "difference_of_means":
        step = step.reshape(L, D).clone()
        step[:, 5] = 0  # its scale, not its meaning, shows there
        step = step.flatten()
    assert step.argmax() == D + AXIS
    assert step[D + AXIS] / step.norm() > 0.9
    score = (rows.hidden * tensors["weight"]).sum((1, 2)) + tensors["bias"]
    means = [float(score[labels[rows.owner] == y].mean()) for y in (0, 1)]
    assert means[0] < 0 < means[1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1] * 240, "give both"),
        ([0] * 240, "give both"),
        ([0, 2] * 120, "takes 0 .. 1"),
        ([0, 1], "one for each"),
    ],
)
def test_labels_that_cannot_be_fitted_are_refused(labels: list[int], words: str) -> None:
    with pytest.raises(probes.DataError, match=words):
        fitting.fit("logistic", planted()[0], labels)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(probes.DataError, match="mass_mean"):
        fitting.fit("tarot", *planted())


def test_rows_with_nan_are_refused() -> None:
    rows, labels = planted()
    rows.hidden[3, 1, 2] = torch.nan
    with pytest.raises(probes.DataError, match="NaN"):
        fitting.fit("logistic", rows, labels)


def test_long_conversations_and_large_classes_weigh_no_more() -> None:
    rows = TokenRows(torch.zeros(13, 1, 1), np.array([0, 9, 11, 13]))
    labels = np.array([1, 0, 0])
    weights = rows.row_weights(labels)
    assert weights[:9].sum() == pytest.approx(1.5)
    assert weights[9:11].sum() == pytest.approx(0.75)
    assert weights.sum() == pytest.approx(3.0)


def test_rows_of_conversations_keep_their_order_and_know_the_answer() -> None:
    found = [Activations((0, 1), torch.full((4, 2, 3), float(i)), 0, 2) for i in range(3)]
    rows = fitting.token_rows(found, TokenMask(prompt="last_k", last_k=1), (1,), ["a", "b", "c"])
    assert rows.hidden[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.generated is not None
    assert rows.generated.tolist() == [False, True, True] * 3
    kept = rows.take([2, 0])
    assert kept.hidden[:, 0, 0].tolist() == [2, 2, 2, 0, 0, 0]
    assert kept.groups == ("c", "a")
    assert rows.means[:, 0].tolist() == [0, 1, 2]


def test_a_conversation_without_a_token_is_refused() -> None:
    found = [Activations((0,), torch.zeros(2, 1, 3), 0, 2)]
    with pytest.raises(probes.DataError, match="no token in the mask"):
        fitting.token_rows(found, TokenMask(), (0,))
