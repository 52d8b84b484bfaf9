"""Tensor and pipeline parallelism: one score a token, whichever rank computed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Runner, make_subject
from machine import TOLERANCE
from reference import check_reconciled, reference_states, worst_difference
from traffic import mixed

NAMES = ["one-layer", "two-layers", "projection", "cosine"]
SETTINGS = [("tensor", {"tensor_parallel_size": 2}), ("pipeline", {"pipeline_parallel_size": 2})]


@pytest.mark.parametrize(("name", "parallel"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_two_ranks_give_each_token_its_one_score(
    name: str, parallel: dict[str, Any], run_engine: Runner, tmp_path: Path
) -> None:
    subject = make_subject(tmp_path, "llama", "float32")
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
    lost = check_reconciled(done.phase(0)["metrics"], len(served), NAMES)
    assert set(lost.values()) == {0.0}
