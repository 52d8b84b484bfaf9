"""What Hugging Face transformers computes when the same steering is written by hand, straight from its formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import probes

Change = Callable[[torch.Tensor], torch.Tensor]
"""``x [T, d]`` after a block, to what it becomes there."""


def blocks_of(model: Any) -> Any:
    """The decoder blocks of a Hugging Face model."""
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def load(model: Path) -> Any:
    """The model in float32."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def states(
    model: Any, artifacts: list[Path], ids: np.ndarray, changes: dict[int, Change]
) -> tuple[np.ndarray, np.ndarray]:
    """``(states [T, K], greedy next token [T])`` of the fed tokens of one sequence; the last id is not fed.

    ``changes``: by block. A probe reads what comes out of a block before it is changed there.
    """
    read: dict[int, torch.Tensor] = {}

    def hook(block: int) -> Callable[..., Any]:
        def after(_module: Any, _inputs: Any, output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            read[block] = whole[0].clone()
            if block not in changes:
                return None
            changed = changes[block](whole[0])[None]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return after

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks_of(model))]
    with torch.no_grad():
        logits = model(torch.tensor(ids[None, :-1])).logits[0]
    for handle in handles:
        handle.remove()
    loaded = [probes.load(path) for path in artifacts]
    rows = [p.token_state(torch.stack([read[b] for b in p.manifest.layers], dim=1)) for p in loaded]
    return torch.cat(rows, dim=1).numpy(), logits.argmax(1).numpy()


def direction(file: Path) -> torch.Tensor:
    """[d] the stored direction of a vector of one layer."""
    return probes.load(file).tensors["direction"][0]


def add(v: torch.Tensor, scale: float, rows: torch.Tensor) -> Change:
    return lambda x: torch.where(rows[:, None], x + scale * v, x)


def add_relative(v: torch.Tensor, scale: float, rows: torch.Tensor) -> Change:
    unit = v / v.norm()
    return lambda x: torch.where(rows[:, None], x + scale * x.norm(dim=1, keepdim=True) * unit, x)


def ablate(v: torch.Tensor, scale: float, rows: torch.Tensor) -> Change:
    unit = v / v.norm()
    return lambda x: torch.where(rows[:, None], x - scale * (x @ unit)[:, None] * unit, x)


def clamp(v: torch.Tensor, scale: float, rows: torch.Tensor) -> Change:
    unit = v / v.norm()
    return lambda x: torch.where(rows[:, None], x + (scale * v.norm() - x @ unit)[:, None] * unit, x)
