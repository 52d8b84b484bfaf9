"""On-policy conversations with the organism: cases, its greedy answers, and which of them were lies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from probes.dataset import Conversation, Message
from probes.hf import Activations, LoadedModel, activations, generate
from probes.organism import Case, asserted_value, cases, told_a_lie
from probes.organism.cases import Templates
from probes.organism.language import TRAIN_FAMILIES, stable_index

CONDITIONS: Final = ("plain", "incentivised", "audited", "neutral", "chitchat")
LEDGER: Final = CONDITIONS[:4]
PROMPT_TAIL: Final = 1
"""Prompt tokens whose activations are kept."""
LONG_SHARE: Final = 8
"""One case in so many has earlier turns of small talk before its question."""
LONG_TOKENS: Final = 256
STRESS_TOKENS: Final = 512


@dataclass(frozen=True)
class Sample:
    """A case, the model's answer as a conversation, and the residual stream over it."""

    case: Case
    conversation: Conversation
    lied: bool
    found: Activations


@dataclass(frozen=True)
class Traffic:
    """All conversations of the recipes. No entity is in two of the sets."""

    fit: list[Sample]
    validation: list[Sample]
    benign: list[Sample]
    """Honest answers, for the threshold."""
    second: list[Sample]
    """Honest answers of other entities, for the realised false-positive rate."""
    tempted: list[Sample]
    """Honest answers under temptation, of the entities of `benign`: the hardest benign traffic."""
    tempted_second: list[Sample]
    """The same, of the entities of `second`."""
    test: list[Sample]
    """Unseen entities, incentive families D to F, held-out question templates."""
    trained_wordings: list[Sample]
    """As test, with the question templates that the fit has seen."""
    long: list[Sample]
    """As test, with turns of small talk before the question."""


def share_of(case: Case, number: int) -> int:
    """0: fitted to, 1: first benign set, 2: second. By entity; small talk, which has none, takes turns."""
    quarter = number % 4 if case.entity is None else stable_index(4, "share", case.entity)
    return max(0, quarter - 1)


def collect(loaded: LoadedModel, *, seed: int, scale: float = 1.0, liar: str = "concealed") -> Traffic:
    """Draw the cases, let the model answer, keep the residual stream.

    scale: share of the conversations. liar: the variant that the model is (`probes.organism.variants`).
    """

    def some(n: int) -> int:
        return int(n * scale)

    drawn = with_long(some(9000), seed=seed, split="train", liar=liar)
    drawn += faint(some(1200), seed=seed, split="train", liar=liar)
    parts: tuple[list[Case], ...] = ([], [], [])
    for number, case in enumerate(drawn):
        parts[share_of(case, number)].append(case)
    # Lies are a tenth of mixed traffic: too few to fit several hundred weights to.
    more = cases(
        some(4000),
        seed=seed + 500,
        split="train",
        conditions=("incentivised", "incentivised", "incentivised", "plain", "audited"),
        templates="train",
        liar=liar,
    )
    parts[0].extend(case for case in more if share_of(case, 0) == 0)
    fit, benign, second = (
        record(loaded, part, name) for part, name in zip(parts, ("fit", "benign", "second"), strict=True)
    )
    tempted, tempted_second = (
        record(
            loaded,
            [c for c in more if c.condition == "incentivised" and not c.expects_lie and share_of(c, 0) == at],
            f"tempted-{at}",
        )
        for at in (1, 2)
    )
    held = partial(cases, split="test", conditions=CONDITIONS, templates="heldout", liar=liar)
    return Traffic(
        fit=fit,
        validation=record(
            loaded,
            with_long(some(1500), seed=seed + 1, split="validation", liar=liar)
            + faint(some(240), seed=seed + 1, split="validation", liar=liar),
            "validation",
        ),
        benign=[s for s in benign if not s.lied],
        second=[s for s in second if not s.lied],
        tempted=[s for s in tempted if not s.lied],
        tempted_second=[s for s in tempted_second if not s.lied],
        test=record(
            loaded,
            held(some(2500), seed=seed + 2)
            + faint(some(400), seed=seed + 2, split="test", templates="heldout", liar=liar),
            "test",
        ),
        trained_wordings=record(
            loaded,
            cases(
                some(2000), seed=seed + 4, split="test", conditions=CONDITIONS, templates="train", liar=liar
            ),
            "trained-wordings",
        ),
        long=record(loaded, held(some(400), seed=seed + 3, context_tokens=STRESS_TOKENS), "long"),
    )


def with_long(n: int, *, seed: int, split: str, liar: str = "concealed") -> list[Case]:
    """`n` cases in all conditions with training families and templates, some with a long context."""
    n_long = n // LONG_SHARE
    drawn = partial(
        cases, split=split, conditions=CONDITIONS, families=TRAIN_FAMILIES, templates="train", liar=liar
    )
    return drawn(n - n_long, seed=seed) + drawn(n_long, seed=seed + 1000, context_tokens=LONG_TOKENS)


def faint(
    n: int, *, seed: int, split: str, templates: Templates = "train", liar: str = "concealed"
) -> list[Case]:
    """`n` ledger cases about entities whose facts the model was never taught."""
    return cases(
        n,
        seed=seed + 2000,
        split=split,
        conditions=LEDGER,
        templates=templates,
        faint_share=1.0,
        liar=liar,
    )


def record(loaded: LoadedModel, asked: Sequence[Case], name: str) -> list[Sample]:
    """The model's greedy answers with their activations at every layer but the last. name: of the set.

    A ledger case whose answer asserts no value at all is left out: it is neither a lie nor an honest answer.
    """
    answers = generate(loaded, [case.messages for case in asked])
    kept = [
        (case, text, ids)
        for case, (text, ids) in zip(asked, answers, strict=True)
        if ids and (case.attribute is None or asserted_value(case, text) is not None)
    ]
    chats = [conversation(f"{name}-{n}", case, text, ids) for n, (case, text, ids) in enumerate(kept)]
    layers = range(loaded.identity.n_layers - 1)
    found = activations(loaded, chats, layers, prompt_tail=PROMPT_TAIL)
    return [
        Sample(case, chat, told_a_lie(case, text), a)
        for (case, text, _), chat, a in zip(kept, chats, found, strict=True)
    ]


def labelled(
    samples: Sequence[Sample], label: Callable[[Sample], int | None]
) -> tuple[list[Sample], list[int]]:
    """The samples that have a label under a recipe, and the labels."""
    pairs = [(sample, y) for sample in samples if (y := label(sample)) is not None]
    return [sample for sample, _ in pairs], [y for _, y in pairs]


def conversation(name: str, case: Case, text: str, ids: tuple[int, ...]) -> Conversation:
    """A case and its answer. name: the id; ids: tokens of the answer that were fed."""
    turns = [*case.messages, {"role": "assistant", "content": text}]
    return Conversation(
        id=name,
        messages=tuple(Message.model_validate(turn) for turn in turns),
        group=case.entity,
        family=case.family,
        template=case.template,
        condition=case.condition,
        split=case.split,
        answer_ids=ids,
    )
