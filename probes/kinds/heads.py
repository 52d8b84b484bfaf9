"""Kinds of several linear heads, whose numbers meet only over the tokens.

    multimax      state (v_1.x, ..., v_H.x), the bias in equal parts
    attention     state (q_1.x, ..., q_H.x, v_1.x, ..., v_H.x): logits, then values with the bias in equal parts

Each sums over layers: q_h.x is sum_l x_l . query_l,h. The score shown for a token is the sum of its values, which is
what the request's value would be if it consisted of this token alone.
"""

from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _values(summed: Tensor, tensors: Tensors) -> Tensor:
    return summed + tensors["bias"] / summed.shape[1]  # [T, H]


def _multimax_columns(tensors: Tensors) -> Tensor:
    return tensors["value"]  # [L, d, H]


def _multimax_state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    return _values(projections.sum(dim=1), tensors)


def _attention_columns(tensors: Tensors) -> Tensor:
    return torch.cat([tensors["query"], tensors["value"]], dim=-1)  # [L, d, 2 H]


def _attention_state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    logits, values = projections.sum(dim=1).chunk(2, dim=1)
    return torch.cat([logits, _values(values, tensors)], dim=1)  # [T, 2 H]


def _attention_score(state: Tensor) -> Tensor:
    return state.chunk(2, dim=1)[1].sum(dim=1)


MULTIMAX: Final = Kind(
    shapes={"value": ("L", "d", "H"), "bias": ()},
    columns=_multimax_columns,
    state=_multimax_state,
    token_score=lambda state: state.sum(dim=1),
    aggregations=frozenset({"multimax"}),
)
ATTENTION: Final = Kind(
    shapes={"query": ("L", "d", "H"), "value": ("L", "d", "H"), "bias": ()},
    columns=_attention_columns,
    state=_attention_state,
    token_score=_attention_score,
    aggregations=frozenset({"attention", "rolling_attention"}),
)
