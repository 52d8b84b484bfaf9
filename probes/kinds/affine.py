"""Kinds whose score is affine in the residual: score = sum_l x_l . weight_l + bias."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _columns(tensors: Tensors) -> Tensor:
    return tensors["weight"].unsqueeze(-1)  # [L, d, 1]


def _state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    return projections.sum(dim=1) + tensors["bias"]  # [T, 1]


AFFINE: Final = Kind(shapes={"weight": ("L", "d"), "bias": ()}, columns=_columns, state=_state)


def fold_scaling(
    weight: NDArray[np.float64], bias: float, mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Fold a standardisation into an affine score: ((x - mean) / scale) . weight + bias = x . w' + b'.

    w' = w / sigma, b' = b - sum(w mu / sigma), in float64: the sum cancels, and float32 would lose it. All
    of shape [...] alike; the result is (w', b').
    """
    folded = np.asarray(weight, np.float64) / np.asarray(scale, np.float64)
    return folded, float(bias - np.sum(folded * np.asarray(mean, np.float64)))
