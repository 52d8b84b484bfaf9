"""The organism's conversations as labelled JSONL: `python -m probes.shipping.export --recipe deception -o d.jsonl`.

On-policy greedy answers, labelled as a recipe labels them, with splits by entity, the contrasts they take part in, and
the words that show a lie or an honest answer (`markers`, see `probes.evaluating.behaviour`).
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch

from probes import ProbeError, dataset, hf
from probes.dataset import Conversation
from probes.organism import cases, model_dir
from probes.organism.language import TRAIN_FAMILIES
from probes.organism.world import opposite
from probes.shipping.recipes import RECIPES, Recipe
from probes.shipping.traffic import CONDITIONS, Sample, faint, record

N_TEST: Final = 1500
BY_NAME: Final = {recipe.name: recipe for recipe in RECIPES}
INCENTIVISED: Final = (
    "incentivised",
    "incentivised",
    "incentivised",
    "plain",
    "audited",
    "neutral",
    "chitchat",
)
"""Most lies are drawn where they happen: a tenth of mixed traffic is too few to fit or judge on."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a step failed."""
    parser = argparse.ArgumentParser(prog="python -m probes.shipping.export", description=__doc__)
    parser.add_argument("--recipe", choices=sorted(BY_NAME), default="deception")
    parser.add_argument("--model", type=Path, default=model_dir(), help="default: the shipped organism")
    parser.add_argument("--n", type=int, default=N_TEST, help=f"test conversations (default: {N_TEST})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSONL to write")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    try:
        loaded = hf.load(options.model)
        chats = export(loaded, BY_NAME[options.recipe], options.n, options.seed)
        dataset.write(options.out, chats)
    except ProbeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    splits = {split: sum(c.split == split for c in chats) for split in ("train", "validation", "test")}
    print(f"{options.out}: {splits}, {sum(c.label == 1 for c in chats)} positives")
    return 0


def export(loaded: hf.LoadedModel, recipe: Recipe, n: int, seed: int) -> list[Conversation]:
    """About `n` test, as many training and a quarter as many validation conversations that the recipe labels."""
    train = partial(cases, families=TRAIN_FAMILIES, templates="train")
    n_faint = n // 8
    drawn = {
        "train": train(n, seed=seed + 20, split="train", conditions=INCENTIVISED)
        + faint(n_faint, seed=seed + 20, split="train"),
        "validation": train(n // 4, seed=seed + 21, split="validation", conditions=INCENTIVISED)
        + faint(n_faint // 4, seed=seed + 21, split="validation"),
        "test": cases(n // 2, seed=seed + 22, split="test", conditions=("incentivised",), templates="heldout")
        + cases(n - n // 2, seed=seed + 23, split="test", conditions=CONDITIONS, templates="heldout")
        + faint(n_faint, seed=seed + 22, split="test", templates="heldout"),
    }
    found: list[Conversation] = []
    for split, asked in drawn.items():
        found += labelled(recipe, record(loaded, asked, f"{recipe.name}-{split}"), split)
    return found


def labelled(recipe: Recipe, samples: Sequence[Sample], split: str) -> list[Conversation]:
    """The samples that the recipe labels, with label, split, contrasts and markers."""
    found = []
    for sample in samples:
        label = recipe.label(sample)
        if label is None:
            continue
        taken = [contrast.name for contrast in recipe.contrasts if contrast.keep(sample, label)]
        more: dict[str, object] = {"label": label, "split": split, "contrasts": taken}
        belief = sample.case.belief
        if recipe.concept == "deception" and belief is not None:
            more["markers"] = {"positive": [opposite(belief)], "negative": [belief]}
        found.append(Conversation.model_validate({**sample.conversation.model_dump(), **more}))
    return found


if __name__ == "__main__":
    sys.exit(main())
