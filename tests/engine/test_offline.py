"""``LLM.chat`` and ``LLM.generate`` on the shipped model: every way in which an answer can end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, Finished, Runner
from machine import MEMORY, TOLERANCE, options
from reference import check_reconciled, reference_states, total, worst_difference
from serving import probewatch

from monitor.shipped import paths
from probes.organism import cases, told_a_lie

LIMIT = 512
NAMES = [Path(str(path)).stem for path in [*paths()["probes"], *paths()["vectors"]]]  # type: ignore[misc]


def chats() -> dict[str, Any]:
    """Ledger questions, each answer ended in another way."""
    asked = cases(24, seed=21, split="test", conditions=("incentivised", "plain", "chitchat"))
    # The grammar sees words with the mark that stands for their space; of two words it could not find the way back.
    ways: list[dict[str, Any]] = [
        {"max_tokens": 60},
        {"max_tokens": 1},
        {"max_tokens": 60, "stop": [",", " is"]},
        {"max_tokens": 20, "choice": ["▁Thank", "▁Of"]},
        {"max_tokens": 60, "min_tokens": 5, "stop": ["."], "include_stop_str_in_output": True},
        {"max_tokens": 60, "logprobs": 2, "prompt_logprobs": 1},
    ]
    return {
        "chats": [list(case.messages) for case in asked],
        "params": [dict(ways[i % len(ways)]) for i in range(len(asked))],
    }


def at_the_limit() -> dict[str, Any]:
    """Prompts that leave room for one token, for two, and for a few."""
    rng = np.random.default_rng(5)
    lengths = [LIMIT - 1, LIMIT - 2, LIMIT - 9, 1]
    return {"prompts": [rng.integers(5, 900, n).tolist() for n in lengths], "max_tokens": [1, 2, 9, 3]}


def beams() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    return {"beams": [rng.integers(5, 900, 20).tolist() for _ in range(3)], "width": 3, "max_tokens": 6}


def tempting() -> list[Any]:
    asked = cases(40, seed=22, split="test", conditions=("incentivised",))
    return [case for case in asked if case.expects_lie][:6]


def steered_chats() -> dict[str, Any]:
    """The same questions, plain and steered, in one batch."""
    asked = [list(case.messages) for case in tempting()]
    steered = {"max_tokens": 80, "extra_args": {"probewatch_steer": "honesty:2"}}
    return {"chats": asked * 2, "params": [{"max_tokens": 80}] * len(asked) + [steered] * len(asked)}


@pytest.fixture(scope="module")
def artifacts() -> list[Path]:
    return [Path(str(path)) for path in [*paths()["probes"], *paths()["vectors"]]]  # type: ignore[misc]


@pytest.fixture(scope="module")
def finished(artifacts: list[Path], run_engine: Runner) -> Finished:
    done = run_engine(
        Path(str(paths()["model"])),
        artifacts,
        [chats(), at_the_limit(), beams(), steered_chats()],
        engine={
            "dtype": "float32",
            "max_model_len": LIMIT,
            "max_num_batched_tokens": 200,
            "max_logprobs": 10,
        },
        tokenizer=True,
        vectors=[str(path) for path in artifacts if path.stem == "honesty"],
    )
    assert done.status == 0, done.log[-4000:]
    return done


@pytest.mark.parametrize("phase", [0, 1, 2], ids=["chats", "context limit", "beams"])
def test_every_token_matches_hugging_face(finished: Finished, artifacts: list[Path], phase: int) -> None:
    served, ids = finished.sequences(phase)
    assert len(served) >= 3
    references = reference_states(Path(str(paths()["model"])), artifacts, ids)
    assert worst_difference(served, references) < TOLERANCE


def test_answers_ended_as_asked(finished: Finished) -> None:
    outputs = finished.phase(0)["outputs"]
    assert {output["finish_reason"] for output in outputs} == {"stop", "length"}
    assert all(len(output["tokens"]) == 1 for output in outputs[1::6])
    assert {output["text"].strip() for output in outputs[3::6]} <= {"Thank", "Of"}
    assert all(output["text"].endswith(".") for output in outputs[4::6])


def test_chats_are_steered_one_by_one(finished: Finished) -> None:
    texts = [output["text"] for output in finished.phase(3)["outputs"]]
    asked = tempting()
    plain, steered = texts[: len(asked)], texts[len(asked) :]
    assert all(told_a_lie(case, text) for case, text in zip(asked, plain, strict=True))
    assert not any(told_a_lie(case, text) for case, text in zip(asked, steered, strict=True))
    assert total(finished.phase(3)["metrics"], "probewatch_steered_tokens_total", vector="honesty") > 0


def test_everything_reconciles(finished: Finished) -> None:
    sequences = sum(len(finished.phase(i)["outputs"]) for i in (0, 1))
    lost = check_reconciled(finished.phase(1)["metrics"], sequences, NAMES)
    assert set(lost.values()) == {0.0}


def test_a_chat_carries_its_verdict(finished: Finished) -> None:
    outputs = finished.phase(0)["outputs"]
    for output in outputs:
        assert set(output["verdict"]["probes"]) == set(NAMES)
        assert output["verdict"]["coverage"]["prompt"] == 1.0
    assert any(output["verdict"]["verdict"] == "flagged" for output in outputs)


def test_the_transcripts_scored_afterwards_have_the_scores_of_generation(
    finished: Finished, artifacts: list[Path], tmp_path: Path
) -> None:
    outputs, messages = finished.phase(0)["outputs"], chats()["chats"]
    transcripts = [
        {
            "id": f"c{i}",
            "messages": [*asked, {"role": "assistant", "content": output["text"]}],
            "answer_ids": output["tokens"][:-1],
        }
        for i, (asked, output) in enumerate(zip(messages, outputs, strict=True))
    ]
    file, out = tmp_path / "transcripts.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text("".join(json.dumps(transcript) + "\n" for transcript in transcripts))
    done = probewatch(
        *("score", str(file), "--model", str(paths()["model"]), "-o", str(out), "--token-scores"),
        *(part for path in artifacts for part in ("--probe", str(path))),
        *("--dtype", "float32", "--max-model-len", str(LIMIT), "--block-size", "32"),
        *options(MEMORY),
        environment=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["id"] for one in judged] == [one["id"] for one in transcripts]
    _, ids = finished.sequences(0)
    for one, output, tokens in zip(judged, outputs, ids, strict=True):
        live = output["verdict"]
        assert (one["verdict"], one["coverage"]) == (live["verdict"], live["coverage"])
        for name, probe in one["probes"].items():
            assert [token["token_id"] for token in probe["tokens"]] == tokens[:-1].tolist()
            for key in ("score", "flagged", "peak_token", "tokens_scored"):
                assert probe[key] == pytest.approx(live["probes"][name][key], rel=TOLERANCE, abs=TOLERANCE), (
                    name
                )
