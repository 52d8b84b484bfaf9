"""Finding the decoder blocks of a loaded model, and those that are tapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from monitor.errors import TapError
from monitor.residual import ResidualRule, check_signature, rule_for


class Tapped(NamedTuple):
    """One layer that a pipeline stage computes."""

    place: int
    """Among the tapped layers."""
    block: nn.Module
    rule: ResidualRule


def decoder_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The model's list of decoder blocks; its index is the global block index on every pipeline stage.

    Raises ``TapError`` if none or several lists have ``n_layers`` entries.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    }
    # vLLM's encoder-decoder and multimodal models hold other towers; their decoder is the language model.
    towers = [name for name in found if "vision" in name or "encoder" in name.split(".") or "visual" in name]
    candidates = {name: module for name, module in found.items() if name not in towers}
    if len(candidates) != 1:
        raise TapError(
            f"{type(model).__name__} has {len(candidates)} lists of {n_layers} blocks "
            f"({', '.join(candidates) or 'none'}); the monitor needs exactly one: this architecture is not supported"
        )
    return next(iter(candidates.values()))


def is_here(block: nn.Module) -> bool:
    """Whether this pipeline stage computes the block; vLLM pads the list with placeholders."""
    return type(block).__name__ != "PPMissingLayer"


def tapped_here(blocks: nn.ModuleList, layers: Sequence[int]) -> list[Tapped]:
    """Those of the layers that this stage computes. Raises ``TapError`` for a block without a verified rule."""
    found = []
    for index, layer in enumerate(layers):
        block = blocks[layer]
        if is_here(block):
            rule = rule_for(type(block).__name__)
            check_signature(rule, block)
            found.append(Tapped(index, block, rule))
    return found


def upstream(blocks: nn.ModuleList, layers: Sequence[int]) -> int:
    """How many of the layers lie on earlier pipeline stages."""
    first = next(number for number, block in enumerate(blocks) if is_here(block))
    return sum(layer < first for layer in layers)
