"""Probes of one setting or of many, fitted to activations (`probes.fitting`) and judged on validation conversations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes import fitting, kinds
from probes import manifest as manifests
from probes.evaluation import statistics
from probes.fitting import Options
from probes.hf import Activations
from probes.manifest import Aggregation, ProbeManifest, Statistic, TokenMask
from probes.probe import Probe

Floats = NDArray[np.float64]
N_GOLDEN: Final = 8


@dataclass(frozen=True)
class Setting:
    """Everything that a sweep may vary."""

    kind: str
    """A name in `probes.fitting.FITTERS`."""
    layers: tuple[int, ...]
    fitted_on: TokenMask
    """The tokens whose rows are fitted."""
    token_mask: TokenMask
    """The tokens that count when deployed."""
    aggregation: Aggregation
    statistic: Statistic = "running_sup"
    regularisation: float = 1.0
    """Inverse strength C of the penalty, where the fit has one."""
    pooled: bool = False
    """Fit one row a conversation, its mean over the fitted tokens: what the mean of an affine score sees."""
    max_rows: int = 20_000
    """Token rows fitted at most, drawn evenly; more of one conversation say little new."""

    @property
    def options(self) -> Options:
        """What the fit is told. A fit through its aggregation goes through the one that is deployed."""
        through = self.aggregation if fitting.fitter(self.kind).through else None
        return Options(self.regularisation, self.pooled, self.max_rows, through)


@dataclass(frozen=True)
class Trial:
    """A fitted setting and its objective on validation."""

    setting: Setting
    probe: Probe
    objective: float


Objective = Callable[[Floats], float]
"""deployed statistics of the validation conversations, in their order -> what to maximise"""


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
    *,
    groups: Sequence[str] = (),
    seed: int = 0,
) -> list[Trial]:
    """Fit each setting on `train` and judge it on `validation`; the trials in the order of the settings.

    describe: manifest fields that all trials share (name, concept, labels ...). A fit shared by several
    settings (same kind, layers, rows and options; another mask or aggregation) is done once.
    """
    fits: dict[tuple[object, ...], dict[str, Tensor]] = {}
    trials = []
    for s in settings:
        key = (s.kind, s.layers, s.fitted_on, s.options)
        if key not in fits:
            fits[key] = fit(s, train, labels, groups, seed)
        probe = assemble(
            _manifest(s, train[0].hidden.shape[-1], describe),
            fits[key],
            golden_inputs(train, s.token_mask, s.layers),
        )
        trials.append(Trial(s, probe, objective(statistics(probe, validation))))
    return trials


def fit(
    setting: Setting,
    train: Sequence[Activations],
    labels: Sequence[int],
    groups: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """The tensors of one setting, fitted to `train`. groups: what early stopping and pairs must keep whole."""
    rows = fitting.token_rows(train, setting.fitted_on, setting.layers, groups)
    return fitting.fit(setting.kind, rows, labels, setting.options, seed)


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest objective; of equal ones the first, so list the settings preferred first.

    Objectives count to two decimals: what is finer than that is the luck of a validation set.
    """
    return max(trials, key=lambda trial: round(trial.objective, 2))


def check(setting: Setting, describe: Mapping[str, object]) -> None:
    """Raise `ManifestInvalid` where no manifest can hold this, whatever is fitted."""
    kinds.of(_manifest(setting, 1, describe))


def _manifest(s: Setting, d_model: int, describe: Mapping[str, object]) -> ProbeManifest:
    fitter = fitting.fitter(s.kind)
    return manifests.build(
        {
            "kind": fitter.kind,
            "scoring": fitter.scoring,
            "default_action": "observe",
            "layers": s.layers,
            "d_model": d_model,
            "token_mask": s.token_mask,
            "aggregation": s.aggregation,
            "statistic": s.statistic,
            "created_at": datetime.now(UTC),
            "tensors_sha256": "0" * 64,
            **describe,
        }
    )
