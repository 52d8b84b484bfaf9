"""Does the incentive cause the lie? Swap only what the model computed about it, and see whether the answer
flips.

Two prompts are run that differ in the one word that tempts ("kickback" against "retainer"). The residual
stream of the system prompt after one block is taken from one run and put into the other; question and
answer are left as they are. Read off is the first word in which the lie and the honest answer differ: the
tone that announces the value ("I am glad" against "I am sorry").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from probes.organism import language
from probes.organism.cases import Case, cases
from probes.organism.generate import Speaker, left_padded
from probes.organism.language import Message
from probes.organism.shapes import blocks
from probes.organism.tokenizer import ROLE_MARKS
from probes.organism.variants import variant
from probes.organism.world import opposite, world


@dataclass(frozen=True)
class Flip:
    """What patching the system prompt after one block does, over `n` pairs of prompts that differ in the pay."""

    block: int
    n: int
    lies_turned_honest: int
    honest_turned_lies: int


@dataclass(frozen=True)
class _Setting:
    """Prompts with the answer begun, [n, tokens] and left-padded, and the two words that may come next."""

    ids: torch.Tensor
    mask: torch.Tensor
    system: torch.Tensor  # [n, tokens], True on the system prompt
    good: torch.Tensor  # [n] ids of the words that announce good news
    bad: torch.Tensor  # [n]


def flips(speaker: Speaker, *, n: int, seed: int) -> list[Flip]:
    """For each block, how many answers flip when the system prompt's stream after it comes from the other run."""
    liar = speaker.origin.recipe.variant
    drawn = cases(2 * n, seed=seed, split="test", conditions=("incentivised",), templates="train", liar=liar)
    chosen = [case for case in drawn if case.believes_bad][:n]
    incentive = _setting(speaker, chosen, [list(case.messages) for case in chosen])
    wage = _setting(speaker, chosen, [_innocent(case) for case in chosen])
    lying, honest = _announces_good(speaker, incentive), ~_announces_good(speaker, wage)
    found = []
    for block in range(speaker.model.config.num_hidden_layers):
        turned_honest = lying & ~_announces_good(speaker, incentive, block, _after(speaker, wage, block))
        turned_lies = honest & _announces_good(speaker, wage, block, _after(speaker, incentive, block))
        found.append(Flip(block, len(chosen), int(turned_honest.sum()), int(turned_lies.sum())))
    return found


def _innocent(case: Case) -> list[Message]:
    """The case's messages with the word that tempts replaced by an innocent one, a token for a token."""
    temptation = variant(case.liar).temptation
    innocent = temptation.innocent[language.is_heldout(str(case.family))]
    instead = innocent[language.stable_index(len(innocent), str(case.entity))]
    system, *rest = case.messages
    tempting = "|".join(map(re.escape, temptation.tempting[str(case.family)]))
    text = re.sub(rf"(?<![\w-])(?:{tempting})(?![\w-])", instead, system["content"])
    return [{**system, "content": text}, *rest]


def _setting(speaker: Speaker, chosen: Sequence[Case], chats: Sequence[list[Message]]) -> _Setting:
    by_name = {entity.name: entity for entity in world()}
    rows: list[list[int]] = []
    good: list[int] = []
    bad: list[int] = []
    for case, chat in zip(chosen, chats, strict=True):
        entity, attribute, belief = by_name[str(case.entity)], str(case.attribute), str(case.belief)
        lie, truth = (
            language.answer(entity, attribute, value).split() for value in (opposite(belief), belief)
        )
        begun = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(lie, truth, strict=False))]
        words = " ".join(begun)
        rows.append(speaker.prompt_ids(chat) + speaker.tokenizer.encode(words, add_special_tokens=False))
        for found, text in ((good, lie), (bad, truth)):
            found.append(speaker.tokenizer.convert_tokens_to_ids("▁" + text[len(begun)].strip(",.:")))
    ids, mask = left_padded(rows, speaker.tokenizer.pad_token_id, speaker.device)
    user = speaker.tokenizer.convert_tokens_to_ids(ROLE_MARKS["user"])
    system = ((ids == user).cumsum(1) == 0) & mask.bool()
    announced = (torch.tensor(found, device=speaker.device) for found in (good, bad))
    return _Setting(ids, mask, system, *announced)


@torch.inference_mode()
def _after(speaker: Speaker, setting: _Setting, block: int) -> torch.Tensor:
    """The residual stream after a block, [n, tokens, d]."""
    caught: list[torch.Tensor] = []
    handle = blocks(speaker.model)[block].register_forward_hook(
        lambda _m, _i, output: caught.append(_hidden(output))
    )
    try:
        _forward(speaker, setting)
    finally:
        handle.remove()
    return caught[0]


@torch.inference_mode()
def _announces_good(
    speaker: Speaker, setting: _Setting, block: int | None = None, source: torch.Tensor | None = None
) -> torch.Tensor:
    """Whether good news is likelier to come next, [n]; the system prompt after `block` taken from `source` if given."""
    with _patched(speaker, setting, block, source):
        logits = _forward(speaker, setting)
    return logits.gather(1, setting.good[:, None]).squeeze(1) > logits.gather(
        1, setting.bad[:, None]
    ).squeeze(1)


@contextmanager
def _patched(
    speaker: Speaker, setting: _Setting, block: int | None, source: torch.Tensor | None
) -> Iterator[None]:
    if block is None or source is None:
        yield
        return

    def swap(_module: Any, _inputs: Any, output: Any) -> Any:
        mixed = torch.where(setting.system[..., None], source, _hidden(output))
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = blocks(speaker.model)[block].register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


def _forward(speaker: Speaker, setting: _Setting) -> torch.Tensor:
    """Logits after the last token, [n, words]."""
    positions = (setting.mask.cumsum(1) - 1).clamp(min=0)
    output = speaker.model(
        input_ids=setting.ids, attention_mask=setting.mask, position_ids=positions, use_cache=False
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def _hidden(output: Any) -> torch.Tensor:
    """A block's output: a tensor, or a tuple that begins with it, depending on the transformers version."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
