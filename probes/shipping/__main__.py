"""Rebuild the shipped probes and the honesty vector: `python -m probes.shipping`."""

import argparse
import sys
import time
from pathlib import Path

import torch

from probes import Probe, ProbeError, hf
from probes.organism import model_dir
from probes.organism.recipe import read_origin
from probes.shipping.build import Bench, build
from probes.shipping.recipes import RECIPES
from probes.shipping.steer import build_honesty
from probes.shipping.traffic import collect

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a step failed."""
    parser = argparse.ArgumentParser(prog="python -m probes.shipping", description=__doc__)
    parser.add_argument(
        "--model", type=Path, default=model_dir(), help="model directory (default: the shipped organism)"
    )
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="gets probes/ and vectors/ (default: probes/shipped)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the conversations, for a quick trial"
    )
    options = parser.parse_args(arguments)
    start = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {what}", flush=True)

    torch.manual_seed(options.seed)
    try:
        loaded = hf.load(options.model)
        liar = read_origin(options.model).recipe.variant
        traffic = collect(loaded, seed=options.seed, scale=options.scale, liar=liar)
        counts = {name: len(samples) for name, samples in vars(traffic).items()}
        say(f"conversations: {counts}; lies among those to fit: {sum(s.lied for s in traffic.fit)}")
        rounded = hf.load(options.model, dtype=torch.bfloat16)
        bench = Bench(loaded, hf.randomised(loaded, options.seed), rounded, traffic, options.seed, liar)
        built: dict[str, Probe] = {}
        for recipe in RECIPES:
            built[recipe.name] = build(bench, recipe, built, options.out / "probes")
            say(f"{recipe.name}: {options.out / 'probes' / recipe.name}.md")
        for vector in build_honesty(bench, options.out / "vectors"):
            say(f"{vector.manifest.name}: {options.out / 'vectors' / vector.manifest.name}.md")
    except ProbeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
