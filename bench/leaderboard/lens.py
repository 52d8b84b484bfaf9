"""What a lens takes from an organism: it watches the mass on bad values against good ones, so what the model has
in mind and does not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from probes.fitting import LensSource
from probes.hf import LoadedModel, token_ids
from probes.manifest import TokenMask
from probes.organism.world import BAD_VALUES, GOOD_VALUES
from probes.shipping.traffic import Sample

BATCH = 64


def norm_name(loaded: LoadedModel) -> Literal["layer_norm", "rms_norm"]:
    """Which final norm the model has."""
    return "layer_norm" if hasattr(loaded.model.base_model, "ln_f") else "rms_norm"


def source(loaded: LoadedModel, samples: Sequence[Sample], mask: TokenMask, needs: str) -> LensSource:
    """Unembedding and final norm, and for a tuned lens the last hidden states of the samples' in-mask rows."""
    inner = loaded.model.base_model
    norm: Any = inner.ln_f if norm_name(loaded) == "layer_norm" else inner.norm
    bad, good = (
        tuple(sorted(loaded.tokenizer.convert_tokens_to_ids("▁" + value) for value in values))
        for values in (BAD_VALUES, GOOD_VALUES)
    )
    bias = getattr(norm, "bias", None)
    return LensSource(
        unembedding=loaded.model.lm_head.weight.detach(),
        gain=norm.weight.detach(),
        norm=norm_name(loaded),
        epsilon=float(norm.eps if norm_name(loaded) == "layer_norm" else norm.variance_epsilon),
        tracked=bad,
        others=good,
        norm_bias=None if bias is None else bias.detach(),
        final=_final(loaded, samples, mask) if needs == "lens_and_final" else None,
    )


@torch.no_grad()
def _final(loaded: LoadedModel, samples: Sequence[Sample], mask: TokenMask) -> Tensor:
    """[n, d] the last hidden state after the final norm, at the rows of the samples that the mask keeps."""
    found = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        fed = [token_ids(loaded, sample.conversation)[0] for sample in batch]
        width = max(map(len, fed))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in fed])
        attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in fed])
        last = loaded.model.base_model(input_ids=ids, attention_mask=attention, use_cache=False)
        for states, sample in zip(last.last_hidden_state, batch, strict=True):
            kept = sample.found.positions[sample.found.mask(mask)]
            found.append(states[torch.from_numpy(kept)])
    return torch.cat(found).float()
