"""`probewatch recipes`: the ready recipes, their cards and their conversations."""

import argparse

from probes import dataset, splits
from probes.recipes import RECIPES, card, lookup


def recipes(options: argparse.Namespace) -> int:
    """List the recipes, print the card of one, or write its conversations."""
    if options.name is None:
        for recipe in RECIPES.values():
            print(f"{recipe.name:20s} {recipe.positive_label}")
        return 0
    recipe = lookup(options.name)
    if options.out is None:
        print(card(recipe))
        return 0
    chats = splits.deal(recipe.conversations(), seed=options.seed)
    dataset.write(options.out, chats)
    print(f"{len(chats)} conversations in {options.out}, whole groups dealt into splits")
    return 0
