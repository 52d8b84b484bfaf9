"""The sizes of a decoder that its costs follow from, out of its ``config.json``. No torch, no vLLM."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitor.errors import ConfigurationError

Config = Mapping[str, Any]
_BYTES = {"float32": 4.0, "float64": 8.0}
_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}
"""Of the methods of quantization that have one width."""
_TWO_MATRICES = ("gpt2", "opt", "gpt_neox", "gptj", "bloom", "falcon", "phi", "starcoder2")
"""Model types whose feed-forward part is not gated."""
_LARGEST = 10**9
_REMEDY = "name the folder of a decoder, or its config.json"


@dataclass(frozen=True)
class Shape:
    """A decoder, as far as its costs go. Norms, biases and position embeddings are left out."""

    d_model: int
    layers: int
    parameters: float
    """Of all matrices, embeddings included."""
    read: float
    """Of the matrices that a step reads: not the input embeddings."""
    active: float
    """Of the matrices that multiply a token: of a mixture only the token's own experts."""
    attention: int
    """Query heads times their width."""
    kv_bytes: float
    """Of keys and values, a token."""
    weight_bytes: float
    """Of a parameter."""
    number_bytes: float
    """Of a number in the residual stream."""

    @classmethod
    def of(cls, config: Config) -> Shape:
        """From the contents of a ``config.json`` as Hugging Face writes them.

        Raises ``ConfigurationError`` naming what is missing, or is not what the arithmetic knows."""
        text = _object(config, "text_config") or config
        d = _count(text, "hidden_size", "n_embd")
        depth = _count(text, "num_hidden_layers", "n_layer")
        wide = _count(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * d)
        vocabulary = _count(text, "vocab_size")
        attention = _attention(text, d)
        matrices = 2 if text.get("model_type") in _TWO_MATRICES else 3
        used, held = _feed_forward(text, matrices * d, wide)
        tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
        head = vocabulary * d
        read = depth * (attention.parameters + held) + head
        number = _BYTES.get(str(text.get("dtype") or text.get("torch_dtype")), 2.0)
        quantization = _object(config, "quantization_config") or _object(text, "quantization_config")
        return cls(
            d_model=d,
            layers=depth,
            parameters=read if tied else read + head,
            read=read,
            active=depth * (attention.parameters + used) + head,
            attention=attention.width,
            kv_bytes=depth * attention.kept * number,
            weight_bytes=_quantized(quantization) or number,
            number_bytes=number,
        )


@dataclass(frozen=True)
class _Attention:
    """Of one block."""

    parameters: int
    width: int
    """Half the numbers that a query multiplies with those of one earlier token."""
    kept: int
    """Numbers in the KV cache, a token."""


def _attention(config: Config, d: int) -> _Attention:
    heads = _count(config, "num_attention_heads", "n_head")
    if _count(config, "kv_lora_rank", default=0):
        return _latent(config, d, heads)
    if heads > d and not config.get("head_dim"):
        raise ConfigurationError(
            f"the model's configuration has {heads} attention heads in a hidden_size of {d}; {_REMEDY}"
        )
    width = _count(config, "head_dim", default=d // heads)
    kv = _count(config, "num_key_value_heads", default=heads) * width
    return _Attention(2 * d * heads * width + 2 * d * kv, heads * width, 2 * kv)


def _latent(config: Config, d: int, heads: int) -> _Attention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): the cache keeps one latent vector and
    one rotated key for all heads, and a decoding step multiplies in the space of the latent vectors."""
    latent = _count(config, "kv_lora_rank")
    rotated = _count(config, "qk_rope_head_dim")
    plain = _count(config, "qk_nope_head_dim")
    value = _count(config, "v_head_dim", default=plain)
    rank = _count(config, "q_lora_rank", default=0)
    query = heads * (plain + rotated)
    parameters = rank * (d + query) if rank else d * query
    parameters += d * (latent + rotated) + latent * heads * (plain + value) + heads * value * d
    return _Attention(parameters, heads * (2 * latent + rotated) // 2, latent + rotated)


def _feed_forward(config: Config, a_unit: int, wide: int) -> tuple[int, int]:
    """Parameters of a block's feed-forward part: used by a token, and held."""
    experts = _count(config, "num_local_experts", "num_experts", "n_routed_experts", default=0)
    if not experts:
        return a_unit * wide, a_unit * wide
    expert = a_unit * _count(config, "moe_intermediate_size", default=wide)
    shared = expert * _count(config, "n_shared_experts", default=0)
    shared += a_unit * _count(config, "shared_expert_intermediate_size", default=0)
    chosen = _count(config, "num_experts_per_tok", default=1)
    return expert * chosen + shared, expert * experts + shared


def _quantized(settings: Config) -> float | None:
    """Bytes a weight; None where it is as wide as a number of the stream."""
    known = 4 if settings.get("load_in_4bit") else _BITS.get(str(settings.get("quant_method")), 0)
    bits = _count(settings, "bits", default=known)
    groups = _object(
        settings, "config_groups"
    )  # of compressed-tensors; the widest, so as not to promise too much
    for name in groups:
        bits = max(bits, _count(_object(_object(groups, name), "weights"), "num_bits", default=0))
    return bits / 8 if bits else None


def _count(config: Config, *names: str, default: int | None = None) -> int:
    """The first of ``names`` that is there. None, 0 and what is missing are ``default``, where there is one."""
    for name in names:
        if not (found := config.get(name)):
            continue
        if not isinstance(found, int) or not 0 < found <= _LARGEST:
            raise ConfigurationError(_refusal(name, found, f"a whole number from 1 to {_LARGEST}"))
        return int(found)
    if default is not None:
        return default
    raise ConfigurationError(f"the model's configuration has no positive {names[0]}; {_REMEDY}")


def _object(config: Config, name: str) -> Config:
    """Empty where it is missing."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigurationError(_refusal(name, found, "an object"))
    return found


def _refusal(name: str, found: object, wanted: str) -> str:
    told = f"{name} is {reprlib.repr(found)} in the model's configuration, the estimate knows {wanted} there"
    return f"{told}; {_REMEDY}"
