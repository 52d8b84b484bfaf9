"""Tensor and pipeline parallelism: one score a token, whichever rank computed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Runner, Subject, make_subject
from machine import ON_GPU, TOLERANCE
from reference import check_reconciled, reference_states, worst_difference
from traffic import mixed

TENSOR, PIPELINE = {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}
SETTINGS = [("tensor", TENSOR, 3), ("pipeline", PIPELINE, 4), ("pipeline, sums alone", PIPELINE, 3)]
"""Name, engine arguments, and how many of the probes: without the last every state is a sum over layers."""


@pytest.mark.parametrize(("name", "parallel", "probes"), SETTINGS, ids=[name for name, _, _ in SETTINGS])
def test_two_ranks_give_each_token_its_one_score(
    name: str, parallel: dict[str, Any], probes: int, run_engine: Runner, tmp_path: Path
) -> None:
    whole = make_subject(tmp_path, "llama", "float32")
    subject = Subject(whole.model, whole.probes[:probes])
    done = run_engine(
        subject.model,
        subject.probes,
        [mixed(120, seed=4)],
        engine={"dtype": "float32", **parallel},
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    )
    assert done.status == 0, done.log[-4000:]
    served, ids = done.sequences(0)
    assert len(served) == 120
    assert worst_difference(served, reference_states(subject.model, subject.probes, ids)) < TOLERANCE
    lost = check_reconciled(done.phase(0)["metrics"], len(served), [path.stem for path in subject.probes])
    assert set(lost.values()) == {0.0}
    if not ON_GPU:  # its runner sends none
        assert (done.phase(0)["raw_messages"] > 10) == (probes == 3)
