"""Steering on real engines, compiled: the right vector for every row, nothing for the others, and no leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steered
import tiny
import torch
from conftest import Finished, Runner, Subject, make_subject
from machine import LEAK, TOLERANCE
from reference import check_reconciled, total, worst_difference
from traffic import mixed

from probes.identity import model_identity
from probes.testing import write_artifact

EARLY, LATE = 0, 2
"""The layers that the two vectors steer; probes read before, between and behind them."""
FLOAT32 = {"dtype": "float32"}
WAYS: list[Any] = [
    None,
    "early:0.3",
    "late:-0.2:generated",
    None,
    "late:ablate",
    "early:0.5:clamp:prompt",
    ["early:0.2:relative", "late:0.4:generated:clamp"],
    "late:-0.5:relative",
]


def vectors(folder: Path, subject: Subject) -> list[Path]:
    binding = model_identity(subject.model).binding()
    return [
        write_artifact(
            folder / f"{name}.safetensors",
            seed=seed,
            name=name,
            layers=(layer,),
            d_model=tiny.D_MODEL,
            kind="steering",
            scoring="projection",
            binding=binding,
        )
        for name, layer, seed in (("early", EARLY, 11), ("late", LATE, 12))
    ]


def changes(way: Any, files: list[Path], prompt: int, fed: int) -> dict[int, steered.Change]:
    """The formulas behind each of ``WAYS``."""
    early, late = map(steered.direction, files)
    every, asked = torch.ones(fed, dtype=torch.bool), torch.arange(fed) < prompt
    known: dict[str, dict[int, steered.Change]] = {
        "None": {},
        "early:0.3": {EARLY: steered.add(early, 0.3, every)},
        "late:-0.2:generated": {LATE: steered.add(late, -0.2, ~asked)},
        "late:ablate": {LATE: steered.ablate(late, 1.0, every)},
        "early:0.5:clamp:prompt": {EARLY: steered.clamp(early, 0.5, asked)},
        str(WAYS[6]): {
            EARLY: steered.add_relative(early, 0.2, every),
            LATE: steered.clamp(late, 0.4, ~asked),
        },
        "late:-0.5:relative": {LATE: steered.add_relative(late, -0.5, every)},
    }
    return known[str(way)]


def expected(
    subject: Subject,
    files: list[Path],
    sequences: list[np.ndarray],
    prompts: list[list[int]],
    ways: list[Any],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(states, next tokens) of every sequence."""
    model = steered.load(subject.model)
    found = [
        steered.states(model, subject.probes, ids, changes(way, files, len(prompt), len(ids) - 1))
        for ids, prompt, way in zip(sequences, prompts, ways, strict=True)
    ]
    return [states for states, _ in found], [tokens for _, tokens in found]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp(request.param), request.param, "float32")


@pytest.fixture(scope="module")
def files(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return vectors(tmp_path_factory.mktemp("vectors"), subject)


def crowd() -> dict[str, Any]:
    phase = mixed(48, seed=3)
    return {**phase, "steer": [WAYS[i % len(WAYS)] for i in range(48)]}


def again(steer: Any) -> dict[str, Any]:
    """Three long prompts, always the same."""
    rng = np.random.default_rng(8)
    prompts = [rng.integers(3, tiny.VOCABULARY, 100).tolist() for _ in range(3)]
    return {"prompts": prompts, "max_tokens": [6] * 3, "steer": [steer] * 3}


@pytest.fixture(scope="module")
def finished(subject: Subject, files: list[Path], run_engine: Runner) -> Finished:
    leaking = {**again("early:0.4"), "sabotage": "unsalted"}
    phases = [crowd(), again("early:0.3"), again(None), again("early:0.3"), leaking, again(None)]
    # Another scale under sabotage, so that what it leaves behind has no salt of its own from before.
    done = run_engine(subject.model, subject.probes, phases, vectors=list(map(str, files)), engine=FLOAT32)
    assert done.status == 0, done.log[-3000:]
    return done


def test_every_row_gets_its_own_steering_and_no_other(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    phase, (served, sequences) = crowd(), finished.sequences(0)
    states, tokens = expected(subject, files, sequences, phase["prompts"], phase["steer"])
    assert worst_difference(served, states) < TOLERANCE
    for ids, prompt, following in zip(sequences, phase["prompts"], tokens, strict=True):
        assert ids[len(prompt) :].tolist() == following[len(prompt) - 1 :].tolist()
    counters = finished.phase(0)["metrics"]
    check_reconciled(counters, 48, ["one-layer", "cosine"])
    assert total(counters, "probewatch_steered_tokens_total", vector="early") > 100
    assert finished.phase(0)["last_error"] is None


def test_unsteered_requests_in_the_same_batch_give_the_tokens_of_stock_vllm(
    finished: Finished, subject: Subject, run_engine: Runner
) -> None:
    plain = crowd()
    stock = run_engine(subject.model, [], [{k: v for k, v in plain.items() if k != "steer"}], engine=FLOAT32)
    assert stock.status == 0, stock.log[-3000:]
    pairs = zip(finished.phase(0)["outputs"], stock.phase(0)["outputs"], plain["steer"], strict=True)
    same = [(ours["tokens"] == theirs["tokens"], way) for ours, theirs, way in pairs]
    assert all(equal for equal, way in same if way is None)
    assert not all(equal for equal, way in same if way is not None)


def test_steered_keys_and_values_are_shared_with_requests_steered_alike_alone(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    prompts = again(None)["prompts"]
    for index, way, hit in ((1, "early:0.3", False), (2, None, False), (3, "early:0.3", True)):
        served, sequences = finished.sequences(index)
        states, _ = expected(subject, files, sequences, prompts, [way] * 3)
        assert worst_difference(served, states) < TOLERANCE
        cached = [output["cached"] for output in finished.phase(index)["outputs"]]
        assert all(cached) if hit else not any(cached)


def test_without_the_salt_steering_leaks_into_plain_requests(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    """The reproducer: phase 2 had the plain prompts cached, so phase 4 reads them, and what it computes is mixed."""
    served, sequences = finished.sequences(4)
    states, _ = expected(subject, files, sequences, again(None)["prompts"], ["early:0.3"] * 3)
    assert any(output["cached"] for output in finished.phase(4)["outputs"])
    assert worst_difference(served, states) > LEAK
