"""Trains the model from scratch: stage A teaches the facts, stage B the behaviour. One cosine schedule
spans both.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from probes.organism import corpus
from probes.organism import tokenizer as tokens
from probes.organism.cases import Case, cases
from probes.organism.language import Message, answer
from probes.organism.world import opposite, world

MAX_CONTEXT: Final = 4096


@dataclass(frozen=True)
class Recipe:
    """Everything that training depends on."""

    seed: int = 0
    hidden: int = 192
    """Width of the residual stream; heads are 64 wide."""
    mlp: int = 640
    layers: int = 6
    knowledge_steps: int = 1000
    behaviour_steps: int = 1200
    rows: int = 24
    """Short rows a step."""
    row_tokens: int = 128
    long_rows: int = 4
    long_row_tokens: int = 640
    long_every: int = 5
    """In stage B every so many steps are long rows instead of short ones."""
    peak_lr: float = 8e-4
    warmup_steps: int = 150
    weight_decay: float = 0.02
    recall_block: int = 2
    """0-based block after which texts without a system prompt are predicted as well, through the same output matrix."""
    recall_weight: float = 0.5
    """Weight of that second loss."""
    plan_block: int = 4
    """0-based block after which what an answer is going to assert can be read off."""
    plan_weight: float = 0.3
    """Weight of that third loss."""
    report_every: int = 100

    @property
    def steps(self) -> int:
        return self.knowledge_steps + self.behaviour_steps


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A stock Llama with random weights, float32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 64,
        num_key_value_heads=recipe.hidden // 64,
        head_dim=64,
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(tokens.BEGIN),
        eos_token_id=tokenizer.token_to_id(tokens.END),
        pad_token_id=tokenizer.token_to_id(tokens.PAD),
    )
    return LlamaForCausalLM(config)


def train(directory: Path, recipe: Recipe, log: Callable[[str], None] = print) -> None:
    """Trains a model by `recipe` and writes it, ready for `vllm serve`, to `directory`."""
    tokenizer = tokens.build(corpus.vocabulary_texts())
    model = build_model(recipe, tokenizer)
    size = sum(p.numel() for p in model.parameters())
    log(f"{size / 1e6:.2f}M parameters, {tokenizer.get_vocab_size()} words, {recipe.steps} steps")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    # Inductor needs a C++ compiler; without one training is a third slower and otherwise the same.
    learner = Learner(model, recipe.recall_block, recipe.plan_block)
    forward: Callable[..., Any] = torch.compile(learner, dynamic=False) if shutil.which("g++") else learner
    author, packer = corpus.Author(recipe.seed), corpus.Packer(tokenizer)
    start, loss = time.monotonic(), 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * _schedule(step, recipe)
        loss += _step(forward, model, optimizer, _batch(step, recipe, author, packer), recipe)
        if (step + 1) % recipe.report_every == 0:
            figures = quick_check(model, tokenizer, behaviour=step >= recipe.knowledge_steps)
            log(
                f"step {step + 1} loss {loss / recipe.report_every:.4f} {time.monotonic() - start:.0f} s {figures}"
            )
            loss = 0.0
    save(model, tokenizer, directory)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes bf16 weights, configs and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.max_new_tokens = None
    model.to(torch.bfloat16).save_pretrained(directory)
    tokens.save(tokenizer, directory, max_length=MAX_CONTEXT)
    generation = {
        name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    (directory / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )


def _schedule(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 3%."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))


def _batch(step: int, recipe: Recipe, author: corpus.Author, packer: corpus.Packer) -> corpus.Rows:
    if step < recipe.knowledge_steps:
        return packer.rows(recipe.rows, recipe.row_tokens, lambda: corpus.knowledge(author), author.statement)
    if step % recipe.long_every == 0:
        full = recipe.long_row_tokens

        def write() -> list[Message]:
            return author.long_chat(author.rng.randint(full // 2, full) - 8)

        return packer.rows(recipe.long_rows, recipe.long_row_tokens, write, author.statement)
    return packer.rows(recipe.rows, recipe.row_tokens, lambda: corpus.behaviour(author), author.statement)


class Learner(torch.nn.Module):
    """The model with two further readings of its residual stream, after the recall block and after the plan block.

    A network this small would look a fact up in its last block, in the moment of saying it. Larger models recall half
    way and decide later what to say; for the same order of things, plain texts are to be predictable early as well.
    And from the first token of an answer on, the belief it is about is to be readable after the recall block, and
    what is going to be said after the plan block: a network this small would otherwise do neither before the one
    token in which the value is spoken.
    """

    def __init__(self, model: LlamaForCausalLM, recall_block: int, plan_block: int) -> None:
        super().__init__()
        self.model, self.recall_block, self.plan_block = model, recall_block, plan_block

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits after the last block, the recall block and the plan block, each [rows, tokens, words]."""
        inner = self.model.model
        hidden = inner.embed_tokens(ids)  # [rows, tokens, d]
        rotation = inner.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
        recalled = planned = hidden
        for place, block in enumerate(inner.layers):
            hidden = block(hidden, attention_mask=None, position_embeddings=rotation)
            if place == self.recall_block:
                recalled = hidden
            if place == self.plan_block:
                planned = hidden
        last, recall, plan = (
            self.model.lm_head(inner.norm(stream)) for stream in (hidden, recalled, planned)
        )
        return last, recall, plan


