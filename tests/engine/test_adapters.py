"""LoRA: a probe speaks for what it was trained on, and every other token is counted as unscored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished, Runner
from machine import TOLERANCE
from reference import check_reconciled, states_of, total, worst_difference
from safetensors.torch import save_file
from traffic import mixed
from transformers import AutoModelForCausalLM

from probes.identity import adapter_digest, model_identity
from probes.testing import write_artifact

RANK, ALPHA = 4, 16
REQUESTS = 60


def write_adapter(folder: Path, seed: int) -> Path:
    """A random adapter on the query and output projections of every block."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(tiny.LAYERS):
        for name in ("q_proj", "o_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, tiny.D_MODEL, generator=generator) / 8
            tensors[f"{key}.lora_B.weight"] = torch.randn(tiny.D_MODEL, RANK, generator=generator) / 8
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "o_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "bias": "none", "task_type": "CAUSAL_LM"})
    )
    return folder


def merged(model: Path, adapter: Path) -> torch.nn.Module:
    """The model with the adapter added to its weights."""
    from safetensors.torch import load_file

    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tensors = load_file(adapter / "adapter_model.safetensors")
    for layer, block in enumerate(found.model.layers):
        for name in ("q_proj", "o_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            update = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
            getattr(block.self_attn, name).weight.data += ALPHA / RANK * update
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def adapters(folder: Path) -> list[Path]:
    return [write_adapter(folder / f"adapter-{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def probes_of(folder: Path, adapters: list[Path]) -> list[Path]:
    """One probe for the model itself and one for the model with the first adapter, on the same layer."""
    model = tiny.write_model(folder / "model", "llama", torch.float32)
    base = model_identity(model).binding()
    bindings = {
        "base": base,
        "adapted": base.model_copy(update={"adapter_digest": adapter_digest(adapters[0])}),
    }
    return [
        write_artifact(
            folder / f"{name}.safetensors",
            name=name,
            layers=(2,),
            seed=seed,
            d_model=tiny.D_MODEL,
            binding=binding,
            threshold=0.0,
        )
        for seed, (name, binding) in enumerate(bindings.items())
    ]


@pytest.fixture(scope="module")
def chosen(adapters: list[Path]) -> list[list[str | None]]:
    """By phase, what each request runs with: the model itself, then the two adapters in turns, on the same prompts.

    Not in one batch: on CPU vLLM 0.32 computes a request without an adapter as if it had the last one.
    """
    return [[None] * REQUESTS, [str(adapters[i % 2]) for i in range(REQUESTS)]]


@pytest.fixture(scope="module")
def finished(
    folder: Path, probes_of: list[Path], chosen: list[list[str | None]], run_engine: Runner
) -> Finished:
    phases = [{**mixed(REQUESTS, seed=6), "adapters": adapters} for adapters in chosen]
    engine = {"dtype": "float32", "enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    done = run_engine(folder / "model", probes_of, phases, engine=engine)
    assert done.status == 0, done.log[-4000:]
    return done


def test_the_models_own_probe_scores_requests_without_an_adapter(
    finished: Finished, folder: Path, probes_of: list[Path]
) -> None:
    served, ids = finished.sequences(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    references = states_of(model, probes_of, ids)
    assert worst_difference([s[:, [0]] for s in served], [r[:, [0]] for r in references]) < TOLERANCE
    assert all(np.isnan(states[:, 1]).all() for states in served)


def test_an_adapters_probe_scores_that_adapter_and_no_other(
    finished: Finished, folder: Path, adapters: list[Path], probes_of: list[Path]
) -> None:
    served, ids = finished.sequences(1)
    own = range(0, REQUESTS, 2)
    references = states_of(merged(folder / "model", adapters[0]), probes_of, [ids[i] for i in own])
    difference = worst_difference([served[i][:, [1]] for i in own], [r[:, [1]] for r in references])
    assert difference < TOLERANCE
    assert all(np.isnan(served[i][:, 1]).all() for i in range(1, REQUESTS, 2))
    assert all(np.isnan(states[:, 0]).all() for states in served)


def test_what_is_not_scored_says_why_and_reconciles(finished: Finished) -> None:
    counters = finished.phase(1)["metrics"]
    lost = check_reconciled(counters, 2 * REQUESTS, ["base", "adapted"])
    fed = [[len(states) for states in finished.sequences(phase)[0]] for phase in (0, 1)]
    assert lost == {"base": sum(fed[1]), "adapted": sum(fed[0]) + sum(fed[1][1::2])}
    for name, tokens in lost.items():
        assert (
            total(counters, "probewatch_tokens_unscored_total", probe=name, reason="other_adapter") == tokens
        )


def test_the_reply_tells_which_probes_could_speak(finished: Finished) -> None:
    for phase, column in ((0, "base"), (1, "adapted")):
        for i, output in enumerate(finished.phase(phase)["outputs"]):
            scored = {
                name for name, probe in output["verdict"]["probes"].items() if probe["score"] is not None
            }
            in_mask = len(output["tokens"]) > 1
            assert scored <= {column}
            assert (column in scored) is (in_mask and (phase == 0 or i % 2 == 0))
