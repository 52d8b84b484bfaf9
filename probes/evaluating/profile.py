"""Where in the model it can be read, and how much of the figure is luck of the training set."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes.errors import DataError
from probes.evaluating.bench import Bench, Side
from probes.evaluating.card import NotComputed, Profile
from probes.evaluating.refit import auroc_of_refit
from probes.hf import Activations

MAX_LAYERS: Final = 12
N_REFITS: Final = 5


def spread(layers: Sequence[int], own: Sequence[int]) -> list[int]:
    """The probe's own layers and at most `MAX_LAYERS` of those that there are, spread over the depth."""
    even = np.linspace(0, len(layers) - 1, min(MAX_LAYERS, len(layers))).round().astype(int)
    return sorted({*own, *(layers[i] for i in even)})


def profile(bench: Bench) -> Profile | NotComputed:
    """AUROC of the recipe after each block whose activations are here, and of refits to resampled groups."""
    fit, test = bench.headline_train, bench.headline_test
    judged, on = bench.validation.of_contrast(bench.headline), "the validation split"
    if min(judged.counts()) == 0:
        judged, on = test, "the test split (no validation split was given)"
    if min(fit.counts()) == 0:
        return without_train()
    try:
        layers = tuple(
            (layer, auroc_of_refit(bench.probe, _fitted(fit), (judged.found, judged.labels), layers=(layer,)))
            for layer in fit.found[0].layers
        )
        refits = tuple(
            auroc_of_refit(bench.probe, _fitted(resampled(fit, seed)), (test.found, test.labels))
            for seed in range(N_REFITS)
        )
    except DataError as error:
        return NotComputed(reason=str(error), remedy="evaluate a kind that can be fitted again")
    return Profile(judged_on=on, layers=layers, refits=refits)


def without_train() -> NotComputed:
    """What is said where something has to be fitted and nothing can be."""
    return NotComputed(
        reason="the data have no training conversations of both classes in this contrast",
        remedy='add conversations with "split": "train" to the data',
    )


def resampled(side: Side, seed: int) -> Side:
    """As many groups, drawn with replacement."""
    _, member = np.unique(np.asarray(side.groups), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(int(member.max()) + 1, size=int(member.max()) + 1)
    return side.take(np.concatenate([np.flatnonzero(member == group) for group in drawn]))


def _fitted(side: Side) -> tuple[Sequence[Activations], NDArray[np.int64], Sequence[str]]:
    return side.found, side.labels, side.groups
