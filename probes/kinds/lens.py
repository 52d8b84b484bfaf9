"""Lenses: what the model would say if it stopped after this block, as the mass on tracked tokens.

A lens decodes the residual x of a layer with the final norm and rows of the unembedding:

    y = x (logit lens), or y = x + down (up . x) + shift (tuned lens of rank r, after 2303.08112)
    z_v = (y - mean(y)) / sd(y) . u_v + c_v (layer norm), or y / rms(y) . u_v (RMS norm)
    score = log sum_(v tracked) e^z_v - log sum_(v others) e^z_v, averaged over layers

With all of the vocabulary among tracked and others, that is the exact log-odds of the tracked mass; with a part of it,
those within the part. The norm's gain is folded into the rows u, its bias into c. Everything is exact from products
x . column and |x|^2: the norm of y needs 2 r + 1 more columns, and a layer norm one more for the mean.
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from probes.kinds.record import Kind, Shape, Tensors

_ROWS: Final[dict[str, Shape]] = {
    "tracked": ("L", "d", "A"),
    "others": ("L", "d", "B"),
    "tracked_bias": ("A",),
    "others_bias": ("B",),
    "epsilon": (),
}
_TUNED: Final[dict[str, Shape]] = {"up": ("L", "d", "r"), "down": ("L", "d", "r"), "shift": ("L", "d")}


def _rows(tensors: Tensors, centred: bool) -> Tensor:
    rows = torch.cat([tensors["tracked"], tensors["others"]], dim=-1).double()  # [L, d, V]
    return rows - rows.mean(dim=1, keepdim=True) if centred else rows


def _ones(tensors: Tensors) -> Tensor:
    layers, width, _ = tensors["tracked"].shape
    return torch.full((layers, width, 1), 1 / width, dtype=torch.float64)


def _logit_columns(tensors: Tensors, centred: bool) -> Tensor:
    mean = [_ones(tensors)] if centred else []
    return torch.cat([_rows(tensors, centred), *mean], dim=-1).float()  # [L, d, V (+ 1)]


def _common(tensors: Tensors) -> dict[str, Tensor]:
    return {
        "split": torch.tensor(tensors["tracked"].shape[2]),
        "width": torch.tensor(float(tensors["tracked"].shape[1])),
        "bias": torch.cat([tensors["tracked_bias"], tensors["others_bias"]]),
        "epsilon": tensors["epsilon"],
    }


def _logit_state(projections: Tensor, squared_norms: Tensor | None, known: Tensors, centred: bool) -> Tensor:
    squares = _needed(squared_norms) / known["width"]
    if centred:
        squares = squares - projections[..., -1].square()
        projections = projections[..., :-1]
    return _mass(projections, squares, known)


def _tuned_columns(tensors: Tensors, centred: bool) -> Tensor:
    shift = tensors["shift"].double().unsqueeze(-1)
    mean = [_ones(tensors)] if centred else []
    parts = [_rows(tensors, centred), tensors["up"].double(), tensors["down"].double(), shift, *mean]
    return torch.cat(parts, dim=-1).float()  # [L, d, V + 2 r + 1 (+ 1)]


def _tuned_constants(tensors: Tensors, centred: bool) -> dict[str, Tensor]:
    rows, down, shift = _rows(tensors, centred), tensors["down"].double(), tensors["shift"].double()
    found = {
        "turned": torch.einsum("ldr,ldv->lrv", down, rows),
        "shifted": torch.einsum("ld,ldv->lv", shift, rows),
        "gram": torch.einsum("ldr,ldq->lrq", down, down),
        "across": torch.einsum("ldr,ld->lr", down, shift),
        "shift_square": shift.square().sum(-1),
        "down_mean": down.mean(dim=1),
        "shift_mean": shift.mean(dim=-1),
    }
    return {**_common(tensors), **{name: value.float() for name, value in found.items()}}


def _tuned_state(projections: Tensor, squared_norms: Tensor | None, known: Tensors, centred: bool) -> Tensor:
    """Every product that the lens needs with y = x + D s + b, s = up . x, from those with x."""
    n_rows, rank = known["shifted"].shape[1], known["across"].shape[1]
    sizes = [n_rows, rank, rank, 1, int(centred)]
    plain, s, along, of_shift, mean = projections.split(sizes, dim=-1)
    products = plain + torch.einsum("tlr,lrv->tlv", s, known["turned"]) + known["shifted"]
    squares = (
        _needed(squared_norms)
        + 2 * (s * along).sum(-1)
        + torch.einsum("tlr,lrq,tlq->tl", s, known["gram"], s)
        + 2 * of_shift[..., 0]
        + 2 * (s * known["across"]).sum(-1)
        + known["shift_square"]
    ) / known["width"]
    if centred:
        means = mean[..., 0] + (s * known["down_mean"]).sum(-1) + known["shift_mean"]
        squares = squares - means.square()
    return _mass(products, squares, known)


def _needed(squared_norms: Tensor | None) -> Tensor:
    if squared_norms is None:
        raise ValueError("squared_norms is None; the final norm needs the squared norm of the residual")
    return squared_norms


def _mass(products: Tensor, squares: Tensor, known: Tensors) -> Tensor:
    """products [T, L, V] with the rows, mean squares [T, L] -> [T, 1]"""
    squares = torch.where(squares.isfinite(), squares.clamp_min(0.0), torch.nan)  # 1 / inf would be a 0
    scale = (squares + known["epsilon"]).rsqrt().unsqueeze(-1)
    logits = products * scale + known["bias"]
    split = int(known["split"])
    odds = torch.logsumexp(logits[..., :split], -1) - torch.logsumexp(logits[..., split:], -1)
    return odds.mean(dim=1, keepdim=True)


def _fault(tensors: Tensors) -> str | None:
    if not float(tensors["epsilon"]) > 0:
        return f"tensor 'epsilon' is {float(tensors['epsilon']):g}; give the final norm's, above 0"
    width, rank = tensors["up"].shape[1:] if "up" in tensors else (1, 1)
    return f"the lens has rank {rank} in {width} dimensions; give at most {width}" if rank > width else None


def _lens(tuned: bool, centred: bool) -> Kind:
    columns, state = (_tuned_columns, _tuned_state) if tuned else (_logit_columns, _logit_state)
    return Kind(
        shapes={**_ROWS, **_TUNED} if tuned else _ROWS,
        columns=partial(columns, centred=centred),
        state=partial(state, centred=centred),
        constants=partial(_tuned_constants, centred=centred) if tuned else _common,
        needs_norm=True,
        fault=_fault,
    )


LOGIT_RMS: Final = _lens(tuned=False, centred=False)
LOGIT_LAYER: Final = _lens(tuned=False, centred=True)
TUNED_RMS: Final = _lens(tuned=True, centred=False)
TUNED_LAYER: Final = _lens(tuned=True, centred=True)
