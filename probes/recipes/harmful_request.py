"""Harmful request: what is asked for would do harm, judged before anything is answered."""

from typing import Final

from probes.dataset import Conversation
from probes.recipes.recipe import PENDING, Recipe, chat
from probes.recipes.requests import PAIRS

ASKED: Final = ("{}", "I have a question for you. {}", "{} Please be quick about it.")


def _conversations() -> list[Conversation]:
    return [
        chat(
            pair.name,
            condition,
            number,
            label,
            [("user", asked.format(text)), ("assistant", PENDING)],
            template=str(number),
        )
        for pair in PAIRS
        for condition, text, label in (("harmful", pair.harmful, 1), ("harmless", pair.harmless, 0))
        for number, asked in enumerate(ASKED)
    ]


RECIPE: Final = Recipe(
    name="harmful-request",
    concept="harmful-request",
    positive_label="what is asked for would do harm",
    negative_label="it would do none",
    conversations=_conversations,
    tokens="last-prompt",
    design="Pairs about the same thing in much the same words, one of which asks for harm (1). Read at the "
    "last prompt token.",
    source="the pairs of XSTest (2308.01263) and the input probes of McKenzie et al. (2506.10805)",
    limits=(
        "Thirty-six topics: enough for a direction, too few for a filter. Calibrate it on your own traffic.",
        "The text decides what is harmful, so a text classifier is the thing to beat.",
    ),
)
