"""An organism's greedy answers with the residual stream over them, in one forward pass where that is possible.

What a ledger answer ought to say is known word by word. If the likeliest next token is the expected one at every
place, the end included, then the expected answer IS the greedy one, and one pass over it has both shown that and
computed its residual stream. Only the other answers have to be generated token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from probes.hf import Activations, LoadedModel, activations, generate, token_ids
from probes.organism import Case, asserted_value, told_a_lie
from probes.organism.language import answer
from probes.organism.world import opposite, world
from probes.shipping.traffic import PROMPT_TAIL, Sample, conversation

BATCH: Final = 64


def record(loaded: LoadedModel, asked: Sequence[Case], name: str) -> list[Sample]:
    """As `probes.shipping.traffic.record`, and the same answers: those of ledger cases that assert a value, and small
    talk, in the order of the cases. name: of the set.
    """
    found: dict[int, Sample] = {}
    known = [(i, text) for i, case in enumerate(asked) if (text := expected(case)) is not None]
    known.sort(key=lambda pair: sum(len(message["content"]) for message in asked[pair[0]].messages))
    for start in range(0, len(known), BATCH):
        batch = [
            (i, _sample(loaded, asked[i], text, f"{name}-{i}")) for i, text in known[start : start + BATCH]
        ]
        for (i, sample), states in zip(batch, _verified(loaded, [s for _, s in batch]), strict=True):
            if states is not None:
                found[i] = Sample(sample.case, sample.conversation, sample.lied, states)
    left = [i for i in range(len(asked)) if i not in found]
    found |= dict(_generated(loaded, asked, left, name))
    return [found[i] for i in sorted(found)]


def expected(case: Case) -> str | None:
    """The answer that the case calls for; None for small talk and for facts never taught."""
    if case.entity is None or case.attribute is None or case.belief is None:
        return None
    entity = next(entity for entity in world() if entity.name == case.entity)
    return answer(entity, case.attribute, opposite(case.belief) if case.expects_lie else case.belief)


def _sample(loaded: LoadedModel, case: Case, text: str, name: str) -> Sample:
    ids = tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    nothing = Activations((), torch.empty(0, 0, 0), 0, 0)
    return Sample(case, conversation(name, case, text, ids), told_a_lie(case, text), nothing)


@torch.no_grad()
def _verified(loaded: LoadedModel, samples: Sequence[Sample]) -> list[Activations | None]:
    """The residual stream over each answer that is the greedy one, None for the others."""
    fed = [token_ids(loaded, sample.conversation) for sample in samples]
    width = max(len(ids) for ids, _ in fed)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in fed])
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in fed])
    out = loaded.model(input_ids=ids, attention_mask=attention, output_hidden_states=True, use_cache=False)
    layers = tuple(range(loaded.identity.n_layers - 1))
    states = torch.stack([out.hidden_states[layer + 1] for layer in layers], dim=2)  # [B, T, L, d]
    likeliest = out.logits.argmax(-1)
    end = loaded.tokenizer.eos_token_id
    found: list[Activations | None] = []
    for row, (tokens, length) in enumerate(fed):
        if likeliest[row, length - 1 : len(tokens)].tolist() != [*tokens[length:], end]:
            found.append(None)
            continue
        first = max(0, length - PROMPT_TAIL)
        found.append(Activations(layers, states[row, first : len(tokens)].clone(), first, length))
    return found


def _generated(
    loaded: LoadedModel, asked: Sequence[Case], left: Sequence[int], name: str
) -> list[tuple[int, Sample]]:
    answers = generate(loaded, [asked[i].messages for i in left])
    kept = [
        (i, asked[i], text, ids)
        for i, (text, ids) in zip(left, answers, strict=True)
        if ids and (asked[i].attribute is None or asserted_value(asked[i], text) is not None)
    ]
    chats = [conversation(f"{name}-{i}", case, text, ids) for i, case, text, ids in kept]
    states = activations(loaded, chats, range(loaded.identity.n_layers - 1), prompt_tail=PROMPT_TAIL)
    return [
        (i, Sample(case, chat, told_a_lie(case, text), a))
        for (i, case, text, _), chat, a in zip(kept, chats, states, strict=True)
    ]
