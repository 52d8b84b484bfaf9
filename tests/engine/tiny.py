"""Random-weight models of several architectures, small enough to compile and check in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 512
LAYERS = 4
D_MODEL = 128

_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256}
_MOE: dict[str, Any] = {**_HEADS, "moe_intermediate_size": 128, "num_experts_per_tok": 2}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": {**_HEADS, "head_dim": 64},
    "qwen2": _HEADS,
    "qwen3": {**_HEADS, "head_dim": 64},
    "gpt2": {"n_head": 2, "n_inner": 256},
    "opt": {"num_attention_heads": 2, "ffn_dim": 256, "word_embed_proj_dim": D_MODEL},
    "bloom": {"n_head": 2},
    "cohere": {**_HEADS, "logit_scale": 0.25},
    "exaone4": {**_HEADS, "sliding_window": None, "layer_types": ["full_attention"] * LAYERS},
    "falcon": {
        "num_attention_heads": 2,
        "new_decoder_architecture": False,
        "multi_query": True,
        "alibi": False,
    },
    "gemma": {**_HEADS, "head_dim": 64},
    "gemma2": {**_HEADS, "head_dim": 64, "query_pre_attn_scalar": 64},
    "gemma3_text": {
        **_HEADS,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "glm4": {**_HEADS, "head_dim": 64},
    "gpt_neox": {"num_attention_heads": 2, "intermediate_size": 256},
    "gptj": {"n_head": 2, "n_inner": 256, "rotary_dim": 64},
    "granite": {**_HEADS, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "mistral": {**_HEADS, "head_dim": 64, "sliding_window": None},
    "mixtral": {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "nemotron": _HEADS,
    "olmo2": _HEADS,
    "phi3": {**_HEADS, "original_max_position_embeddings": 1024},
    "qwen2_moe": {**_MOE, "num_experts": 4, "shared_expert_intermediate_size": 128},
    "qwen3_moe": {**_MOE, "head_dim": 64, "num_experts": 4},
    "stablelm": _HEADS,
}


def write_model(folder: Path, model_type: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Writes a randomly initialised model of ``model_type`` with LAYERS blocks of width D_MODEL."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": D_MODEL,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**sizes, **CONFIGURATIONS[model_type]})
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for (
        parameter
    ) in model.parameters():  # biases and norms start as constants; a mix-up must show in them too
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder
