"""Which conversations are fitted, chosen on and judged: whole groups, and nothing that stands on two sides.

A group (an entity, an author, a scenario) carries facts that every one of its conversations repeats. A split
that cuts through groups, or through the tokens of one conversation, measures memory and calls it skill.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from probes import dataset
from probes.dataset import Conversation, Split
from probes.errors import DatasetInvalid, SplitLeak
from probes.manifest import ProbeManifest

SHARES: Final[Mapping[Split, float]] = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Of the groups, where the data set declares no splits."""


@dataclass(frozen=True)
class Sides:
    """The conversations of each split, with both labels in the first two."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]
    """Not needed to train; empty where there is none."""
    rule: str
    """How the splits came about, in words, for the manifest."""


def sides(conversations: Sequence[Conversation], *, seed: int) -> Sides:
    """The declared splits, or, where no conversation declares one, whole groups dealt by `seed`.

    Raises `DatasetInvalid` for missing groups, labels or classes, and `SplitLeak` for a group or a
    conversation that stands on two sides.
    """
    declared = any(chat.split is not None for chat in conversations)
    chats = list(conversations) if declared else deal(conversations, seed=seed)
    train, validation = (dataset.of_split(chats, split) for split in ("train", "validation"))
    test = [chat for chat in chats if chat.split == "test"]
    for side in (train, validation):
        dataset.labels(side)
    dataset.check_disjoint(train=train, validation=validation, test=test)
    check_uncut(train=train, validation=validation, test=test)
    dealt = "/".join(f"{share:.0%}" for share in SHARES.values())
    return Sides(train, validation, test, "declared" if declared else f"groups dealt {dealt}, seed {seed}")


def as_trained(conversations: Sequence[Conversation], manifest: ProbeManifest) -> list[Conversation]:
    """The conversations, dealt as they were to train the probe where they declare no split.

    Without it, what the probe was fitted to would pass for unseen.
    """
    made = None if manifest.training is None else manifest.training.made
    declared = any(chat.split is not None for chat in conversations)
    if declared or made is None or dataset.digest(conversations) != made.data_digest:
        return list(conversations)
    return deal(conversations, seed=made.plan.seed)


def deal(conversations: Sequence[Conversation], *, seed: int) -> list[Conversation]:
    """Each conversation with a split: whole groups, in the shares of `SHARES`, alike for each mix of labels.

    The same groups and seed give the same splits on any machine. `DatasetInvalid` without groups: one
    conversation a group would be a split by conversation, and only the owner of the data can say that no
    entity or author comes twice.
    """
    missing = [chat.id for chat in conversations if chat.group is None]
    if missing:
        raise DatasetInvalid(
            f"{len(missing)} of {len(conversations)} conversations have neither group nor split "
            f'(first: {missing[0]!r}); set "group" on each, the id itself where nothing is shared'
        )
    mixes: dict[str, set[int | None]] = defaultdict(set)
    for chat in conversations:
        mixes[str(chat.group)].add(chat.label)
    alike: dict[tuple[int | None, ...], list[str]] = defaultdict(list)
    for group, labels in mixes.items():
        alike[tuple(sorted(labels, key=str))].append(group)
    split_of: dict[str, Split] = {}
    for groups in alike.values():
        ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        split_of.update(zip(ordered, _dealt(len(ordered)), strict=True))
    return [chat.model_copy(update={"split": split_of[str(chat.group)]}) for chat in conversations]


def check_uncut(**named: Sequence[Conversation]) -> None:
    """Raise `SplitLeak` where two sides hold the same conversation, whole or cut at different tokens.

    That is what a split by token looks like: rows with one prompt whose answers begin with the same words.
    """
    by_prompt: dict[tuple[tuple[str, str], ...], list[tuple[str, str, str]]] = defaultdict(list)
    for side, chats in named.items():
        for chat in chats:
            prompt = tuple((message.role, message.content) for message in chat.messages[:-1])
            by_prompt[prompt].append((chat.answer, side, chat.id))
    for answers in by_prompt.values():
        begun: list[tuple[str, str, str]] = []  # each a beginning of the next one
        for answer, side, name in sorted(answers):
            while begun and not answer.startswith(begun[-1][0]):
                begun.pop()
            for beginning, other, first in begun:
                if other != side and _at_a_word(answer, len(beginning)):
                    raise SplitLeak(
                        f"{first!r} in {other} and {name!r} in {side} are one conversation, whole or cut at another "
                        "token; give each conversation once, and split by group"
                    )
            begun.append((answer, side, name))


def _at_a_word(text: str, cut: int) -> bool:
    """Whether `text` may be cut there: two answers that begin with `a` and `are` are not one."""
    return not text[max(0, cut - 1) : cut + 1].isalnum() or cut in (0, len(text))


def _dealt(n: int) -> list[Split]:
    """Splits of n groups in order: in the shares, and at least one of each from three groups on."""
    least = int(n >= len(SHARES))
    held: list[Split] = []
    for split, share in SHARES.items():
        if split != "train":
            held += [split] * max(least, round(n * share))
    train: list[Split] = ["train"] * (n - len(held))
    return train + held
