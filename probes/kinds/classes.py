"""Kinds with a logit for each of C classes: z_c = sum_l x_l . weight_l,c + bias_c, and the ordinal one.

multiclass, log_odds     state z; shown: log-odds of class 0 (the positive one) against the others together
multiclass, level        state z; shown: the expected class number, in 0 .. C - 1
ordinal, logit           state u = sum_l x_l . weight_l; P(level > j) = sigmoid(u - cut_j), the proportional odds
                         model (McCullagh 1980); shown: u - cut_m with the middle cut m, so 0 is halfway up
"""

from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _columns(tensors: Tensors) -> Tensor:
    return tensors["weight"]  # [L, d, C]


def _state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    return projections.sum(dim=1) + tensors["bias"]  # [T, C]


def _log_odds(state: Tensor) -> Tensor:
    return state[:, 0] - torch.logsumexp(state[:, 1:], dim=1)


def _level(state: Tensor) -> Tensor:
    return torch.softmax(state, dim=1) @ torch.arange(state.shape[1], dtype=state.dtype)


def _too_few(tensors: Tensors) -> str | None:
    n = len(tensors["bias"])
    return None if n > 1 else f"{n} class in tensor 'bias'; give 2 or more"


def _ordinal_columns(tensors: Tensors) -> Tensor:
    return tensors["weight"].unsqueeze(-1)  # [L, d, 1]


def _ordinal_state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    cuts = tensors["cuts"]
    return projections.sum(dim=1) - cuts[len(cuts) // 2]  # [T, 1]


def _unsorted(tensors: Tensors) -> str | None:
    cuts = tensors["cuts"]
    return None if bool((cuts.diff() >= 0).all()) else "tensor 'cuts' decreases; sort the levels"


_SHAPES: Final = {"weight": ("L", "d", "C"), "bias": ("C",)}
LOG_ODDS: Final = Kind(
    _SHAPES, _columns, _state, _log_odds, aggregations=frozenset({"mean_log_odds"}), fault=_too_few
)
LEVEL: Final = Kind(_SHAPES, _columns, _state, _level, aggregations=frozenset({"mean_level"}), fault=_too_few)
ORDINAL: Final = Kind(
    {"weight": ("L", "d"), "cuts": ("J",)}, _ordinal_columns, _ordinal_state, fault=_unsorted
)
