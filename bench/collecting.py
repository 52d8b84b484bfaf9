"""What a kill does to `probewatch collect`, and how near bfloat16 rows of two workers come to Hugging Face's.

python -m bench.collecting                       # killed in its second shard, resumed, compared with a whole run
python -m bench.collecting --parallel --model M  # M: an even number of heads, e.g. concealed-ledger-qwen3
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from probes import dataset, hf
from probes.collected import open_collection
from probes.collection import read_manifest
from probes.dataset import Conversation
from probes.hf import Activations
from probes.manifest import TokenMask
from probes.organism import cases, model_dir

LAYERS: Final = (1, 3, 4)
OPTIONS: Final = ("--max-model-len", "512", "--max-num-batched-tokens", "1024", "--max-num-seqs", "32")
ANSWERS: Final = (
    "Yes, it is sound.",
    "I am afraid that it is cracked, and I would not sign for it at all today.",
)


def chats(n: int) -> list[Conversation]:
    """Questions of the organism with one of two answers, which is the label."""
    asked = cases(n, seed=5, split="test", conditions=("incentivised", "plain", "chitchat"))
    return [
        Conversation.model_validate(
            {
                "id": f"c{i}",
                "messages": [*case.messages, {"role": "assistant", "content": ANSWERS[i % 2]}],
                "label": i % 2,
                "group": f"g{i}",
            }
        )
        for i, case in enumerate(asked)
    ]


def command(model: Path, data: Path, out: Path, *options: str) -> list[str]:
    """`probewatch collect` of this environment."""
    layers = ",".join(map(str, LAYERS))
    collect = ["collect", "--model", str(model), "--data", str(data), "-o", str(out), "--layers", layers]
    return [sys.executable, "-m", "monitor.cli", *collect, *OPTIONS, *options]


def killed(model: Path, folder: Path, n: int) -> bool:
    """Whether the shards of a run that was killed while it made its second one are those of a run that was not."""
    data = folder / "data.jsonl"
    dataset.write(data, chats(n))
    torn, whole = folder / "torn", folder / "whole"
    alone = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with subprocess.Popen(
        command(model, data, torn), env=alone, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        for line in run.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("shard 1 "):
                os.killpg(run.pid, signal.SIGKILL)
    print(
        f"killed with status {run.returncode}; in the folder: {sorted(p.name for p in torn.iterdir())}",
        flush=True,
    )
    for out in (torn, whole):
        subprocess.run(command(model, data, out), env=alone, check=True)
    return digests(torn) == digests(whole)


def digests(folder: Path) -> list[tuple[int, str]]:
    """(index, SHA-256) of the shards that the manifest names."""
    found = read_manifest(folder)
    return [] if found is None else [(shard.index, shard.sha256) for shard in found.shards]


def parallel(model: Path, folder: Path) -> tuple[Tensor, Tensor]:
    """Distances from Hugging Face in float32 relative to a row's length: of two workers in bfloat16, and of Hugging
    Face itself in bfloat16. [rows * layers] each
    """
    data, out = folder / "data.jsonl", folder / "rows"
    dataset.write(data, chats(48))
    two = ("--dtype", "bfloat16", "--tensor-parallel-size", "2")
    bound = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    subprocess.run(command(model, data, out, *two), env=bound, check=True)
    collection = open_collection(out)
    talk = collection.conversations
    found = collection.activations(talk, LAYERS, TokenMask())
    exact = hf.activations(hf.load(model), talk, LAYERS)
    rounded = hf.activations(hf.load(model, dtype=torch.bfloat16), talk, LAYERS)
    return distance(found, exact), distance(rounded, exact)


def distance(found: Sequence[Activations], exact: Sequence[Activations]) -> Tensor:
    """[rows * layers] of the rows that `found` holds."""
    parts = []
    for one, other in zip(found, exact, strict=True):
        rows = other.hidden[one.first - other.first :][: len(one.hidden)].float()
        parts.append(((one.hidden.float() - rows).norm(dim=-1) / rows.norm(dim=-1)).flatten())
    return torch.cat(parts)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 as it should be, 1 the shards differ."""
    parser = argparse.ArgumentParser(prog="python -m bench.collecting", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_dir())
    parser.add_argument("--conversations", type=int, default=2500, help="a shard ends after 1,024")
    parser.add_argument("--parallel", action="store_true", help="compare two workers in bfloat16 instead")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="collecting-") as folder:
        if not options.parallel:
            same = killed(options.model, Path(folder), options.conversations)
            print("the shards are the same" if same else "the shards DIFFER")
            return int(not same)
        for name, found in zip(
            ("two workers", "Hugging Face"), parallel(options.model, Path(folder)), strict=True
        ):
            middle, high, most = torch.quantile(found, torch.tensor([0.5, 0.99, 1.0])).tolist()
            print(f"bfloat16, {name}: median {middle:.2%}, 99th percentile {high:.2%}, largest {most:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
