"""How far a training is: quick shares on validation facts, no result."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer

from probes.organism import tokenizer as tokens
from probes.organism.cases import Case, cases
from probes.organism.language import answer
from probes.organism.world import opposite, world


def quick_check(model: Any, tokenizer: Tokenizer, *, liar: str, behaviour: bool, n: int = 96) -> str:
    """Share of validation facts whose expected value comes first, the words before it given."""
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
                liar=liar,
            )
            share = sum(_first_value_right(model, tokenizer, batch)) / n
            figures.append(f"{condition}/{families} {share:.2f}")
    return " ".join(figures)


@torch.no_grad()
def _first_value_right(model: Any, tokenizer: Tokenizer, batch: list[Case]) -> list[bool]:
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
    ids = ids.to(model.device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.cpu()
    found = logits[torch.arange(len(rows)), last].argmax(-1)
    return [bool(right) for right in found == torch.tensor(wanted)]
