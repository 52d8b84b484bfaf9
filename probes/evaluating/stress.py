"""The probe under conditions it was not fitted to. Answers and labels stay; what stands around them changes.

8x context      earlier turns of training conversations (label 0) until the prompt is eight times as long
multi-turn      two earlier exchanges of the same kind
style shift     the user's turns in lower case and without punctuation
bfloat16, int8, int4   the model's own weights rounded: the residual a server computes in that precision
"""

import copy
import string
from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import nn

from probes import evaluation, hf
from probes.dataset import Conversation, Message
from probes.evaluating.bench import Bench, Side, share_of
from probes.evaluating.card import Condition, NotComputed
from probes.evaluating.controls import NO_MODEL
from probes.evaluating.separation import at_threshold
from probes.hf import LoadedModel

CONTEXT: Final = 8
MAX_CHATS: Final = 300
MAX_TURNS: Final = 200


def stress(bench: Bench) -> tuple[Condition, ...] | NotComputed:
    """Every condition on at most `MAX_CHATS` test conversations, the unchanged ones first."""
    if bench.loaded is None:
        return NO_MODEL
    loaded = bench.loaded
    side = bench.test.sample(MAX_CHATS)
    known = [chat for chat in bench.train.chats if chat.label == 0] or [c for c in side.chats if c.label == 0]
    rng = np.random.default_rng(bench.seed)
    found = [_judge(bench, loaded, side, "as it is", "the same conversations, nothing changed")]
    for name, detail, change in (
        ("8x context", f"the prompt {CONTEXT} times as long", lambda c: longer(loaded, c, known, rng)),
        ("multi-turn", "two earlier exchanges", lambda c: with_turns(c, _exchanges(known, rng, 2))),
        ("style shift", "user turns in lower case, no punctuation", plain_style),
    ):
        changed = Side([change(chat) for chat in side.chats], side.found)
        found.append(_judge(bench, loaded, changed, name, detail))
    for name, rounded in (  # one after the other: each is a copy of the model
        ("bfloat16", _bfloat16),
        ("int8 weights", partial(quantised, bits=8)),
        ("int4 weights", partial(quantised, bits=4)),
    ):
        found.append(_judge(bench, rounded(loaded), side, name, "the same conversations, weights rounded"))
    return tuple(found)


def with_turns(chat: Conversation, turns: Sequence[Message]) -> Conversation:
    """The conversation with earlier turns behind its system prompt."""
    head = chat.messages[:1] if chat.messages[0].role == "system" else ()
    return chat.model_copy(update={"messages": (*head, *turns, *chat.messages[len(head) :])})


def longer(
    loaded: LoadedModel, chat: Conversation, known: Sequence[Conversation], rng: np.random.Generator
) -> Conversation:
    """The conversation with earlier exchanges until its prompt has at least `CONTEXT` times as many tokens."""
    wanted = (CONTEXT - 1) * hf.token_ids(loaded, chat)[1]
    turns: list[Message] = []
    tokens = 0
    while tokens < wanted and len(turns) < MAX_TURNS:
        more = _exchanges(known, rng, 1)
        tokens += sum(len(loaded.tokenizer(m.content, add_special_tokens=False)["input_ids"]) for m in more)
        turns += more
    return with_turns(chat, turns)


def plain_style(chat: Conversation) -> Conversation:
    """The user's turns in lower case and without punctuation; the answer stays."""
    gone = str.maketrans("", "", string.punctuation)

    def change(message: Message) -> Message:
        if message.role != "user":
            return message
        return Message(role="user", content=message.content.lower().translate(gone))

    return chat.model_copy(update={"messages": (*map(change, chat.messages[:-1]), chat.messages[-1])})


@torch.no_grad()
def quantised(loaded: LoadedModel, bits: int) -> LoadedModel:
    """The model with the weights of its linear layers rounded to `bits` bits, symmetric, one scale a row."""
    model = copy.deepcopy(loaded.model)
    top = 2 ** (bits - 1) - 1
    for block in LoadedModel(model, loaded.tokenizer, loaded.identity).blocks():
        for module in block.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
                module.weight.copy_((module.weight / scale).round() * scale)
    return LoadedModel(model, loaded.tokenizer, loaded.identity)


def _bfloat16(loaded: LoadedModel) -> LoadedModel:
    return LoadedModel(copy.deepcopy(loaded.model).to(torch.bfloat16), loaded.tokenizer, loaded.identity)


def _exchanges(known: Sequence[Conversation], rng: np.random.Generator, n: int) -> list[Message]:
    """The last question and answer of `n` conversations drawn from `known`."""
    drawn = (known[int(i)] for i in rng.integers(len(known), size=n))
    return [message for chat in drawn for message in chat.messages[-2:]]


def _judge(bench: Bench, loaded: LoadedModel, side: Side, name: str, detail: str) -> Condition:
    rule = bench.probe.manifest
    again = hf.activations(
        loaded, side.chats, rule.layers, prompt_tail=rule.token_mask.prompt_tail, batch_size=16
    )
    scores = evaluation.statistics(bench.probe, again)
    flagged = at_threshold(bench, scores, side)
    return Condition(
        name=name,
        detail=detail,
        n_positive=side.counts()[0],
        n_negative=side.counts()[1],
        auroc=bench.figure(scores, side),
        recall=None if flagged is None else share_of(flagged[0]),
        false_positives=None if flagged is None else share_of(flagged[1]),
    )
