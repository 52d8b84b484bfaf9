"""The MLP: a small net per token, whose first layer is the columns.

score = sum_h output_h relu(sum_l x_l . weight_l,h + hidden_bias_h) + bias
"""

from typing import Final

from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _columns(tensors: Tensors) -> Tensor:
    return tensors["weight"]  # [L, d, H]


def _state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    found = projections.sum(dim=1) + tensors["hidden_bias"]
    hidden = found * (found > 0)  # [T, H] a ReLU in which what is not finite stays so
    return (hidden @ tensors["output"] + tensors["bias"]).unsqueeze(-1)  # [T, 1]


MLP: Final = Kind(
    shapes={"weight": ("L", "d", "H"), "hidden_bias": ("H",), "output": ("H",), "bias": ()},
    columns=_columns,
    state=_state,
)
