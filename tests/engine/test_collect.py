"""``probewatch collect`` on real engines: what lies in the folder is what Hugging Face computes."""

from __future__ import annotations

from pathlib import Path

import machine
import pytest
import torch
from serving import ENVIRONMENT, probewatch

from monitor.shipped import paths
from probes import cli, dataset, hf
from probes.collected import Collected, open_collection
from probes.dataset import Conversation
from probes.manifest import TokenMask
from probes.organism import cases

MODEL = Path(str(paths()["model"]))
LAYERS = (1, 3, 4)
ALL = TokenMask(prompt="all")
# Prompts are longer than a step, so they are computed in chunks.
OPTIONS = [
    "--max-model-len",
    "512",
    "--max-num-batched-tokens",
    "48",
    "--max-num-seqs",
    "8",
    "--block-size",
    "32",
]
CLOSE = 3e-3 if machine.ON_GPU else 1e-5
"""Largest allowed distance of a row from Hugging Face's, relative to its length; see ``machine.TOLERANCE``."""
ANSWERS = ("Yes, it is sound.", "I am afraid that it is cracked, and I would not sign for it at all today.")


def chats() -> list[Conversation]:
    asked = cases(48, seed=5, split="test", conditions=("incentivised", "plain", "chitchat"))
    return [
        Conversation.model_validate(
            {
                "id": f"c{i}",
                "messages": [*case.messages, {"role": "assistant", "content": ANSWERS[i // 3 % 2]}],
                "label": i // 3 % 2,
                "group": f"g{i}",
                "split": ("train", "validation", "test")[i % 3],
            }
        )
        for i, case in enumerate(asked)
    ]


@pytest.fixture(scope="module", params=["one worker", "two stages"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected")
    dataset.write(out / "data.jsonl", chats())
    stages = ["--pipeline-parallel-size", "2"] if request.param == "two stages" else []
    # Of the two, the single worker runs in the command's own process: that starts sooner.
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    apart = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    done = probewatch(
        *("collect", "--model", str(MODEL), "--data", str(out / "data.jsonl"), "-o", str(out / "rows")),
        *("--layers", ",".join(map(str, LAYERS)), "--tokens", "all", "--dtype", "float32"),
        *(*machine.options(machine.MEMORY), *OPTIONS, *stages),
        environment={**ENVIRONMENT, **(apart if stages else alone)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "24 positive, 24 negative, 0 unlabelled" in done.stdout
    assert "of KV cache" in done.stdout  # what it takes is said
    assert "shard 1 of 1: 48 conversations" in done.stdout
    return out / "rows"


@pytest.fixture(scope="module")
def collected(folder: Path) -> Collected:
    return open_collection(folder)


def test_every_row_is_hugging_faces(collected: Collected) -> None:
    assert collected.conversations == tuple(chats())
    found = collected.activations(collected.conversations, LAYERS, ALL)
    expected = hf.activations(hf.load(MODEL), collected.conversations, LAYERS)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one.first == other.first
        assert one.prompt_length == other.prompt_length
        relative = torch.linalg.vector_norm(one.hidden - other.hidden, dim=-1)
        relative /= torch.linalg.vector_norm(other.hidden, dim=-1)
        worst = max(worst, float(relative.max()))
    assert worst < CLOSE


def test_training_needs_no_model(
    collected: Collected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--name", "p", "--concept", "c", "--positive", "long", "--negative", "short"]
    out = tmp_path / "p.safetensors"
    assert cli.main(["train", "--activations", str(collected.folder), *named, "-o", str(out)]) == 0
    assert cli.main(["verify", str(out), "--model", str(MODEL)]) == 0
    assert "binding" in capsys.readouterr().out
