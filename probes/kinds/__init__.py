"""What a probe computes from the residual stream of one token, by kind.

A kind is a record of typed functions (`probes.kinds.record`). Everything it needs that is linear in the residual
goes into `columns`, so that a server multiplies the residual of each tapped layer by the columns of ALL probes at
once, inside its compiled graph; the rest happens on the few numbers that come back:

    projections[t, l, c] = residual[t, l, :] . columns[l, :, c]
    squared_norms[t, l]  = |residual[t, l, :]|^2             only where `needs_norm`
    state = state(projections, squared_norms, constants)    [T, K], what aggregation consumes
    score = token_score(state)                              [T], what is shown for a token

To add a kind: write its functions in a file of this package and put the record into `KINDS`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from probes.errors import ManifestInvalid, TensorInvalid
from probes.kinds import classes, direction, features, gap, heads, lens, network
from probes.kinds.affine import AFFINE, fold_scaling
from probes.kinds.ensemble import ensemble
from probes.kinds.record import Kind, Shape, Tensors, state_width
from probes.manifest import ProbeManifest
from probes.method import Member

__all__ = [
    "GOLDEN_INPUTS",
    "GOLDEN_SCORES",
    "KINDS",
    "Kind",
    "Shape",
    "Tensors",
    "check_shapes",
    "check_values",
    "fold_scaling",
    "golden",
    "lookup",
    "of",
    "score_hidden",
    "state_width",
]

GOLDEN_INPUTS: Final = "golden_inputs"
GOLDEN_SCORES: Final = "golden_scores"
ENSEMBLE: Final = ("ensemble", "members")

KINDS: Final[Mapping[tuple[str, str], Kind]] = MappingProxyType(
    {
        ("logistic", "logit"): AFFINE,
        ("ridge", "logit"): AFFINE,
        ("difference_of_means", "logit"): AFFINE,
        ("mass_mean", "logit"): AFFINE,
        ("lda", "logit"): AFFINE,
        ("lat", "logit"): AFFINE,
        ("ccs", "logit"): AFFINE,
        ("affine", "logit"): AFFINE,
        ("mlp", "logit"): network.MLP,
        ("multiclass", "log_odds"): classes.LOG_ODDS,
        ("multiclass", "level"): classes.LEVEL,
        ("ordinal", "logit"): classes.ORDINAL,
        ("multimax", "logit"): heads.MULTIMAX,
        ("attention", "logit"): heads.ATTENTION,
        ("sae", "logit"): features.SAE,
        ("concept", "projection"): direction.PROJECTION,
        ("concept", "cosine"): direction.COSINE,
        ("logit_lens", "rms_norm"): lens.LOGIT_RMS,
        ("logit_lens", "layer_norm"): lens.LOGIT_LAYER,
        ("tuned_lens", "rms_norm"): lens.TUNED_RMS,
        ("tuned_lens", "layer_norm"): lens.TUNED_LAYER,
        ("gap", "logit"): gap.GAP,
        ("steering", "projection"): direction.PROJECTION,
        ("steering", "cosine"): direction.COSINE,
    }
)
"""(kind, scoring) -> its functions; ("ensemble", "members") is put together from its members.

    logistic                        score = sum_l x_l . weight_l + bias: log-odds at equal class weights (2502.03407)
    ridge                           the same form; fitted to +-1 by least squares, so 0 is halfway
    difference_of_means             the same form; 0 halfway between the class means, in squared residual units
    mass_mean, lda                  the same form with the inverse covariance: log-odds of two Gaussians (2310.06824)
    lat                             the same form along the first principal component of pair differences (2310.01405)
    ccs                             the same form: logit of the probability consistent over contrast pairs (2212.03827)
    affine                          the same form, fitted through its aggregation, or from elsewhere
    mlp                             see `probes.kinds.network`: logit of a small net
    multiclass, ordinal             see `probes.kinds.classes`
    multimax, attention             see `probes.kinds.heads` (2601.11516)
    sae                             see `probes.kinds.features`
    logit_lens, tuned_lens          see `probes.kinds.lens`: log-odds of the tracked tokens' mass
    gap                             see `probes.kinds.gap`: log-odds that belief and assertion differ
    concept, steering; projection   score = mean_l x_l . v_l / |v_l|: length along it, in residual units
    concept, steering; cosine       score = mean_l x_l . v_l / (|x_l| |v_l|): in [-1, 1]
