"""Small artifacts with random tensors, for tests: the fake beside the real thing.

path = write_artifact(tmp_path / "fake.safetensors", layers=(1,), d_model=64, threshold=0.5)
"""

from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from probes import artifact, kinds, manifest
from probes.manifest import ProbeManifest


def fake_manifest(**changes: object) -> ProbeManifest:
    """A valid manifest of an unbound logistic probe on layers 1 and 2 of width 4, with `changes`."""
    fields: dict[str, object] = {
        "name": "fake",
        "kind": "logistic",
        "concept": "deception",
        "positive_label": "lie",
        "negative_label": "honest",
        "default_action": "observe",
        "layers": (1, 2),
        "d_model": 4,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "tensors_sha256": "0" * 64,
    }
    return manifest.build({**fields, **changes})


def fake_tensors(found: ProbeManifest, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors that fit a manifest, with three golden tokens and their scores."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"L": len(found.layers), "d": found.d_model}
    kind = kinds.lookup(found.kind, found.scoring)
    own = {
        name: torch.randn([sizes[s] if isinstance(s, str) else s for s in shape], generator=generator)
        for name, shape in kind.shapes.items()
    }
    inputs = torch.randn(3, len(found.layers), found.d_model, generator=generator)
    return {**own, **kinds.golden(kind, own, inputs)}


def write_artifact(path: Path, seed: int = 0, **changes: object) -> Path:
    """Write a fake artifact with `changes` to its manifest; returns its path."""
    found = fake_manifest(**changes)
    artifact.write(path, found, fake_tensors(found, seed))
    return path
