"""The residual rule of every listed architecture, by parity with Hugging Face on random weights.

The main five are in test_parity.py, compiled and under heavier traffic; here the block's arithmetic is what counts, so
the engines run eagerly.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from conftest import Runner, make_subject
from machine import TOLERANCE
from reference import reference_states, worst_difference
from traffic import mixed

ELSEWHERE = ("llama", "qwen2", "qwen3", "gpt2", "opt")


@pytest.mark.parametrize("model_type", [name for name in tiny.CONFIGURATIONS if name not in ELSEWHERE])
def test_scores_match_hugging_face(model_type: str, run_engine: Runner, tmp_path: Path) -> None:
    subject = make_subject(tmp_path, model_type, "float32")
    engine = {"dtype": "float32", "enforce_eager": True}
    done = run_engine(subject.model, subject.probes, [mixed(20, seed=8)], engine=engine)
    assert done.status == 0, done.log[-3000:]
    served, ids = done.sequences(0)
    assert worst_difference(served, reference_states(subject.model, subject.probes, ids)) < TOLERANCE
