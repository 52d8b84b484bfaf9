"""Finding the decoder blocks of a loaded model."""

from __future__ import annotations

from torch import nn

from monitor.errors import TapError


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
