"""Lenses read off real architectures: at the last block they are the model itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import probes
from probes import fitting, hf, kinds
from probes.fitting import Options, TokenRows
from probes.fitting.lens_source import lens_source
from probes.identity import ModelIdentity
from probes.testing import fake_manifest

torch.set_num_threads(1)

V, D, DEPTH = 24, 16, 2
SIZES: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 32,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": V, "n_embd": D, "n_layer": DEPTH, "n_head": 2, "n_positions": 32}


def tiny(model_type: str, **changes: Any) -> hf.LoadedModel:
    torch.manual_seed(0)
    sizes = GPT2 if model_type == "gpt2" else SIZES
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    identity = ModelIdentity(model_type, "0" * 64, None, None, D, DEPTH)
    return hf.LoadedModel(model, None, identity)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma"])
def test_the_lens_behind_the_last_block_is_the_model(model_type: str) -> None:
    loaded = tiny(model_type)
    source = lens_source(loaded, tracked=(3, 7))
    ids = torch.tensor([[5, 4, 9, 11, 2, 8]])
    seen: list[torch.Tensor] = []
    hook = loaded.blocks()[-1].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        mass = loaded.model(input_ids=ids).logits[0].softmax(-1)[:, [3, 7]].sum(-1)
    hook.remove()
    rows = TokenRows(seen[0].reshape(-1, 1, D), torch.arange(7).numpy())
    tensors = fitting.fit("logit_lens", rows, [0] * 6, Options(lens=source))
    manifest = fake_manifest(kind="logit_lens", scoring=source.norm, layers=(1,), d_model=D)
    found = kinds.score_hidden(kinds.of(manifest), tensors, kinds.of(manifest).columns(tensors), rows.hidden)
    torch.testing.assert_close(found[:, 0], (mass / (1 - mass)).log(), rtol=1e-3, atol=1e-3)


def test_logits_that_the_lens_cannot_give_are_refused() -> None:
    with pytest.raises(probes.BindingError, match="do not give its logits"):
        lens_source(tiny("gemma2", final_logit_softcapping=0.5, query_pre_attn_scalar=8), tracked=(3,))
    headless = tiny("llama")
    broken = replace(headless, identity=replace(headless.identity, d_model=99))
    with pytest.raises(probes.BindingError, match="no final norm of width 99"):
        lens_source(broken, tracked=(3,))
