"""Scores that Hugging Face transformers gives for the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import probes


def reference_states(model: Path, artifacts: list[Path], sequences: list[np.ndarray]) -> list[np.ndarray]:
    """States ``[T, K]`` of every fed token of each sequence (its last token is not fed), in float32."""
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    loaded = [probes.load(path) for path in artifacts]
    states = []
    for ids in sequences:
        with torch.no_grad():
            hidden = found(torch.tensor(ids[None, :-1]), output_hidden_states=True).hidden_states
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