"""


def lookup(kind: str, scoring: str) -> Kind:
    """The functions of a kind, or `ManifestInvalid` with the known ones."""
    try:
        return KINDS[kind, scoring]
    except KeyError:
        known = ", ".join(f"{k}/{s}" for k, s in KINDS)
        raise ManifestInvalid(
            f"kind {kind!r} with scoring {scoring!r} is unknown; use one of: {known}"
        ) from None


def of(manifest: ProbeManifest) -> Kind:
    """The functions of a manifest's kind; `ManifestInvalid` where it is unknown or its aggregation cannot read it."""
    if (manifest.kind, manifest.scoring) == ENSEMBLE:
        return _ensemble(manifest)
    found = lookup(manifest.kind, manifest.scoring)
    _check_method(manifest.kind, found, manifest.aggregation.method)
    return found


def _ensemble(manifest: ProbeManifest) -> Kind:
    members = manifest.aggregation.members
    if members is None:
        raise ManifestInvalid(
            f"an ensemble with the aggregation {manifest.aggregation.method!r}; give it its members"
        )
    stray = sorted({layer for member in members for layer in member.layers} - set(manifest.layers))
    if stray:
        raise ManifestInvalid(
            f"a member reads layers {stray}, the ensemble has {list(manifest.layers)}; add them to it"
        )
    return ensemble(members, manifest.layers, _member_kind)


def _member_kind(member: Member) -> Kind:
    found = lookup(member.kind, member.scoring)
    _check_method(member.kind, found, member.aggregation.method)
    return found


def _check_method(name: str, kind: Kind, method: str) -> None:
    if method not in kind.aggregations:
        raise ManifestInvalid(
            f"kind {name!r} with the aggregation {method!r}; use one of: {', '.join(sorted(kind.aggregations))}"
        )


def score_hidden(kind: Kind, tensors: Tensors, columns: Tensor, hidden: Tensor) -> Tensor:
    """State [T, K] of hidden [T, L, d] with the kind's `columns` [L, d, C], in float32."""
    residual = hidden.float()
    projections = torch.einsum("tld,ldc->tlc", residual, columns)
    squared_norms = residual.square().sum(-1) if kind.needs_norm else None
    return kind.state(projections, squared_norms, kind.constants(tensors))


def golden(kind: Kind, tensors: Tensors, inputs: Tensor) -> dict[str, Tensor]:
    """The golden tensors of an artifact: `inputs` [N, L, d] and their token scores [N]."""
    state = score_hidden(kind, tensors, kind.columns(tensors), inputs)
    return {GOLDEN_INPUTS: inputs.float(), GOLDEN_SCORES: kind.token_score(state)}


def check_values(manifest: ProbeManifest, tensors: Tensors) -> None:
    """Raise `TensorInvalid` for finite tensors of the right shapes that make no probe."""
    kind = of(manifest)
    fault = kind.fault(tensors)
    if fault is not None:
        raise TensorInvalid(fault)


def check_shapes(kind: Kind, tensors: Tensors, n_layers: int, d_model: int) -> None:
    """Raise `TensorInvalid` unless `tensors` are exactly those of `kind`, float32 and of its shapes."""
    if set(tensors) != set(kind.shapes):
        names = str(sorted(tensors))[:300]
        raise TensorInvalid(f"tensors {names} found; this kind needs exactly {sorted(kind.shapes)}")
    sizes: dict[int | str, int] = {"L": n_layers, "d": d_model}
    for name, shape in kind.shapes.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32:
            raise TensorInvalid(f"tensor {name!r} is {tensor.dtype}; store it as torch.float32")
        found = tuple(tensor.shape)
        if len(found) == len(shape):
            sizes.update(
                {s: n for s, n in zip(shape, found, strict=True) if isinstance(s, str) and s not in sizes}
            )
        if 0 in found:
            raise TensorInvalid(f"tensor {name!r} has shape {list(found)}; give every axis 1 entry or more")
        expected = tuple(sizes.get(s, s) for s in shape)
        if found != expected:
            raise TensorInvalid(
                f"tensor {name!r} has shape {list(found)}; the manifest asks for {list(expected)}"
            )
