"""Small artifacts with random tensors, for tests: the fake beside the real thing.

path = write_artifact(tmp_path / "fake.safetensors", layers=(1,), d_model=64, threshold=0.5)
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes import artifact, dataset, kinds, manifest
from probes.collection import (
    CONVERSATIONS,
    Collection,
    Shard,
    Span,
    kept_range,
    write_manifest,
    write_shard,
)
from probes.dataset import Conversation
from probes.identity import ModelIdentity
from probes.manifest import ProbeManifest, Quantiles, TokenMask
from probes.method import PARAMETERS, Aggregation, Member

BENIGN = Quantiles(
    probabilities=tuple(i / 100 for i in range(101)), values=tuple(i / 10 - 5 for i in range(101))
)
"""Statistics spread evenly over -5 .. 5."""


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
    fields.update(changes)
    if "aggregation" not in changes:
        known = kinds.KINDS.get((str(fields["kind"]), str(fields.get("scoring", "logit"))))
        methods = (
            {"members"} if fields["kind"] == "ensemble" else {"mean"} if known is None else known.aggregations
        )
        fields["aggregation"] = fake_aggregation(
            "mean" if "mean" in methods else min(methods), layers=fields["layers"]
        )
    return manifest.build(fields)


def fake_aggregation(method: str, layers: object = (1, 2), **changes: object) -> Aggregation:
    """A valid aggregation by `method` with `changes`; the members of an ensemble, on `layers`, are two."""
    fields: dict[str, Any] = {
        "alpha": 0.3,
        "reference": 0.25,
        "temperature": 2.0,
        "window": 3,
        "heads": "max_then_sum",
        "belief_tokens": 2,
        "members": _fake_members(layers) if method == "members" else None,
    }
    own = {name: value for name, value in fields.items() if method in PARAMETERS[name]}
    return Aggregation.model_validate(
        {"method": method, "min_tokens": 3 if method == "gap" else 1, **own, **changes}
    )


def _fake_members(layers: object) -> tuple[Member, ...]:
    return (
        fake_member("logistic", layers=layers, weight=0.5),
        fake_member(
            "attention", layers=layers, weight=-2.0, states=6, aggregation=Aggregation(method="attention")
        ),
    )


def fake_member(kind: str, **changes: object) -> Member:
    """A member of an ensemble that reads layers 1 and 2, with `changes`."""
    fields: dict[str, Any] = {"layers": (1, 2), "states": 1, "weight": 1.0, "aggregation": Aggregation()}
    return Member.model_validate({"kind": kind, **fields, **changes})


def fake_tensors(found: ProbeManifest, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors that fit a manifest, with three golden tokens and their scores."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"L": len(found.layers), "d": found.d_model}
    kind = kinds.of(found)
    own = {}
    for name, shape in kind.shapes.items():
        wanted = [sizes.get(s, 3) if isinstance(s, str) else s for s in shape]
        drawn = torch.randn(wanted, generator=generator)
        plain = name.rpartition(".")[2]
        if plain in ("epsilon", "threshold"):
            drawn = drawn.abs()
        own[name] = drawn.sort().values if plain == "cuts" else drawn
    inputs = torch.randn(3, len(found.layers), found.d_model, generator=generator)
    return {**own, **kinds.golden(kind, own, inputs)}


def write_artifact(path: Path, seed: int = 0, **changes: object) -> Path:
    """Write a fake artifact with `changes` to its manifest; returns its path."""
    found = fake_manifest(**changes)
    artifact.write(path, found, fake_tensors(found, seed))
    return path


def write_collection(
    folder: Path,
    conversations: Sequence[Conversation],
    hidden: Sequence[Tensor],
    prompt_lengths: Sequence[int],
    layers: Sequence[int],
    *,
    kept: TokenMask | None = None,
    per_shard: int = 4,
    identity: ModelIdentity | None = None,
) -> Collection:
    """Write what `probewatch collect` would leave, of `hidden` [T, L, d] a conversation, `per_shard` in each file."""
    kept = kept or TokenMask(prompt="all")
    d_model, dtype = hidden[0].shape[2], hidden[0].dtype
    model = identity or ModelIdentity("fake", "0" * 64, None, None, d_model, max(layers) + 2)
    starts = range(0, len(hidden), per_shard)
    shards = []
    for index, start in enumerate(starts):
        spans, rows = [], []
        for i in range(start, min(start + per_shard, len(hidden))):
            there = kept_range(kept, prompt_lengths[i], len(hidden[i]))
            rows.append(hidden[i][there.start : there.stop])
            spans.append(
                Span(
                    id=conversations[i].id,
                    first=there.start,
                    prompt_length=prompt_lengths[i],
                    rows=len(there),
                )
            )
        found = Shard(index=index, sha256="0" * 64, spans=tuple(spans))
        digest = write_shard(folder / found.file, layers, torch.cat(rows).transpose(0, 1))
        shards.append(found.model_copy(update={"sha256": digest}))
    dataset.write(folder / CONVERSATIONS, conversations)
    collection = Collection(
        **model.__dict__,
        layers=tuple(layers),
        dtype=str(dtype).removeprefix("torch."),
        kept=kept,
        data_digest=dataset.digest(conversations),
        n_shards=len(starts),
        shards=tuple(shards),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    write_manifest(folder, collection)
    return collection
