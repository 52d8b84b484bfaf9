"""Scores that Hugging Face transformers gives for the same tokens, and vLLM's own counters to reconcile with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import probes


def reference_states(model: Path, artifacts: list[Path], sequences: list[np.ndarray]) -> list[np.ndarray]:
    """States ``[T, K]`` of every fed token of each sequence (its last token is not fed), in float32."""
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return states_of(found, artifacts, sequences)


def states_of(model: Any, artifacts: list[Path], sequences: list[np.ndarray]) -> list[np.ndarray]:
    """As ``reference_states``, of a loaded model."""
    loaded = [probes.load(path) for path in artifacts]
    states = []
    for ids in sequences:
        with torch.no_grad():
            hidden = model(torch.tensor(ids[None, :-1]), output_hidden_states=True).hidden_states
        states.append(
            torch.cat(
                [
                    probe.token_state(torch.stack([hidden[b + 1][0] for b in probe.manifest.layers], dim=1))
                    for probe in loaded
                ],
                dim=1,
            ).numpy()
        )
    return states


def worst_difference(served: list[np.ndarray], references: list[np.ndarray]) -> float:
    """Largest difference of any score from its reference, in standard deviations of that probe's scores.

    A score that is missing on either side counts as infinite; so does a sequence of another length.
    """
    if [s.shape for s in served] != [r.shape for r in references]:
        return float("inf")
    expected = np.concatenate(references)
    difference = np.abs(np.concatenate(served) - expected) / expected.std(axis=0)
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def total(counters: dict[str, Any], name: str, **labels: str) -> float:
    """Sum of a metric's samples whose labels contain ``labels``."""
    wanted = [f'"{key}": {json.dumps(value)}' for key, value in labels.items()]
    return sum(v for k, v in counters.items() if k.startswith(name + "{") and all(w in k for w in wanted))


def check_reconciled(counters: dict[str, Any], sequences: int, names: list[str]) -> dict[str, float]:
    """The rule at the end of the contract, exactly; returns the unscored tokens of each probe.

    ``sequences``: how many have produced output since the engine started.
    """
    seen = {
        phase: total(counters, "probewatch_tokens_seen_total", phase=phase)
        for phase in ("prompt", "generation")
    }
    assert seen["prompt"] == total(counters, "vllm:prompt_tokens_total")
    assert seen["generation"] == total(counters, "vllm:generation_tokens_total") - sequences
    lost = {}
    for name in names:
        for phase, tokens in seen.items():
            scored = total(counters, "probewatch_tokens_scored_total", probe=name, phase=phase)
            unscored = total(counters, "probewatch_tokens_unscored_total", probe=name, phase=phase)
            assert scored + unscored == tokens
            lost[name] = lost.get(name, 0.0) + unscored
    return lost
