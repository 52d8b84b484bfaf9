"""Probe-gated steering on a real engine, compiled: each gate opens at its token, and what it steers is not shared."""

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
from test_steering import EARLY, FLOAT32, LATE, vectors

import probes
from probes.aggregation import Stream
from probes.identity import model_identity
from probes.testing import write_artifact

ANSWER = 40
FEW_BLOCKS = 24
"""Of the KV cache: a third of what sixteen requests want, so that some are preempted and computed again."""
GATES = {
    "within": {"layers": (EARLY,), "default_action": "steer:late:0.4:generated", "threshold": 2.05},
    "behind": {"layers": (EARLY, LATE), "default_action": "steer:early:ablate", "threshold": -0.45},
}
"""The first reads before what it steers, so it acts within the forward pass; the second acts from the next token on."""


def prompts(seed: int, n: int = 16) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, tiny.VOCABULARY, int(rng.integers(40, 90))).tolist() for _ in range(n)]


def phase(asked: list[list[int]], tokens: int = ANSWER, **more: Any) -> dict[str, Any]:
    return {"prompts": asked, "max_tokens": [tokens] * len(asked), **more}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("gated"), "llama", "float32")


@pytest.fixture(scope="module")
def files(plain: Subject, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return vectors(tmp_path_factory.mktemp("vectors"), plain)


@pytest.fixture(scope="module")
def subject(plain: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("gates")
    gates = [
        write_artifact(
            folder / f"{name}.safetensors",
            seed=20 + i,
            name=name,
            d_model=tiny.D_MODEL,
            binding=model_identity(plain.model).binding(),
            statistic="running_sup",
            aggregation={"method": "mean" if name == "within" else "max"},
            token_mask={"prompt": "none", "generated": True, "skip_positions": ()},
            **spec,
        )
        for i, (name, spec) in enumerate(GATES.items())
    ]
    return Subject(plain.model, [*gates, *plain.probes])


@pytest.fixture(scope="module")
def job(files: list[Path]) -> dict[str, Any]:
    return {"vectors": list(map(str, files)), "engine": {**FLOAT32, "async_scheduling": False}}


@pytest.fixture(scope="module")
def crowded(subject: Subject, job: dict[str, Any], run_engine: Runner) -> Finished:
    """First turns on an engine that has to preempt."""
    small = {**job, "engine": {**job["engine"], "num_gpu_blocks_override": FEW_BLOCKS}}
    done = run_engine(subject.model, subject.probes, [phase(prompts(1)), phase(prompts(2))], **small)
    assert done.status == 0, done.log[-3000:]
    return done


@pytest.fixture(scope="module")
def finished(subject: Subject, job: dict[str, Any], crowded: Finished, run_engine: Runner) -> Finished:
    """Each conversation is continued by a second turn, first with the cache as we leave it, then as vLLM would."""
    kept, left = ([ids.tolist() for ids in crowded.sequences(index)[1]] for index in (0, 1))
    phases = [phase(prompts(1)), phase(kept, 5), phase(prompts(2), sabotage="unsalted"), phase(left, 5)]
    done = run_engine(subject.model, subject.probes, phases, **job)
    assert done.status == 0, done.log[-3000:]
    return done


def since(artifact: Path, states: np.ndarray, column: int, prompt: int) -> int | None:
    """Position of the token whose score brought the gate's statistic above its threshold."""
    probe = probes.load(artifact)
    stream = Stream(probe.manifest.aggregation, "running_sup")
    for position in range(prompt, len(states)):
        stream.push(states[position, column : column + 1].reshape(1, 1).astype(np.float64))
        if probe.crossed(stream.live):
            return position
    return None


def opened(subject: Subject, states: np.ndarray, prompt: int) -> tuple[int | None, int | None]:
    """First steered position of each gate."""
    within = since(subject.probes[0], states, 0, prompt)
    behind = since(subject.probes[1], states, 1, prompt)
    return within, None if behind is None else behind + 1


def expected(
    subject: Subject, files: list[Path], found: Finished, index: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    model, (served, sequences) = steered.load(subject.model), found.sequences(index)
    early, late = map(steered.direction, files)
    states, tokens = [], []
    for own, ids in zip(served, sequences, strict=True):
        fed = torch.arange(len(ids) - 1)
        prompt = len(ids) - found.phase(index)["outputs"][len(states)]["tokens"].__len__()
        within, behind = opened(subject, own, prompt)
        changes: dict[int, steered.Change] = {}
        if within is not None:
            changes[LATE] = steered.add(late, 0.4, fed >= within)
        if behind is not None:
            changes[EARLY] = steered.ablate(early, 1.0, fed >= behind)
        one = steered.states(model, subject.probes, ids, changes)
        states.append(one[0])
        tokens.append(one[1])
    return states, tokens


def test_gates_open_at_their_token_and_steer_from_there_on(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    served, sequences = finished.sequences(0)
    states, tokens = expected(subject, files, finished, 0)
    assert worst_difference(served, states) < TOLERANCE
    lengths = [len(prompt) for prompt in prompts(1)]
    for ids, prompt, following in zip(sequences, lengths, tokens, strict=True):
        assert ids[prompt:].tolist() == following[prompt - 1 :].tolist()
    found = [opened(subject, own, prompt) for own, prompt in zip(served, lengths, strict=True)]
    for gate in (0, 1):
        at = {one[gate] - prompt for one, prompt in zip(found, lengths, strict=True) if one[gate] is not None}
        assert len(at) > 2, "the gates should open at several places"
    assert any(one[0] is None for one in found) or any(one[1] is None for one in found)


def test_a_request_that_is_preempted_is_steered_again_from_the_same_token_on(
    crowded: Finished, subject: Subject, files: list[Path]
) -> None:
    assert total(crowded.phase(1)["metrics"], "vllm:num_preemptions_total") >= 5
    for index, asked in enumerate((prompts(1), prompts(2))):
        served, sequences = crowded.sequences(index)
        states, tokens = expected(subject, files, crowded, index)
        assert worst_difference(served, states) < TOLERANCE
        for ids, prompt, following in zip(sequences, asked, tokens, strict=True):
            assert ids[len(prompt) :].tolist() == following[len(prompt) - 1 :].tolist()
    check_reconciled(crowded.phase(1)["metrics"], 32, ["within", "cosine"])


def test_steered_tokens_are_counted(finished: Finished, subject: Subject) -> None:
    served, _ = finished.sequences(0)
    rows = {"late": 0, "early": 0}
    for own, prompt in zip(served, map(len, prompts(1)), strict=True):
        for vector, first in zip(rows, opened(subject, own, prompt), strict=True):
            rows[vector] += 0 if first is None else max(0, len(own) - first)
    counters = finished.phase(0)["metrics"]
    for vector, n in rows.items():
        assert total(counters, "probewatch_steered_tokens_total", vector=vector) == n
    check_reconciled(counters, 16, ["within", "cosine"])
    assert finished.phase(0)["last_error"] is None


def test_what_a_gate_has_steered_is_not_read_from_the_prefix_cache(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    served, _ = finished.sequences(1)
    states, _ = expected(subject, files, finished, 1)
    assert worst_difference(served, states) < TOLERANCE
    assert any(output["cached"] for output in finished.phase(1)["outputs"])


def test_without_it_steering_leaks_into_the_next_turn(
    finished: Finished, subject: Subject, files: list[Path]
) -> None:
    served, _ = finished.sequences(3)
    states, _ = expected(subject, files, finished, 3)
    assert worst_difference(served, states) > LEAK
