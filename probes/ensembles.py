"""Several probes as one: members of any kinds and layers, one weighted sum, one threshold.

    both = ensembles.combine([attention, mlp], weights=[0.5, 1.0], name="both")

Each member keeps its own aggregation; the ensemble's value after a token is the weighted sum of theirs, and what is
calibrated is that sum. Weights: by hand, or `fit_weights` on statistics of conversations that no member was fitted to.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probes import kinds
from probes import manifest as manifests
from probes.errors import DataError
from probes.manifest import ProbeManifest
from probes.method import Aggregation, Member
from probes.probe import Probe

SHARED = ("concept", "d_model", "dtype", "token_mask", "binding")
"""Manifest fields in which members must agree."""


def combine(
    probes: Sequence[Probe], weights: Sequence[float], name: str, min_tokens: int | None = None
) -> Probe:
    """The ensemble, without a threshold. `DataError` for members that do not fit together.

    min_tokens: by default the most that a member asks for.
    """
    if len(probes) != len(weights) or not probes:
        raise DataError(
            f"{len(probes)} probes and {len(weights)} weights; give one for each, and one probe at least"
        )
    first = probes[0].manifest
    for probe in probes:
        _check(first, probe.manifest)
    layers = tuple(sorted({layer for probe in probes for layer in probe.manifest.layers}))
    members = tuple(_member(probe, weight) for probe, weight in zip(probes, weights, strict=True))
    least = min_tokens or max(probe.manifest.aggregation.min_tokens for probe in probes)
    described = manifests.revise(
        first,
        name=name,
        kind="ensemble",
        scoring="members",
        layers=layers,
        aggregation=Aggregation(method="members", members=members, min_tokens=least),
        statistic="running_sup",
        default_action="observe",
        threshold=None,
        calibration=None,
        benign_quantiles=None,
        metrics={},
        created_at=datetime.now(UTC),
    )
    tensors = {
        f"{i}.{name}": tensor for i, probe in enumerate(probes) for name, tensor in probe.tensors.items()
    }
    inputs = _golden_inputs(probes, layers)
    kinds.check_values(described, tensors)
    golden = kinds.golden(kinds.of(described), tensors, inputs)
    return Probe(described, tensors, inputs, golden[kinds.GOLDEN_SCORES])


def fit_weights(statistics: ArrayLike, labels: ArrayLike, regularisation: float = 1.0) -> NDArray[np.float64]:
    """[m] weights of the members: logistic regression on their statistics [c, m], labels [c] of 0 and 1.

    Statistics are standardised first, so members in other units take part alike. `DataError` for one class or NaN.
    """
    from sklearn.linear_model import LogisticRegression

    values, y = np.asarray(statistics, np.float64), np.asarray(labels)
    if values.ndim != 2 or len(values) != len(y) or not np.isfinite(values).all():
        raise DataError(
            f"statistics {list(values.shape)} for {len(y)} labels; give finite ones [c, m], one row a label"
        )
    if len(np.unique(y)) < 2:
        raise DataError("conversations of one class alone; give both to weigh members by")
    scale = np.where((deviation := values.std(0)) > 0, deviation, 1.0)
    model = LogisticRegression(C=regularisation, max_iter=1000, class_weight="balanced").fit(
        values / scale, y
    )
    return np.asarray(model.coef_[0] / scale, np.float64)


def _check(first: ProbeManifest, other: ProbeManifest) -> None:
    for field in SHARED:
        one, two = getattr(first, field), getattr(other, field)
        if one != two:
            raise DataError(
                f"{field} differs between {first.name!r} and {other.name!r}; combine probes that share it"
            )
    if other.kind == "ensemble":
        raise DataError(f"{other.name!r} is an ensemble itself; give its members instead")


def _member(probe: Probe, weight: float) -> Member:
    manifest = probe.manifest
    return Member(
        kind=manifest.kind,
        scoring=manifest.scoring,
        layers=manifest.layers,
        states=kinds.state_width(kinds.of(manifest), probe.tensors),
        weight=float(weight),
        aggregation=manifest.aggregation,
    )


def _golden_inputs(probes: Sequence[Probe], layers: Sequence[int]) -> Tensor:
    """[N, L, d] each layer's rows from the first member that reads it."""
    n = min(len(probe.golden_inputs) for probe in probes)
    found = []
    for layer in layers:
        probe = next(probe for probe in probes if layer in probe.manifest.layers)
        found.append(probe.golden_inputs[:n, probe.manifest.layers.index(layer)])
    return torch.stack(found, dim=1)
