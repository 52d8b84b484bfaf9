"""``make bench-full``: one axis at a time, each beside its own noise floor: ``python -m bench.full``.

Each part is a run of ``python -m bench``; a part has as many engines as fit into the memory of a small machine at
once. Concurrency goes up to 256, prompts up to 8000 tokens (at most 4 of them at once). Options that are not listed
here go to ``python -m bench``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from bench.arms import able

_SHORT = ["32x64+64"]
_CONCURRENCY = [f"{n}x64+32" for n in (1, 8, 64, 256)]
_PROMPTS = ["32x128+32", "8x1024+32", "4x4000+16", "2x8000+16"]
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "doing-nothing": (["installed", "idle"], _SHORT),
    "probes": (["1 probe", "8 probes", "64 probes", "idle wide", "1000 probes"], _SHORT),
    "layers": (["8 probes one layer", "8 probes", "8 probes all layers"], _SHORT),
    "prompt": (["8 probes", "8 probes prompt"], ["32x64+64", "4x2000+16"]),
    "steering": (["vector loaded", "steered", "gated"], _SHORT),
    "concurrency": (["8 probes", "1000 probes"], _CONCURRENCY),
    "prompt-length": (["8 probes", "8 probes all layers"], _PROMPTS),
    "peers": (["vllm-lens", "vllm-lens one layer"], _SHORT),
}
"""Arms and loads of each axis."""
STARTS = ("--starts", "10", "--rounds", "2")
"""As many as most parts have time for."""


def main() -> int:
    """Runs the parts and prints what each of them prints. Status 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.full", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60.0, help="for each part, at most")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="JSON and pictures")
    args, rest = parser.parse_known_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.parts:
        arms, loads = PARTS[name]
        print(f"\n## {name}", flush=True)
        if not (arms := able(arms)):
            continue
        begun = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "bench",
            "--minutes",
            str(args.minutes),
            *STARTS,
            "--arms",
            *arms,
            "--loads",
            *loads,
        ]
        outputs = ["--json", f"{args.folder / name}.json", "--picture", f"{args.folder / name}.png"]
        if subprocess.run([*command, *outputs, *rest], check=False).returncode:
            failed.append(name)
        print(f"({(time.monotonic() - begun) / 60:.1f} minutes)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