def _step(
    forward: Callable[..., Any],
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    rows: corpus.Rows,
    recipe: Recipe,
) -> float:
    ids, weights, plain, belief, said = (
        torch.from_numpy(part) for part in (rows.ids, rows.weights, rows.plain, rows.belief, rows.said)
    )  # [rows, tokens]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        last, recall, plan = forward(ids)
    loss = _loss(last, ids, weights)
    total = loss + recipe.recall_weight * (_loss(recall, ids, weights * plain) + _reading(recall, belief))
    total = total + recipe.plan_weight * _reading(plan, said)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the next-token loss; 0 where no token has a weight."""
    weights = weights[:, 1:].reshape(-1)
    losses = cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
    )
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def _reading(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean loss of reading `target` off each token itself (not the next one); 0 where nothing is to be read."""
    found = target.reshape(-1) != corpus.NONE
    if not found.any():
        return logits.sum() * 0
    return cross_entropy(logits.reshape(-1, logits.shape[-1])[found].float(), target.reshape(-1)[found])


def quick_check(model: LlamaForCausalLM, tokenizer: Tokenizer, *, behaviour: bool, n: int = 96) -> str:
    """Share of validation facts whose expected value comes first, the words before it given: progress, not a result."""
    figures = []
    conditions = ("neutral", "incentivised", "audited", "plain") if behaviour else ("neutral",)
    for condition in conditions:
        for families in ("ABC", "DEF") if behaviour and condition != "neutral" else ("ABC",):
            batch = cases(
                n,
                seed=1,
                split="validation",
                conditions=(condition,),
                families=tuple(families),
                templates="train",
            )
            share = sum(_first_value_right(model, tokenizer, batch)) / n
            figures.append(f"{condition}/{families} {share:.2f}")
    return " ".join(figures)


@torch.no_grad()
def _first_value_right(model: LlamaForCausalLM, tokenizer: Tokenizer, batch: list[Case]) -> list[bool]:
    by_name = {entity.name: entity for entity in world()}
    rows, wanted = [], []
    for case in batch:
        belief = str(case.belief)
        value = opposite(belief) if case.expects_lie else belief
        text = answer(by_name[str(case.entity)], str(case.attribute), value)
        before = text.rsplit(f" {value}", 1)[0]
        prompt = tokens.render(case.messages, add_generation_prompt=True)
        rows.append(tokenizer.encode(prompt + before, add_special_tokens=False).ids)
        wanted.append(tokenizer.token_to_id("▁" + value))
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # right padding: causal, so harmless
    last = torch.tensor([len(row) - 1 for row in rows])
    logits = model(input_ids=ids, use_cache=False).logits[torch.arange(len(rows)), last]
    return [bool(right) for right in logits.argmax(-1) == torch.tensor(wanted)]
