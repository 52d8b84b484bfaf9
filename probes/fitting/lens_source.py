"""What a lens needs of a loaded model, proven on the model itself before it is used.

The final norm is called in a dozen ways, some multiply by 1 + gain, some models scale or cap their logits. So none of
it is taken on trust: the source must give the model's own logits from the input of the final norm, or is refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probes.dataset import Conversation
from probes.errors import BindingError
from probes.fitting.lens import lens_logits
from probes.fitting.types import LensSource
from probes.hf import LoadedModel, token_ids
from probes.manifest import TokenMask
from probes.masks import mask

TRIED = 16
"""Tokens that the proof feeds."""
TOLERANCE = 1e-3
"""Largest difference of a logit in the proof, relative to 1 + the largest logit."""


@torch.no_grad()
def lens_source(
    loaded: LoadedModel, tracked: Sequence[int], others: Sequence[int] | None = None
) -> LensSource:
    """The lens of a model for tracked token ids. `BindingError` where it does not give the model's own logits."""
    norm, head = _final_norm(loaded), loaded.model.get_output_embeddings()
    n = int(head.weight.shape[0])
    ids = torch.arange(TRIED).unsqueeze(0).remainder(n).to(loaded.device)
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        expected = loaded.model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    source = _read(norm, head, tuple(tracked), None if others is None else tuple(others))
    limit = TOLERANCE * (1 + float(expected.abs().max()))
    for found in (source, replace(source, gain=1 + source.gain)):
        if float((lens_logits(seen[0][0].float().cpu(), found) - expected.cpu()).abs().max()) <= limit:
            return found
    raise BindingError(
        f"{loaded.identity.model_id}: its final norm and unembedding do not give its logits (scaled or capped ones, or "
        f"a norm of class {type(norm).__name__}); a lens cannot be read off this model"
    )


@torch.no_grad()
def final_hidden(loaded: LoadedModel, conversations: Sequence[Conversation], token_mask: TokenMask) -> Tensor:
    """[n, d] float32: the last hidden state after the final norm, of the in-mask tokens of all conversations in order.

    The rows are those of `probes.fitting.token_rows` for the same conversations and mask.
    """
    found = []
    for conversation in conversations:
        ids, prompt_length = token_ids(loaded, conversation)
        out = loaded.model(
            input_ids=torch.tensor([ids]).to(loaded.device), output_hidden_states=True, use_cache=False
        )
        inside = torch.from_numpy(mask(range(len(ids)), prompt_length, token_mask))
        found.append(out.hidden_states[-1][0].float().cpu()[inside])
    return torch.cat(found)


def _final_norm(loaded: LoadedModel) -> Any:
    """The last module behind the blocks that is called a norm and as wide as the stream."""
    blocks = {id(module) for module in loaded.blocks().modules()}
    width = loaded.identity.d_model
    norms = [
        module
        for module in loaded.model.modules()
        if id(module) not in blocks
        and "norm" in type(module).__name__.lower()
        and tuple(getattr(module, "weight", torch.empty(0)).shape) == (width,)
    ]
    if not norms:
        raise BindingError(f"{loaded.identity.model_id} has no final norm of width {width}; a lens needs one")
    return norms[-1]


def _read(norm: Any, head: Any, tracked: tuple[int, ...], others: tuple[int, ...] | None) -> LensSource:
    epsilon = next(
        (float(getattr(norm, name)) for name in ("variance_epsilon", "eps") if hasattr(norm, name)), 1e-6
    )
    return LensSource(
        unembedding=head.weight.detach().float().cpu(),
        gain=norm.weight.detach().float().cpu(),
        norm="layer_norm" if isinstance(norm, nn.LayerNorm) else "rms_norm",
        epsilon=epsilon,
        tracked=tracked,
        others=others,
        norm_bias=None if getattr(norm, "bias", None) is None else norm.bias.detach().float().cpu(),
        bias=None if getattr(head, "bias", None) is None else head.bias.detach().float().cpu(),
    )
