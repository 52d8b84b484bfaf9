"""What a probe computes from the residual stream of one token, by kind.

A kind is a record of typed functions. Everything it needs that is linear in the residual goes into
`columns`, so that a server multiplies the residual of each tapped layer by the columns of ALL probes at
once, inside its compiled graph; the rest happens on the few numbers that come back:

    projections[t, l, c] = residual[t, l, :] . columns[l, :, c]
    squared_norms[t, l]  = |residual[t, l, :]|^2             only where `needs_norm`
    state = state(projections, squared_norms, tensors)      [T, K], what aggregation consumes
    score = token_score(state)                              [T], what is shown for a token

To add a kind: write its functions and put the record into `KINDS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import ManifestInvalid, TensorInvalid

Tensors = Mapping[str, Tensor]
Shape = tuple[int | str, ...]
"""Sizes by number or name: `L` (layers) and `d` (d_model) are given, others bind at their first use."""


GOLDEN_INPUTS: Final = "golden_inputs"
GOLDEN_SCORES: Final = "golden_scores"


@dataclass(frozen=True)
class Kind:
    """One way to score a token. L: layers, d: d_model, C: columns, T: tokens, K: state numbers a token."""

    shapes: Mapping[str, Shape]
    """Required float32 tensors and their shapes."""
    columns: Callable[[Tensors], Tensor]
    """tensors -> [L, d, C]"""
    state: Callable[[Tensor, Tensor | None, Tensors], Tensor]
    """projections [T, L, C], squared_norms [T, L] | None, tensors -> [T, K]"""
    token_score: Callable[[Tensor], Tensor]
    """state [T, K] -> [T]"""
    needs_norm: bool = False


def _affine_columns(tensors: Tensors) -> Tensor:
    return tensors["weight"].unsqueeze(-1)  # [L, d, 1]


def _affine_state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    return projections.sum(dim=1) + tensors["bias"]  # [T, 1]


def _direction_columns(tensors: Tensors) -> Tensor:
    direction = tensors["direction"].double()
    unit: Tensor = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return unit.float().unsqueeze(-1)  # [L, d, 1]


def _projection_state(projections: Tensor, _squared_norms: Tensor | None, _tensors: Tensors) -> Tensor:
    return projections.mean(dim=1)  # [T, 1]


def _cosine_state(projections: Tensor, squared_norms: Tensor | None, _tensors: Tensors) -> Tensor:
    if squared_norms is None:
        raise ValueError("squared_norms is None; a cosine needs the squared norm of the residual")
    norms = squared_norms.clamp_min(
        torch.finfo(torch.float32).tiny
    ).sqrt()  # a zero residual scores 0, not NaN
    return (projections / norms.unsqueeze(-1)).mean(dim=1)  # [T, 1]


def _only_state(state: Tensor) -> Tensor:
    return state[:, 0]


_AFFINE: Final = Kind(
    shapes={"weight": ("L", "d"), "bias": ()},
    columns=_affine_columns,
    state=_affine_state,
    token_score=_only_state,
)
_STEERING: Final[Mapping[str, Shape]] = {"direction": ("L", "d")}

KINDS: Final[Mapping[tuple[str, str], Kind]] = MappingProxyType(
    {
        ("logistic", "logit"): _AFFINE,
        ("difference_of_means", "logit"): _AFFINE,
        ("steering", "projection"): Kind(_STEERING, _direction_columns, _projection_state, _only_state),
        ("steering", "cosine"): Kind(
            _STEERING, _direction_columns, _cosine_state, _only_state, needs_norm=True
        ),
    }
)
"""(kind, scoring) -> its functions.

    logistic                        score = sum_l x_l . weight_l + bias: log-odds at equal class weights
    difference_of_means             the same form; 0 halfway between the class means, in squared residual units
    steering, projection            score = mean_l x_l . v_l / |v_l|: length along it, in residual units
    steering, cosine                score = mean_l x_l . v_l / (|x_l| |v_l|): in [-1, 1]
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


def score_hidden(kind: Kind, tensors: Tensors, columns: Tensor, hidden: Tensor) -> Tensor:
    """State [T, K] of hidden [T, L, d] with the kind's `columns` [L, d, C], in float32."""
    residual = hidden.float()
    projections = torch.einsum("tld,ldc->tlc", residual, columns)
    return kind.state(projections, residual.square().sum(-1) if kind.needs_norm else None, tensors)


def golden(kind: Kind, tensors: Tensors, inputs: Tensor) -> dict[str, Tensor]:
    """The golden tensors of an artifact: `inputs` [N, L, d] and their token scores [N]."""
    state = score_hidden(kind, tensors, kind.columns(tensors), inputs)
    return {GOLDEN_INPUTS: inputs.float(), GOLDEN_SCORES: kind.token_score(state)}


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
        expected = tuple(sizes.get(s, s) for s in shape)
        if found != expected:
            raise TensorInvalid(
                f"tensor {name!r} has shape {list(found)}; the manifest asks for {list(expected)}"
            )


def fold_scaling(
    weight: NDArray[np.float64], bias: float, mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Fold a standardisation into an affine score: ((x - mean) / scale) . weight + bias = x . w' + b'.

    w' = w / sigma, b' = b - sum(w mu / sigma), in float64: the sum cancels, and float32 would lose it. All
    of shape [...] alike; the result is (w', b').
    """
    folded = np.asarray(weight, np.float64) / np.asarray(scale, np.float64)
    return folded, float(bias - np.sum(folded * np.asarray(mean, np.float64)))
