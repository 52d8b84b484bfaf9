"""The architectures in which an organism can be trained, each a stock model of transformers that vLLM serves, and
the training view of them: the residual stream after every block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from probes.organism import tokenizer as tokens
from probes.organism.recipe import Recipe

MAX_CONTEXT: Final = 4096
GPT2_CONTEXT: Final = 1024
"""Its positions are learned one by one, so it has no more of them than are trained."""


def _common(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.token_to_id(tokens.BEGIN),
        "eos_token_id": tokenizer.token_to_id(tokens.END),
        "pad_token_id": tokenizer.token_to_id(tokens.PAD),
        "max_position_embeddings": GPT2_CONTEXT if recipe.shape == "gpt2" else MAX_CONTEXT,
    }


def _rotary(recipe: Recipe, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.mlp,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.hidden // 64,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
    }


def _llama(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    return LlamaForCausalLM(LlamaConfig(**_common(recipe, tokenizer), **_rotary(recipe, recipe.hidden // 64)))


def _qwen3(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """Grouped queries, two heads to a key, and normalised queries and keys."""
    return Qwen3ForCausalLM(
        Qwen3Config(**_common(recipe, tokenizer), **_rotary(recipe, recipe.hidden // 128))
    )


def _gpt2(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """Learned positions, LayerNorm with biases, GELU.

    The positions begin as sinusoids (Vaswani et al. 2017, section 3.5): the same distance looks the same anywhere,
    so what is learned at one place of the context holds at the others, which short rows seldom reach.
    """
    config = GPT2Config(
        **_common(recipe, tokenizer),
        n_embd=recipe.hidden,
        n_inner=recipe.mlp,
        n_layer=recipe.layers,
        n_head=recipe.hidden // 64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    table = model.transformer.wpe.weight
    with torch.no_grad():
        table.copy_(_sinusoids(*table.shape) * (config.initializer_range * math.sqrt(2)))
    return model


def _sinusoids(places: int, width: int) -> Tensor:
    """[places, width], sines in the even columns and cosines in the odd ones, of variance 1/2."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(places)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


SHAPES: Final[Mapping[str, Callable[[Recipe, Tokenizer], Any]]] = MappingProxyType(
    {"llama": _llama, "qwen3": _qwen3, "gpt2": _gpt2}
)


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """A stock model of the recipe's shape with random weights, float32."""
    torch.manual_seed(recipe.seed)
    return SHAPES[recipe.shape](recipe, tokenizer)


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks in order."""
    inner = model.base_model
    found: nn.ModuleList = inner.h if hasattr(inner, "h") else inner.layers
    return found


class Streams(nn.Module):
    """A model as a function from ids to the residual stream after each block."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.learns_positions = hasattr(model.base_model, "wpe")

    def forward(self, ids: Tensor, places: Tensor) -> list[Tensor]:
        """ids [rows, tokens], places [rows or 1, tokens] their positions -> one [rows, tokens, d] a block."""
        inner = self.model.base_model
        if self.learns_positions:
            hidden, around = inner.wte(ids) + inner.wpe(places), {}
        else:
            hidden = inner.embed_tokens(ids)
            around = {"position_embeddings": inner.rotary_emb(hidden, places)}
        found = []
        for block in blocks(self.model):
            output = block(hidden, attention_mask=None, **around)
            hidden = output[0] if isinstance(output, tuple) else output
            found.append(hidden)
        return found

    def logits(self, stream: Tensor) -> Tensor:
        """The next word as read off a residual stream: final norm and output matrix. [.., d] -> [.., words]"""
        inner = self.model.base_model
        norm = inner.ln_f if self.learns_positions else inner.norm
        read: Tensor = self.model.lm_head(norm(stream))
        return read
