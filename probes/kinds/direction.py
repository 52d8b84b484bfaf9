"""Kinds that read a direction: how far along it the residual lies, or how well it points that way."""

from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Shape, Tensors

_SHAPES: Final[dict[str, Shape]] = {"direction": ("L", "d")}


def _columns(tensors: Tensors) -> Tensor:
    direction = tensors["direction"].double()
    unit: Tensor = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return unit.float().unsqueeze(-1)  # [L, d, 1]


def _projection(projections: Tensor, _squared_norms: Tensor | None, _tensors: Tensors) -> Tensor:
    return projections.mean(dim=1)  # [T, 1]


def _cosine(projections: Tensor, squared_norms: Tensor | None, _tensors: Tensors) -> Tensor:
    if squared_norms is None:
        raise ValueError("squared_norms is None; a cosine needs the squared norm of the residual")
    norms = squared_norms.clamp_min(
        torch.finfo(torch.float32).tiny
    ).sqrt()  # a zero residual scores 0, not NaN
    return (projections / norms.unsqueeze(-1)).mean(dim=1)  # [T, 1]


def _fault(tensors: Tensors) -> str | None:
    if bool((tensors["direction"].norm(dim=-1) > 0).all()):
        return None
    return "tensor 'direction' is zero at some layer; a direction needs a length"


PROJECTION: Final = Kind(_SHAPES, _columns, _projection, fault=_fault)
COSINE: Final = Kind(_SHAPES, _columns, _cosine, needs_norm=True, fault=_fault)
