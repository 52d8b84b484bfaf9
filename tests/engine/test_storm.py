"""The storm, in its short form: every token scored once, for the right request, whatever vLLM does with it."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Finished, Runner, Subject, make_subject
from machine import ON_GPU, TOLERANCE
from reference import check_reconciled, reference_states, total, worst_difference
from storm import ENGINE, SPECULATIVE


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("storm"), "llama", "float32")


WAYS: list[tuple[str, dict[str, Any], int]] = [
    ("plain", {}, 4),
    ("speculative", {"speculative_config": SPECULATIVE}, 4),
    ("sums alone", {}, 3),
]
"""Name, engine arguments, and how many of the probes: without the last every state is a sum over layers."""


@pytest.fixture(scope="module", params=WAYS, ids=[name for name, _, _ in WAYS])
def way(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], int]:
    found: tuple[str, dict[str, Any], int] = request.param
    return found


@pytest.fixture(scope="module")
def subject(way: tuple[str, dict[str, Any], int], whole: Subject) -> Subject:
    return Subject(whole.model, whole.probes[: way[2]])


@pytest.fixture(scope="module")
def finished(
    way: tuple[str, dict[str, Any], int], request: pytest.FixtureRequest, subject: Subject, run_engine: Runner
) -> Finished:
    engine: dict[str, Any] = {**ENGINE, **way[1]}
    requests = request.config.getoption("--storm-requests")
    phases = [{"storm": {"seed": 11, "requests": requests}}]
    done = run_engine(subject.model, subject.probes, phases, engine=engine)
    assert done.status == 0, done.log[-4000:]
    return done


def test_every_token_has_the_score_of_its_own_sequence(
    finished: Finished, subject: Subject, way: tuple[str, dict[str, Any], int], request: pytest.FixtureRequest
) -> None:
    served, ids = finished.sequences(0)
    tokens = sum(map(len, served))
    assert tokens > 75 * request.config.getoption("--storm-requests")
    worst = worst_difference(served, reference_states(subject.model, subject.probes, ids))
    print(f"\n{way[0]}: {_figures(finished.phase(0), len(served), tokens)}, worst {worst:.1e}")
    assert worst < TOLERANCE


def _figures(phase: dict[str, Any], sequences: int, tokens: int) -> str:
    names = {
        "preemptions": "vllm:num_preemptions_total",
        "tokens from the prefix cache": "vllm:prefix_cache_hits_total",
        "drafts": "vllm:spec_decode_num_draft_tokens_total",
        "accepted": "vllm:spec_decode_num_accepted_tokens_total",
    }
    counted = ", ".join(f"{total(phase['metrics'], name):.0f} {what}" for what, name in names.items())
    return f"{sequences} sequences, {tokens} tokens scored, {phase['happened']['aborted']} aborts, {counted}"


def test_counters_reconcile_and_nothing_is_left(finished: Finished, subject: Subject) -> None:
    phase = finished.phase(0)
    served, _ = finished.sequences(0)
    lost = check_reconciled(phase["metrics"], len(served), [path.stem for path in subject.probes])
    assert set(lost.values()) == {0.0}
    assert total(phase["metrics"], "probewatch_tokens_seen_total") == sum(map(len, served))
    assert phase["still_running"] == 0
    assert phase["last_error"] is None


def test_the_storm_was_one(finished: Finished, way: tuple[str, dict[str, Any], int]) -> None:
    phase = finished.phase(0)
    assert phase["happened"]["aborted"] > 10
    assert phase["happened"]["several answers"] > 10
    assert total(phase["metrics"], "vllm:num_preemptions_total") > 10
    assert total(phase["metrics"], "vllm:prefix_cache_hits_total") > 1000
    if not ON_GPU:  # its runner sends none
        assert (phase["raw_messages"] > 100) == (way[0] == "sums alone")
    if way[0] == "speculative":
        drafted = total(phase["metrics"], "vllm:spec_decode_num_draft_tokens_total")
        accepted = total(phase["metrics"], "vllm:spec_decode_num_accepted_tokens_total")
        assert 100 < accepted < drafted - 100
