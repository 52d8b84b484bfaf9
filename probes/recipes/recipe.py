"""What a recipe is: labelled conversations written for one concept, and how to fit a probe to them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from probes.dataset import Conversation, Message

Tokens = Literal["answer", "last-prompt", "last-prompt+answer"]
PENDING = "Let me think about that."
"""The answer of a conversation of which only the prompt is read."""


@dataclass(frozen=True)
class Recipe:
    """One concept. The conversations are the same at each call; their groups never repeat a text across "
    "groups."""

    name: str
    concept: str
    positive_label: str
    negative_label: str
    conversations: Callable[[], list[Conversation]]
    tokens: Tokens
    """Which tokens are fitted and count."""
    design: str
    """What stands against what, and which shortcut each contrast closes."""
    source: str
    """The paper whose design it follows."""
    limits: tuple[str, ...] = ()
    """What a reader must know before believing the probe."""
    kinds: tuple[str, ...] = ("logistic", "difference_of_means")
    """Tried by default."""
    run_on: tuple[str, ...] = ()
    """Real models that it was run on here."""


def chat(
    group: str, condition: str, number: int, label: int, turns: Sequence[tuple[str, str]], **further: str
) -> Conversation:
    """One conversation. turns: (role, content); the last one is the assistant's. number: within its "
    "condition."""
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns)
    return Conversation(
        id=f"{group}/{condition}/{number}",
        messages=messages,
        label=1 if label else 0,
        group=group,
        condition=condition,
        **further,
    )


def sentence(clause: str) -> str:
    """A clause as a sentence of its own."""
    return clause[0].upper() + clause[1:] + "."


def card(recipe: Recipe) -> str:
    """What the recipe holds, in Markdown, with an example of either label."""
    chats = recipe.conversations()
    counts = Counter((str(c.condition), c.label) for c in chats)
    rows = [f"| {name} | {label} | {n} |" for (name, label), n in sorted(counts.items())]
    ran = ", ".join(recipe.run_on)
    limits = [
        f"Run here on: {ran}."
        if ran
        else "**No real model could be run on it here**: that the data are sound is tested, that a probe fitted to "
        "them works is not known. Judge it with `probewatch evaluate` on your model.",
        *recipe.limits,
    ]
    examples = [next(c for c in chats if c.label == label) for label in (1, 0)]
    return "\n".join(
        [
            f"## {recipe.name}",
            "",
            f"High: {recipe.positive_label}. Low: {recipe.negative_label}. Tokens: {recipe.tokens}. "
            f"{len(chats)} conversations in {len({c.group for c in chats})} groups. After: {recipe.source}.",
            "",
            recipe.design,
            "",
            "| condition | label | conversations |",
            "|---|---|---|",
            *rows,
            "",
            *(f"- {limit}" for limit in limits),
            "",
            *(f"```\n# label {c.label}\n{c.text}\n```" for c in examples),
            "",
        ]
    )
