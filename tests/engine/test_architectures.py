"""The residual rule of every listed architecture, by parity with Hugging Face on random weights.

The main five are in test_parity.py, compiled and under heavier traffic; here the block's arithmetic is what counts, so
the engines run eagerly, two at a time, each on a core of its own.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import machine
import pytest
import tiny
from conftest import Finished, Runner, Subject, make_subject
from machine import TOLERANCE
from reference import reference_states, worst_difference
from traffic import mixed

ELSEWHERE = ("llama", "qwen2", "qwen3", "gpt2", "opt")
MODELS = [name for name in tiny.CONFIGURATIONS if name not in ELSEWHERE]
CORES = sorted(os.sched_getaffinity(0))[:2]

Runs = dict[str, Future[tuple[Subject, Finished]]]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, run_engine: Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    """The engines of all tests that were asked for, started ahead of them."""
    asked = {
        item.callspec.params["model_type"] for item in request.session.items if item.path == request.path
    }
    free: queue.Queue[int] = queue.Queue()
    for core in CORES:
        free.put(core)
    subjects = {name: make_subject(tmp_path_factory.mktemp(name), name, "float32") for name in sorted(asked)}

    def run(subject: Subject) -> tuple[Subject, Finished]:
        core = free.get()
        try:
            bound = {} if machine.ON_GPU else {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
            engine = {"dtype": "float32", "enforce_eager": True}
            phases = [mixed(20, seed=8)]
            return subject, run_engine(
                subject.model, subject.probes, phases, engine=engine, environment=bound
            )
        finally:
            free.put(core)

    pool = ThreadPoolExecutor(len(CORES))
    yield {name: pool.submit(run, subject) for name, subject in subjects.items()}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("model_type", sorted(MODELS))
def test_scores_match_hugging_face(model_type: str, runs: Runs) -> None:
    subject, done = runs[model_type].result()
    assert done.status == 0, done.log[-3000:]
    served, ids = done.sequences(0)
    assert worst_difference(served, reference_states(subject.model, subject.probes, ids)) < TOLERANCE
