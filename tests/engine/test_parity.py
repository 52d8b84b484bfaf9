"""The score of every token, on the compiled path, against Hugging Face; and nobody gets another's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Finished, Runner, Subject, make_subject
from machine import TOLERANCE
from reference import check_reconciled, reference_states, total, worst_difference
from traffic import mixed

REQUESTS = 240
NAMES = ["one-layer", "two-layers", "projection", "cosine"]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gpt2", "opt"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp(request.param), request.param, "float32")


@pytest.fixture(scope="module")
def finished(subject: Subject, run_engine: Runner) -> Finished:
    phases = [mixed(REQUESTS, seed=1), {**mixed(40, seed=2), "sabotage": "failing_bookkeeping"}]
    done = run_engine(subject.model, subject.probes, phases, engine={"dtype": "float32"})
    assert done.status == 0, done.log[-4000:]
    return done


def pairs(finished: Finished, subject: Subject, phase: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(served states, reference states) of every request."""
    served, ids = finished.sequences(phase)
    return served, reference_states(subject.model, subject.probes, ids)


def test_every_token_matches_hugging_face(finished: Finished, subject: Subject) -> None:
    assert worst_difference(*pairs(finished, subject, 0)) < TOLERANCE


def test_no_request_gets_the_scores_of_another(finished: Finished, subject: Subject) -> None:
    served, references = pairs(finished, subject, 0)
    last_served = np.array([s[-1] for s in served])
    last_reference = np.array([r[-1] for r in references])
    nearest = np.abs(last_served[:, None] - last_reference[None]).sum(axis=-1).argmin(axis=1)
    assert (nearest == np.arange(len(served))).all()


def test_the_prefix_cache_and_chunked_prefill_were_really_in_play(finished: Finished) -> None:
    outputs = finished.phase(0)["outputs"]
    assert sum(output["cached"] or 0 for output in outputs) > 1000
    counters = finished.phase(0)["metrics"]
    hits = next(v for k, v in counters.items() if k.startswith("vllm:prefix_cache_hits_total"))
    assert hits > 1000


@pytest.mark.parametrize("phase", [0, 1])
def test_coverage_reconciles_with_vllms_own_counters(finished: Finished, phase: int) -> None:
    sequences = sum(len(finished.phase(i)["outputs"]) for i in range(phase + 1))
    lost = check_reconciled(finished.phase(phase)["metrics"], sequences, NAMES)
    assert [unscored == 0 for unscored in lost.values()] == [phase == 0] * len(NAMES)


def test_an_error_in_the_monitor_fails_no_request_and_is_counted(
    finished: Finished, subject: Subject
) -> None:
    sabotaged = finished.phase(1)
    wanted = mixed(40, seed=2)["max_tokens"]
    assert [len(output["tokens"]) for output in sabotaged["outputs"]] == wanted
    counters = sabotaged["metrics"]
    assert total(counters, "probewatch_errors_total", stage="worker") == 1
    lost = total(counters, "probewatch_tokens_unscored_total", probe="one-layer", reason="not_delivered")
    assert lost > 0
    served, references = pairs(finished, subject, 1)
    for states, reference in zip(served, references, strict=True):
        known = np.isfinite(states)
        assert np.allclose(states[known], reference[known], rtol=1e-3, atol=1e-3)
    assert sabotaged["still_running"] == 0


def test_the_verdict_rides_on_the_request_output(finished: Finished) -> None:
    for output in finished.phase(0)["outputs"]:
        verdict = output["verdict"]
        assert verdict["verdict"] in ("ok", "flagged", "unscored")
        assert set(verdict["probes"]) == set(NAMES)
        assert verdict["coverage"]["prompt"] == 1.0


def test_bfloat16_stays_within_its_tolerance(run_engine: Runner, tmp_path: Any) -> None:
    subject = make_subject(tmp_path, "llama", "bfloat16")
    done = run_engine(subject.model, subject.probes, [mixed(REQUESTS, seed=3)], engine={"dtype": "bfloat16"})
    assert done.status == 0, done.log[-4000:]
    served, references = pairs(done, subject, 0)
    relative = np.abs(np.concatenate(served) - np.concatenate(references))
    relative /= np.concatenate(references).std(axis=0)
    assert np.median(relative) < 0.015
    assert np.percentile(relative, 99) < 0.05
