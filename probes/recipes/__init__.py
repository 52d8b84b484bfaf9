"""Ready recipes: conversations written for a concept, and how to fit a probe to them.

probewatch train --recipe sycophancy --model ./model -o sycophancy.safetensors
probewatch recipes sycophancy -o sycophancy.jsonl      # the data, for `probewatch collect`
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from probes.errors import DataError
from probes.recipes import (
    being_tested,
    confidence,
    defection,
    emotions,
    harmful_request,
    honesty,
    refusal,
    sycophancy,
)
from probes.recipes.recipe import Recipe, card

__all__ = ["RECIPES", "Recipe", "card", "lookup"]

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            honesty.RECIPE,
            defection.RECIPE,
            refusal.RECIPE,
            sycophancy.RECIPE,
            confidence.RECIPE,
            being_tested.RECIPE,
            harmful_request.RECIPE,
            *emotions.RECIPES,
        )
    }
)


def lookup(name: str) -> Recipe:
    """The recipe of that name; `DataError` with the known ones."""
    if name not in RECIPES:
        raise DataError(f"recipe {name!r} is unknown; use one of: {', '.join(RECIPES)}")
    return RECIPES[name]
