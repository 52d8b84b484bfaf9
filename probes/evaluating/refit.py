"""The probe's recipe again, fitted to other labels, conversations or layers: what controls and profile are made of."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from probes import evaluation, fitting, training
from probes.errors import DataError
from probes.fitting import FITTERS, Options
from probes.hf import Activations
from probes.manifest import ProbeManifest, revise
from probes.plan import Made
from probes.probe import Probe

PENALTY: Final = 0.03
"""Inverse strength C where an artifact does not say its own; controls on few conversations must not overfit."""


def fitter_name(manifest: ProbeManifest) -> str:
    """The entry of `FITTERS` that gave such a probe, or gives one like it. `DataError` where none takes labels of 0 and
    1 alone.
    """
    made = _made(manifest)
    if made is not None and made.chosen.kind in FITTERS:
        return made.chosen.kind
    fits = [
        name
        for name, f in FITTERS.items()
        if (f.kind, f.scoring, f.labels, f.needs) == (manifest.kind, manifest.scoring, "binary", "nothing")
    ]
    alike = [name for name in fits if FITTERS[name].aggregation.method == manifest.aggregation.method]
    if not fits:
        raise DataError(
            f"kind {manifest.kind!r} ({manifest.scoring}) cannot be fitted again from labels of 0 and 1 alone"
        )
    return (alike or fits)[0]


def _made(manifest: ProbeManifest) -> Made | None:
    return None if manifest.training is None else manifest.training.made


def refit(
    probe: Probe,
    found: Sequence[Activations],
    labels: ArrayLike,
    groups: Sequence[str],
    *,
    layers: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Probe:
    """The probe's kind, tokens and rule fitted to those conversations, at its own layers or others."""
    manifest = probe.manifest if layers is None else revise(probe.manifest, layers=layers)
    rows = fitting.token_rows(found, manifest.token_mask, manifest.layers, groups)
    made = _made(manifest)
    options = Options(
        regularisation=PENALTY if made is None else made.chosen.regularisation,
        pooled=manifest.aggregation.method == "mean" if made is None else made.chosen.pooled,
        aggregation=manifest.aggregation,
    )
    tensors = fitting.fit(fitter_name(manifest), rows, np.asarray(labels), options, seed)
    inputs = training.golden_inputs(found, manifest.token_mask, manifest.layers)
    return training.assemble(manifest, tensors, inputs)


def auroc_of_refit(
    probe: Probe,
    fit: tuple[Sequence[Activations], ArrayLike, Sequence[str]],
    judged: tuple[Sequence[Activations], ArrayLike],
    *,
    layers: tuple[int, ...] | None = None,
) -> float:
    """AUROC on `judged` (activations, labels) after a fit to `fit` (activations, labels, groups)."""
    again = refit(probe, *fit, layers=layers)
    labels = [int(y) for y in np.asarray(judged[1])]
    return evaluation.auroc_of(labels)(evaluation.statistics(again, judged[0]))
