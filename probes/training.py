"""Fitting probes to activations, and choosing among settings on validation conversations.

A conversation weighs the same however long it is, and both classes weigh the same: each token row weighs
1 / (rows of its conversation x conversations of its class).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes import kinds
from probes import manifest as manifests
from probes.errors import DataError
from probes.evaluation import statistics
from probes.fitting.linear import Rows as Rows
from probes.fitting.linear import affine_tensors as affine_tensors
from probes.fitting.linear import class_means as class_means
from probes.fitting.linear import fit_difference_of_means as fit_difference_of_means
from probes.fitting.linear import fit_logistic as fit_logistic
from probes.fitting.linear import thinned as thinned
from probes.hf import Activations
from probes.manifest import Aggregation, ProbeManifest, Statistic, TokenMask
from probes.probe import Probe

Floats = NDArray[np.float64]
N_GOLDEN: Final = 8


@dataclass(frozen=True)
class Setting:
    """Everything that a sweep may vary."""

    kind: str
    layers: tuple[int, ...]
    fitted_on: TokenMask
    """The tokens whose rows are fitted."""
    token_mask: TokenMask
    """The tokens that count when deployed."""
    aggregation: Aggregation
    statistic: Statistic = "running_sup"
    regularisation: float = 1.0
    """Inverse strength C of the L2 penalty; logistic only."""
    pooled: bool = False
    """Fit one row a conversation, its mean over the fitted tokens: what the mean of an affine score sees."""
    max_rows: int = 20_000
    """Token rows fitted at most, drawn evenly; more of one conversation say little new."""


@dataclass(frozen=True)
class Trial:
    """A fitted setting and its objective on validation."""

    setting: Setting
    probe: Probe
    objective: float


Fit = Callable[[Rows], tuple[Floats, float]]
"""rows -> (weight [L * d], bias): the score is x . weight + bias"""
Objective = Callable[[Floats], float]
"""deployed statistics of the validation conversations, in their order -> what to maximise"""


def token_rows(
    found: Sequence[Activations],
    labels: Sequence[int],
    token_mask: TokenMask,
    layers: Sequence[int],
    pooled: bool = False,
) -> Rows:
    """The in-mask rows of all conversations, or their mean in each. `DataError` for one class, NaN or an empty mask."""
    kept = [
        (a.at(layers)[torch.from_numpy(a.mask(token_mask))].flatten(1), y)
        for a, y in zip(found, labels, strict=True)
    ]
    kept = [(x.float().mean(0, keepdim=True) if pooled else x, y) for x, y in kept if len(x)]
    conversations = np.bincount([y for _, y in kept], minlength=2)
    if not conversations.all():
        raise DataError(
            f"{conversations[0]} negative and {conversations[1]} positive conversations to fit; give both"
        )
    x = torch.cat([x for x, _ in kept]).double().numpy()
    if not np.isfinite(x).all():
        raise DataError(
            f"{int((~np.isfinite(x)).any(1).sum())} token rows hold NaN or infinity; collect them again"
        )
    y = np.concatenate([np.full(len(x), y) for x, y in kept])
    weight = np.concatenate([np.full(len(x), 1 / (len(x) * conversations[y])) for x, y in kept])
    return Rows(x, y, weight * len(kept) / 2)


def fitter(kind: str, regularisation: float = 1.0) -> Fit:
    """The fit of a kind; `DataError` where it has none."""
    known: Mapping[str, Fit] = MappingProxyType(
        {
            "logistic": partial(fit_logistic, regularisation=regularisation),
            "difference_of_means": fit_difference_of_means,
        }
    )
    if kind not in known:
        raise DataError(f"kind {kind!r} cannot be fitted; use one of: {', '.join(known)}")
    return known[kind]


def golden_inputs(found: Sequence[Activations], token_mask: TokenMask, layers: Sequence[int]) -> Tensor:
    """[N, L, d] the first in-mask row of conversations spread over the set."""
    spread = np.unique(np.linspace(0, len(found) - 1, N_GOLDEN).astype(int))
    rows = [found[i].at(layers)[torch.from_numpy(found[i].mask(token_mask))][:1] for i in spread]
    return torch.cat(rows)


def assemble(manifest: ProbeManifest, tensors: Mapping[str, Tensor], inputs: Tensor) -> Probe:
    """A probe with golden scores computed now. inputs: golden inputs [N, L, d]."""
    golden = kinds.golden(kinds.of(manifest), tensors, inputs)
    return Probe(manifest, dict(tensors), golden[kinds.GOLDEN_INPUTS], golden[kinds.GOLDEN_SCORES])


def sweep(
    train: Sequence[Activations],
    labels: Sequence[int],
    validation: Sequence[Activations],
    settings: Sequence[Setting],
    objective: Objective,
    describe: Mapping[str, object],
) -> list[Trial]:
    """Fit each setting on `train` and judge it on `validation`; the trials in the order of the settings.

    describe: manifest fields that all trials share (name, concept, labels ...). A fit shared by several
    settings (same kind, layers, rows and penalty; another mask or aggregation) is done once.
    """
    fits: dict[tuple[str, tuple[int, ...], TokenMask, float, bool], dict[str, Tensor]] = {}
    trials = []
    for s in settings:
        key = (s.kind, s.layers, s.fitted_on, s.regularisation, s.pooled)
        if key not in fits:
            fits[key] = fit(s, train, labels)
        probe = assemble(
            _manifest(s, train, describe), fits[key], golden_inputs(train, s.token_mask, s.layers)
        )
        trials.append(Trial(s, probe, objective(statistics(probe, validation))))
    return trials


def fit(setting: Setting, train: Sequence[Activations], labels: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of one setting, fitted to `train`."""
    rows = token_rows(train, labels, setting.fitted_on, setting.layers, setting.pooled)
    rows = thinned(rows, setting.max_rows)
    weight, bias = fitter(setting.kind, setting.regularisation)(rows)
    return affine_tensors(weight, bias, len(setting.layers))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest objective; of equal ones the first, so list the settings preferred first.

    Objectives count to two decimals: what is finer than that is the luck of a validation set.
    """
    return max(trials, key=lambda trial: round(trial.objective, 2))


def _manifest(s: Setting, train: Sequence[Activations], describe: Mapping[str, object]) -> ProbeManifest:
    return manifests.build(
        {
            "kind": s.kind,
            "default_action": "observe",
            "layers": s.layers,
            "d_model": train[0].hidden.shape[-1],
            "token_mask": s.token_mask,
            "aggregation": s.aggregation,
            "statistic": s.statistic,
            "created_at": datetime.now(UTC),
            "tensors_sha256": "0" * 64,
            **describe,
        }
    )
