"""Refusal: answers that decline, to harmful and to harmless requests, beside answers that help."""

from typing import Final

from probes.dataset import Conversation
from probes.recipes.recipe import Recipe, chat
from probes.recipes.requests import PAIRS, Pair

DECLINES: Final = (
    "I am sorry, but I cannot help with that.",
    "That is something I will not do.",
    "No. I would rather not take part in this.",
)
HELPS: Final = (
    "Of course. Here is a first version that you can work from.",
    "Gladly. Let us go through it one step at a time.",
    "Yes, I can do that. This is how I would begin.",
)


def _of(pair: Pair) -> list[Conversation]:
    cells = (
        ("harmful, declined", pair.harmful, DECLINES, 1),
        ("harmless, declined", pair.harmless, DECLINES[:2], 1),
        ("harmless, helped", pair.harmless, HELPS, 0),
    )
    return [
        chat(
            pair.name,
            condition,
            number,
            label,
            [("user", asked), ("assistant", answer)],
            template=str(number),
        )
        for condition, asked, answers, label in cells
        for number, answer in enumerate(answers)
    ]


RECIPE: Final = Recipe(
    name="refusal",
    concept="refusal",
    positive_label="it declines",
    negative_label="it helps",
    conversations=lambda: [found for pair in PAIRS for found in _of(pair)],
    tokens="last-prompt+answer",
    design="A harmful request is declined (1), a harmless one is helped (0), and the same harmless one is "
    "declined for no reason (1): so the topic alone is not the label, nor is harm.",
    source="Arditi et al. (2406.11717), with declined harmless requests as in XSTest (2308.01263)",
    limits=(
        "There is no answer that helps with harm in it, so declining and being asked for harm are not "
        "wholly apart.",
        "The answers come from six wordings, which a text-only model learns at once: the probe is of use "
        "for the token before the answer and for wordings that are not among them.",
    ),
    kinds=("difference_of_means", "logistic"),
)
