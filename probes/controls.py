"""Controls that must fail: if one of them does as well as the probe, the probe has shown nothing.

Each gives one score a conversation of the test set, or figures, to be judged exactly as the probe's own
scores are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probes import training
from probes.evaluation import auroc, statistics
from probes.hf import Activations
from probes.probe import Probe
from probes.training import Setting

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """AUROCs of many draws of a control."""

    median: float
    highest: float
    draws: int


def text_only(train: Sequence[str], labels: Sequence[int], test: Sequence[str], *, seed: int = 0) -> Floats:
    """[n] scores of TF-IDF (words and word pairs) with logistic regression on the transcripts.

    What the text alone gives away needs no probe. It is fitted to the same conversations as the probe.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorise = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=500, random_state=seed)
    model.fit(vectorise.fit_transform(train), labels)
    return np.asarray(model.decision_function(vectorise.transform(test)), np.float64)


def entity_hash_labels(groups: Sequence[str]) -> list[int]:
    """A label that is a fact about the entity's name alone: a probe that learns it has memorised entities."""
    return [hashlib.sha256(group.encode()).digest()[0] & 1 for group in groups]


def refitted(probe: Probe, setting: Setting, train: Sequence[Activations], labels: Sequence[int]) -> Probe:
    """The probe's setting fitted anew to other labels or activations."""
    tensors = training.fit(setting, train, labels)
    return training.assemble(
        probe.manifest, tensors, training.golden_inputs(train, setting.token_mask, setting.layers)
    )


def shuffled_labels(
    probe: Probe,
    setting: Setting,
    train: Sequence[Activations],
    labels: Sequence[int],
    test: Sequence[Activations],
    test_labels: Sequence[int],
    *,
    draws: int = 5,
    seed: int = 0,
) -> Spread:
    """AUROC on the true test labels of probes fitted to permuted training labels."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        permuted = rng.permutation(np.asarray(labels)).tolist()
        found.append(_auroc(statistics(refitted(probe, setting, train, permuted), test), test_labels))
    return Spread(float(np.median(found)), float(max(found)), draws)


def random_directions(
    probe: Probe, test: Sequence[Activations], test_labels: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> Spread:
    """AUROC of random directions under the probe's own mask and aggregation, each with its better sign.

    The sign is chosen on the test set itself, which favours the control.
    """
    rule = probe.manifest
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(draws, len(rule.layers), rule.d_model, generator=generator)
    masks = [torch.from_numpy(a.mask(rule.token_mask)) for a in test]
    scores = np.stack(
        [
            _column_statistics(
                probe, torch.einsum("tld,nld->tn", a.at(rule.layers)[m], directions).double().numpy()
            )
            for a, m in zip(test, masks, strict=True)
        ]
    )  # [n, draws]
    found = [_auroc(scores[:, i], test_labels) for i in range(draws)]
    better = np.maximum(found, 1 - np.asarray(found))
    return Spread(float(np.median(better)), float(better.max()), draws)


def _column_statistics(probe: Probe, scores: Floats) -> Floats:
    """[T, draws] in-mask token scores -> [draws] deployed statistics."""
    return np.array([probe.statistic(column) for column in scores.T])


def _auroc(scores: Floats, labels: Sequence[int]) -> float:
    y = np.asarray(labels).astype(bool)
    return auroc(scores[y], scores[~y])
