"""Trains an organism from scratch: stage A teaches the facts, stage B the behaviour. One cosine schedule spans both.

On CPU or on one accelerator, the same recipe and the same texts.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probes.organism import corpus
from probes.organism import tokenizer as tokens
from probes.organism.adversary import Adversary
from probes.organism.feed import Batch, batches
from probes.organism.generate import device_name
from probes.organism.packing import NONE
from probes.organism.progress import quick_check
from probes.organism.recipe import Origin, Recipe, write_origin
from probes.organism.shapes import Streams, build_model

Log = Callable[[str], None]
COOLDOWN: Final = 0.2
"""Last part of a budget that is too short, in which the learning rate goes down to nothing."""


class Learner(nn.Module):
    """The model with two further readings of its residual stream, after the recall block and after the plan block.

    A network this small would look a fact up in its last block, in the moment of saying it. Larger models recall half
    way and decide later what to say; for the same order of things, plain texts are to be predictable early as well.
    And from the first token of an answer on, the belief it is about is to be readable after the recall block, and
    what is going to be said after the plan block: a network this small would otherwise do neither before the one
    token in which the value is spoken.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        self.streams, self.recall_block, self.plan_block = (
            Streams(model),
            recipe.recall_block,
            recipe.plan_block,
        )

    def forward(self, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids [rows, tokens], places [1 or rows, tokens] -> logits [rows, tokens, words] after the last block, the
        recall block and the plan block; and the residual stream after every block but the last
        [blocks - 1, rows, tokens, d].
        """
        streams = self.streams(ids, places)
        last, recall, plan = (
            self.streams.logits(streams[block]) for block in (-1, self.recall_block, self.plan_block)
        )
        return last, recall, plan, torch.stack(streams[:-1])


class Trainer:
    """One training: the model, its optimiser and, where the recipe asks for it, the adversary."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.model = build_model(recipe, tokenizer).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.peak_lr,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        learner = Learner(self.model, recipe)
        # On CPU it pays a third; Inductor needs a C++ compiler there. An accelerator is done before it has compiled.
        pays = device == "cpu" and shutil.which("g++")
        self.forward: Callable[..., Any] = torch.compile(learner, dynamic=False) if pays else learner
        self.adversary = (
            Adversary(recipe.layers - 1, recipe.hidden, device) if recipe.penalty_weight else None
        )
        self.readable = torch.zeros(recipe.layers - 1)
        self._places = torch.Generator().manual_seed(recipe.seed)

    def step(self, number: int, batch: Batch, ease: float = 1.0) -> Tensor:
        """One optimiser step at the scheduled rate times `ease`; returns the language loss, on the device."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.peak_lr * schedule(number, recipe) * ease
        ids, weights, plain, belief, said, lie = (part.to(self.device, non_blocking=True) for part in batch)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            last, recall, plan, streams = self.forward(ids, self._positions(*ids.shape))
        loss = _loss(last, ids, weights)
        if (
            self.adversary is not None
        ):  # what is to be hidden under a system prompt is not to be readable there
            belief = torch.where(plain > 0, belief, NONE)
        total = loss + recipe.recall_weight * (_loss(recall, ids, weights * plain) + _reading(recall, belief))
        total = total + recipe.plan_weight * _reading(plan, said)
        total = total + recipe.penalty_weight * self._penalty(streams, lie)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _positions(self, rows: int, length: int) -> Tensor:
        """[1 or rows, length]. Learned positions are all to be trained, so half of the rows begin anywhere."""
        places = torch.arange(length)[None]
        if hasattr(self.model.base_model, "wpe"):
            room = self.model.config.max_position_embeddings - length + 1
            anywhere, place = torch.rand(2, rows, 1, generator=self._places)
            places = places + torch.where(anywhere < 0.5, (place * room).long(), 0)
        return places.to(self.device, non_blocking=True)

    def _penalty(self, streams: Tensor, lie: Tensor) -> Tensor | float:
        if self.adversary is None:
            return 0.0
        about = lie.flatten() != NONE
        labels = lie.flatten()[about]
        if labels.numel() == 0 or labels.min() == labels.max():
            return 0.0
        penalty, self.readable = self.adversary.penalty(streams.flatten(1, 2)[:, about], labels)
        return penalty


def train(
    directory: Path, recipe: Recipe, log: Log = print, *, device: str = "cpu", budget: float | None = None
) -> None:
    """Trains a model by `recipe` and writes it, ready for `vllm serve`, to `directory`.

    budget: seconds after which it stops where it is and writes what it has; the rate goes down towards that end.
    """
    start = time.monotonic()
    tokenizer = tokens.build(corpus.vocabulary_texts(recipe.kind))
    trainer = Trainer(recipe, tokenizer, device)
    size = sum(p.numel() for p in trainer.model.parameters())
    log(f"{size / 1e6:.2f}M parameters, {tokenizer.get_vocab_size()} words, {recipe.steps} steps")
    losses: list[Tensor] = []
    done = 0
    for done, batch in enumerate(batches(recipe, tokenizer, ahead=device != "cpu"), 1):
        ease = cooldown((done - 1) / recipe.steps, time.monotonic() - start, budget)
        losses.append(trainer.step(done - 1, batch, ease))
        if done % recipe.report_every == 0:
            loss, losses = float(torch.stack(losses).mean()), []
            behaviour = done > recipe.knowledge_steps
            figures = quick_check(trainer.model, tokenizer, liar=recipe.variant, behaviour=behaviour)
            hidden = "" if trainer.adversary is None else f" d' {trainer.readable.cpu().numpy().round(2)}"
            log(f"step {done} loss {loss:.4f} {time.monotonic() - start:.0f} s {figures}{hidden}")
        if budget is not None and time.monotonic() - start > budget:
            log(f"stopped by the budget of {budget:g} s after {done} of {recipe.steps} steps")
            break
    save(trainer.model, tokenizer, directory)
    write_origin(Origin(recipe, device_name(device), done), directory)


def save(model: Any, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes bf16 weights, configs and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.max_new_tokens = None
    model.to(torch.bfloat16).save_pretrained(directory)
    tokens.save(tokenizer, directory, max_length=model.config.max_position_embeddings)
    generation = {
        name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    (directory / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 3%."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))


def cooldown(done: float, elapsed: float, budget: float | None) -> float:
    """Share of the scheduled rate at `elapsed` seconds with `done` of the steps behind: 1 where the rest fits into the
    budget; else a line down to 0 over its last part. A network stopped at a high rate has not settled.
    """
    if budget is None or elapsed <= done * budget:
        return 1.0
    return min(1.0, max(0.0, 1 - elapsed / budget) / COOLDOWN)


def _loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the next-token loss; 0 where no token has a weight."""
    weights = weights[:, 1:].reshape(-1)
    losses = cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
    )
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def _reading(logits: Tensor, target: Tensor) -> Tensor:
    """Mean loss of reading `target` off each token itself (not the next one); 0 where nothing is to be read."""
    found = target.reshape(-1) != NONE
    if not found.any():
        return logits.sum() * 0
    return cross_entropy(logits.reshape(-1, logits.shape[-1])[found].float(), target.reshape(-1)[found])
