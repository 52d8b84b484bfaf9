"""A random-weight Llama of the size classes the targets name, and artifacts for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from probes.identity import model_identity
from probes.manifest import TokenMask
from probes.testing import BENIGN, write_artifact

VOCABULARY = 32000
SHAPES = {  # hidden, intermediate, blocks, heads, key-value heads
    "tiny": (256, 704, 4, 4, 4),  # to see that a benchmark works
    "134m": (768, 2048, 12, 12, 12),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
}


@dataclass(frozen=True)
class BenchModel:
    """A model on disk."""

    folder: Path
    d_model: int
    layers: int

    def write_probes(
        self, folder: Path, count: int, layers: tuple[int, ...], gated: bool = False, prompt: bool = False
    ) -> list[Path]:
        """``count`` random logistic probes, spread over ``layers`` one layer each.

        ``gated``: the first steers, from the first token on. ``prompt``: tokens of the prompt count too."""
        folder.mkdir(parents=True, exist_ok=True)
        binding = model_identity(self.folder).binding()
        acting = {"default_action": "steer:bench:0.001", "threshold": -1e9}
        return [
            write_artifact(
                folder / f"bench-{i}.safetensors",
                seed=i,
                name=f"bench-{i}",
                layers=(layers[i % len(layers)],),
                d_model=self.d_model,
                binding=binding,
                token_mask=TokenMask(prompt="all" if prompt else "none"),
                benign_quantiles=BENIGN,
                **(acting if gated and i == 0 else {"threshold": 0.0}),
            )
            for i in range(count)
        ]

    def write_vector(self, folder: Path, layer: int) -> Path:
        """A random steering vector named ``bench``."""
        return write_artifact(
            folder / f"vector-{layer}.safetensors",
            seed=0,
            name="bench",
            kind="steering",
            scoring="projection",
            layers=(layer,),
            d_model=self.d_model,
            binding=model_identity(self.folder).binding(),
        )


def config_of(size: str) -> LlamaConfig:
    """Of a size class."""
    d_model, intermediate, blocks, heads, kv_heads = SHAPES[size]
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=16384,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_model(folder: Path, size: str = "134m", device: str = "cpu") -> BenchModel:
    """A seeded model in bfloat16 with small random weights, one file a block."""
    config = config_of(size)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        made = torch.ones(shape) if len(shape) == 1 else None
        if made is None:
            made = torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * 0.02
        shards.setdefault(part, {})[name] = made.to(torch.bfloat16).cpu().contiguous()
    for part, tensors in shards.items():
        save_file(tensors, folder / f"model-{part}.safetensors", metadata={"format": "pt"})
    return BenchModel(folder, config.hidden_size, config.num_hidden_layers)


def write_tokenizer(folder: Path) -> None:
    """One word a token, so that text of ``n`` words is a prompt of ``n`` tokens, there and back."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0"
    ).save_pretrained(folder)
