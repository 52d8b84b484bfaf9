"""The gap between what the model believes and what it asserts: two affine log-odds of one statement.

State (belief, assertion). Which tokens tell which: `probes.aggregation.gap`. The score shown for a token is the
log-odds that the belief and the assertion read at that token differ.
"""

from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Tensors


def _columns(tensors: Tensors) -> Tensor:
    return tensors["weight"]  # [L, d, 2]


def _state(projections: Tensor, _squared_norms: Tensor | None, tensors: Tensors) -> Tensor:
    return projections.sum(dim=1) + tensors["bias"]  # [T, 2]


def _differ(state: Tensor) -> Tensor:
    belief, assertion = state.unbind(dim=1)
    return torch.logaddexp(belief, assertion) - torch.nn.functional.softplus(belief + assertion)


GAP: Final = Kind(
    shapes={"weight": ("L", "d", 2), "bias": (2,)},
    columns=_columns,
    state=_state,
    token_score=_differ,
    aggregations=frozenset({"gap"}),
)
