"""What a kind is: a record of typed functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Shape = tuple[int | str, ...]
"""Sizes by number or name: `L` (layers) and `d` (d_model) are given, others bind at their first use."""

ONE_SCORE: Final = frozenset({"mean", "max", "last", "ema", "cusum", "softmax", "rolling_mean"})
"""Aggregations of one number a token."""


def only_state(state: Tensor) -> Tensor:
    """[T, 1] -> [T]"""
    return state[:, 0]


def as_they_are(tensors: Tensors) -> Tensors:
    """For kinds whose state is cheap to compute from the tensors themselves."""
    return tensors


def nothing_wrong(_tensors: Tensors) -> None:
    """For kinds that any finite tensors of the right shapes fit."""


@dataclass(frozen=True)
class Kind:
    """One way to score a token. L: layers, d: d_model, C: columns, T: tokens, K: state numbers a token."""

    shapes: Mapping[str, Shape]
    """Required float32 tensors and their shapes."""
    columns: Callable[[Tensors], Tensor]
    """tensors -> [L, d, C]"""
    state: Callable[[Tensor, Tensor | None, Tensors], Tensor]
    """projections [T, L, C], squared_norms [T, L] | None, constants(tensors) -> [T, K]"""
    token_score: Callable[[Tensor], Tensor] = only_state
    """state [T, K] -> [T]"""
    constants: Callable[[Tensors], Tensors] = as_they_are
    """tensors -> what `state` needs of them, made once a probe"""
    needs_norm: bool = False
    aggregations: frozenset[str] = ONE_SCORE
    """Methods that can read these states."""
    fault: Callable[[Tensors], str | None] = nothing_wrong
    """What is wrong with tensors that have the right shapes, and the remedy; None if nothing is."""


def state_width(kind: Kind, tensors: Tensors) -> int:
    """K: the state numbers a token."""
    layers, _, width = kind.columns(tensors).shape
    norms = torch.ones(1, layers) if kind.needs_norm else None
    return int(kind.state(torch.zeros(1, layers, width), norms, kind.constants(tensors)).shape[1])
