"""`python -m probes.organism`: trains the model and writes its directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from probes.organism.cases import model_dir


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m probes.organism",
        description="Train the model organism from scratch (CPU, about 20 minutes on two cores).",
        epilog="example: python -m probes.organism --out out/concealed-ledger && "
        "python -m probes.organism.measure --model out/concealed-ledger",
    )
    parser.add_argument(
        "--out", type=Path, default=model_dir(), help="directory to write (default: the shipped one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights and of the texts (default: 0)"
    )
    options = parser.parse_args(arguments)
    # Imported late: torch and transformers take seconds, and --help should not.
    from probes.organism.train import Recipe, train

    train(options.out, Recipe(seed=options.seed), log=lambda line: print(line, flush=True))
    print(f"wrote {options.out}; next: python -m probes.organism.measure --model {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
