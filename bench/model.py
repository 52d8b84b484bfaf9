"""A random-weight Llama of the size class the targets name, and probes for it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from probes.identity import model_identity
from probes.testing import write_artifact

D_MODEL, LAYERS, VOCABULARY = 768, 12, 32000


def write_model(folder: Path) -> Path:
    """About 134 M parameters in bfloat16, seeded."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=4096,
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_probes(folder: Path, model: Path, count: int, layers: tuple[int, ...]) -> list[Path]:
    """``count`` random logistic probes, spread over ``layers`` one layer each."""
    binding = model_identity(model).binding()
    return [
        write_artifact(
            folder / f"bench-{i}.safetensors",
            seed=i,
            name=f"bench-{i}",
            layers=(layers[i % len(layers)],),
            d_model=D_MODEL,
            binding=binding,
            threshold=0.0,
        )
        for i in range(count)
    ]
