"""Random-weight models of several architectures, small enough to compile and check in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 512
LAYERS = 4
D_MODEL = 128

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256, "head_dim": 64},
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256},
    "qwen3": {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256, "head_dim": 64},
    "gpt2": {"n_head": 2, "n_inner": 256},
    "opt": {"num_attention_heads": 2, "ffn_dim": 256, "word_embed_proj_dim": D_MODEL},
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
