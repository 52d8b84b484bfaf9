"""Features of a sparse autoencoder (SAE), weighted by a logistic regression on their maxima over the tokens.

    a_k = sum_l x_l . encoder_l,k + encoder_bias_k
    f_k = a_k if a_k > threshold_k, else 0           JumpReLU (2407.14435); threshold 0 is a ReLU
    state (w_1 f_1, ..., w_F f_F, bias)

A decoder bias that the encoder subtracts first belongs into encoder_bias. The score shown for a token is sum_k w_k f_k
+ bias: the value of a request that consists of this token alone.
"""

from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _columns(tensors: Tensors) -> Tensor:
    return tensors["encoder"]  # [L, d, F]


def _state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    found = projections.sum(dim=1) + tensors["encoder_bias"]  # [T, F]
    features = found * (found > tensors["threshold"])  # a product, so that what is not finite stays so
    bias = tensors["bias"] + 0.0 * features.sum(dim=1, keepdim=True)  # NaN where the features are
    return torch.cat([features * tensors["weight"], bias], dim=1)  # [T, F + 1]


def _fault(tensors: Tensors) -> str | None:
    if bool((tensors["threshold"] >= 0).all()):
        return None
    return "tensor 'threshold' is negative somewhere; a feature is at least 0, so is its threshold"


SAE: Final = Kind(
    shapes={
        "encoder": ("L", "d", "F"),
        "encoder_bias": ("F",),
        "threshold": ("F",),
        "weight": ("F",),
        "bias": (),
    },
    columns=_columns,
    state=_state,
    token_score=lambda state: state.sum(dim=1),
    aggregations=frozenset({"feature_max"}),
    fault=_fault,
)
