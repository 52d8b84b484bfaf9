"""Logit-lens words: what a model would say next if it stopped after a given block (nostalgebraist 2020).

Run as a program it answers one question and ends: ``python -m probes.words``, the question as JSON on stdin, the answer
as JSON on stdout. A server asks it that way, so that a replay shares neither interpreter nor memory with serving.
"""

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probes.errors import LayerMismatch, ProbeError
from probes.hf import LoadedModel, load_first_blocks


class Word(NamedTuple):
    """A token of the vocabulary and how likely it is."""

    token_id: int
    probability: float


class Reading(NamedTuple):
    """One block's residual at the last token of a sequence, and the likeliest words it stands for."""

    layer: int
    words: list[Word]
    residual: list[float]
    """[d]"""


@torch.no_grad()
def read_words(loaded: LoadedModel, ids: Sequence[int], layers: Sequence[int], top: int) -> list[Reading]:
    """The residual after each of ``layers`` at the last of ``ids``, and its ``top`` words, likeliest first.

    The words come from the model's own final norm and unembedding, with whatever else it does to its logits. Raises
    ``LayerMismatch`` for a block that was not loaded.
    """
    blocks = loaded.blocks()
    if wrong := [layer for layer in layers if not 0 <= layer < len(blocks)]:
        raise LayerMismatch(f"layer {wrong[0]} is asked for, blocks 0 to {len(blocks) - 1} are loaded")
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[Tensor], Tensor]:
        def look(stream: Tensor) -> Tensor:
            found[layer] = stream[0, -1].clone()
            return stream

        return look

    with contextlib.ExitStack() as stack:
        for layer in set(layers):
            stack.enter_context(_behind(blocks[layer], keep(layer)))
        _logits(loaded, [list(ids)])
    residuals = torch.stack([found[layer] for layer in layers])  # [L, d]
    with _behind(blocks[-1], lambda stream: residuals[:, None].to(stream)):
        logits = _logits(loaded, [[int(ids[-1])]] * len(layers))  # [L, V]
    best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        Reading(
            layer,
            [
                Word(token, probability)
                for token, probability in zip(tokens.tolist(), shares.tolist(), strict=True)
            ],
            residual.float().tolist(),
        )
        for layer, tokens, shares, residual in zip(layers, best.indices, best.values, residuals, strict=True)
    ]


def _logits(loaded: LoadedModel, rows: list[list[int]]) -> Tensor:
    """[B, V] of the last tokens."""
    ids = torch.tensor(rows, device=loaded.device)
    out = loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    logits: Tensor = out.logits[:, -1]
    return logits


@contextlib.contextmanager
def _behind(block: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Meanwhile what leaves the block is what ``change`` makes of it."""

    def changed(_module: object, _inputs: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = block.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """``{"model", "ids", "layers", "top"}`` to ``{"readings": [...]}``, or ``{"trouble": line}``."""
    try:
        loaded = load_first_blocks(Path(question["model"]), max(question["layers"]) + 1)
        readings = read_words(loaded, question["ids"], question["layers"], question["top"])
        if not all(math.isfinite(number) for one in readings for number in one.residual):
            raise ValueError("its residual stream is not finite here")
    except (ProbeError, RuntimeError, ValueError, IndexError) as error:  # torch's: no memory, an id too large
        return {"trouble": " ".join(str(error).split())[:300]}
    return {
        "readings": [{**one._asdict(), "words": [word._asdict() for word in one.words]} for one in readings]
    }


def main() -> None:
    """One question; it never outlives the time it was given. Stdout has the answer and nothing that a library says."""
    question = json.load(sys.stdin)
    sys.stdin.close()  # whoever asks something here is not waited for
    signal.alarm(int(question["seconds"]))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 4))
    with contextlib.redirect_stdout(sys.stderr):
        told = answer(question)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
