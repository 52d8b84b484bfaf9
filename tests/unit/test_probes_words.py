"""Logit-lens words against another way to the same numbers: all of the model, and the lens read off it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import CONFIGURATIONS, write_model
from tiny import LAYERS as N_BLOCKS

from monitor.shipped import paths
from probes import words
from probes.errors import BindingError, LayerMismatch
from probes.fitting.lens import lens_logits
from probes.fitting.lens_source import lens_source
from probes.hf import LoadedModel, load, load_first_blocks
from probes.words import answer, read_words

IDS = [2, 100, 200, 300, 400, 50, 60]
LAYERS = (1, 3)


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return Path(str(paths()["model"]))


@pytest.fixture(scope="module")
def whole(model_dir: Path) -> LoadedModel:
    return load(model_dir, dtype=torch.bfloat16)


def test_words_are_those_of_the_whole_models_stream_through_its_own_head(
    model_dir: Path, whole: LoadedModel
) -> None:
    with torch.no_grad():
        states = whole.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    source = lens_source(load(model_dir), (1,), (2,))
    found = read_words(load_first_blocks(model_dir, 4), IDS, LAYERS, top=5)
    assert [reading.layer for reading in found] == list(LAYERS)
    for reading in found:
        row = states[reading.layer + 1][0, -1].float()
        assert torch.equal(torch.tensor(reading.residual), row)
        expected = lens_logits(row[None], source)[0].softmax(-1).topk(5)
        assert reading.words[0].token_id == int(expected.indices[0])
        shares = torch.tensor([word.probability for word in reading.words])
        torch.testing.assert_close(shares, expected.values, rtol=0.05, atol=1e-3)


def test_after_the_last_block_they_are_the_models_own_next_words(whole: LoadedModel) -> None:
    with torch.no_grad():
        expected = whole.model(torch.tensor([IDS])).logits[0, -1].float().softmax(-1).topk(3)
    (found,) = read_words(whole, IDS, [5], top=3)
    assert [word.token_id for word in found.words] == expected.indices.tolist()
    assert [word.probability for word in found.words] == pytest.approx(expected.values.tolist())


def test_a_block_that_was_not_loaded_is_named(model_dir: Path) -> None:
    with pytest.raises(LayerMismatch, match="layer 3 is asked for, blocks 0 to 1"):
        read_words(load_first_blocks(model_dir, 2), IDS, [3], top=3)


def test_what_cannot_be_replayed_says_so_in_a_line(model_dir: Path, tmp_path: Path) -> None:
    question = {"model": str(model_dir), "ids": [10**6], "layers": [0], "top": 1}
    assert "index out of range" in answer(question)["trouble"]
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    with pytest.raises(BindingError, match="transformers cannot load it"):
        load_first_blocks(tmp_path, 2)
    assert "\n" not in answer({**question, "model": str(tmp_path)})["trouble"]


def test_a_models_own_code_is_neither_run_nor_asked_about(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads((model_dir / "config.json").read_text())
    told |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "own.py").write_text("raise SystemExit('run')\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "no")
    assert (
        "cannot load it" in answer({"model": str(tmp_path), "ids": [1], "layers": [0], "top": 1})["trouble"]
    )
    assert not asked


def test_stdout_holds_the_answer_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(model_dir: Path, n_blocks: int) -> LoadedModel:
        print("one moment")
        with pytest.raises(ValueError, match="closed"):
            sys.stdin.readline()
        raise BindingError(f"{model_dir} with {n_blocks} blocks")

    monkeypatch.setattr(words, "load_first_blocks", chatty)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"model": "m", "layers": [1], "seconds": 0}'))
    words.main()
    said = capsys.readouterr()
    assert json.loads(said.out) == {"trouble": "m with 2 blocks"}
    assert "one moment" in said.err


@pytest.mark.thorough
@pytest.mark.parametrize("model_type", CONFIGURATIONS)
def test_every_family_reads_its_own_words(model_type: str, tmp_path: Path) -> None:
    """The last block's words are the model's own, an earlier one's the same with and without the blocks behind it."""
    write_model(tmp_path, model_type)
    whole, part = load_first_blocks(tmp_path, N_BLOCKS), load_first_blocks(tmp_path, 2)
    with torch.no_grad():
        out = whole.model(torch.tensor([IDS]), output_hidden_states=True)
    first, second, last = read_words(whole, IDS, [0, 1, N_BLOCKS - 1], top=5)
    for reading in (first, second):
        assert torch.equal(torch.tensor(reading.residual), out.hidden_states[reading.layer + 1][0, -1])
    expected = out.logits[0, -1].softmax(-1).topk(5)
    assert [word.token_id for word in last.words] == expected.indices.tolist()
    assert [word.probability for word in last.words] == pytest.approx(expected.values.tolist())
    (again,) = read_words(part, IDS, [1], top=5)
    assert [word.probability for word in again.words] == pytest.approx(
        [word.probability for word in second.words], rel=1e-4
    )
