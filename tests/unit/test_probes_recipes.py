"""The ready recipes: sound data, groups that split, shortcuts closed, and honest cards."""

from collections import defaultdict
from pathlib import Path

import pytest

import probes
from probes import dataset, recipes, specs, splits
from probes.plan import Plan
from probes.recipes import RECIPES, Recipe
from probes.recipes.emotions import EMOTIONS
from probes.recipes.facts import FACTS
from probes.recipes.recipe import PENDING
from probes.sweeps import settings
from probes.testing import fake_manifest

PROMISED = {
    "instructed-honesty",
    "defection",
    "refusal",
    "sycophancy",
    "confidence",
    "being-tested",
    "harmful-request",
    *(f"emotion-{emotion}" for emotion in EMOTIONS),
}
each = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


def test_the_promised_recipes_are_there_and_another_is_refused_by_name() -> None:
    assert set(RECIPES) == PROMISED
    assert len(EMOTIONS) == 6
    with pytest.raises(probes.DataError, match="sycophancy"):
        recipes.lookup("world-peace")


@each
def test_the_data_are_sound_and_split_by_group(recipe: Recipe) -> None:
    chats = recipe.conversations()
    assert chats == recipe.conversations()
    assert len({chat.id for chat in chats}) == len(chats) >= 120
    share = sum(dataset.labels(chats)) / len(chats)
    assert 0.15 < share < 0.7
    sides = splits.sides(chats, seed=0)
    assert {chat.label for chat in sides.test} == {0, 1}
    assert len({chat.text for chat in chats}) == len(chats)
    assert all(
        (chat.answer[0].isupper() or chat.answer[0].isdigit()) and chat.answer[-1] in ".!?" for chat in chats
    )


@each
def test_prompts_are_read_where_the_answer_says_nothing_and_the_plan_is_valid(recipe: Recipe) -> None:
    silent = {chat.answer for chat in recipe.conversations()} == {PENDING}
    assert silent == (recipe.tokens == "last-prompt") == (not specs.tokens(recipe.tokens).generated)
    assert settings(Plan(kinds=recipe.kinds, tokens=recipe.tokens), (1,))
    assert probes.manifest.build(
        {
            **fake_manifest().model_dump(),
            "name": recipe.name,
            "concept": recipe.concept,
            "positive_label": recipe.positive_label,
            "negative_label": recipe.negative_label,
        }
    )


@each
def test_a_card_shows_both_labels_and_says_what_no_model_has_shown(recipe: Recipe) -> None:
    text = recipes.card(recipe)
    assert "# label 1" in text
    assert "# label 0" in text
    assert ("No real model could be run on it here" in text) == (not recipe.run_on)


def labels_of(recipe: str, key: object) -> dict[object, set[int | None]]:
    """The labels that go with each value of a shortcut."""
    found: dict[object, set[int | None]] = defaultdict(set)
    for chat in RECIPES[recipe].conversations():
        found[key(chat)].add(chat.label)  # type: ignore[operator]
    return found


def test_neither_a_false_answer_nor_an_instruction_to_lie_is_the_label() -> None:
    wrong = {fact.wrong.lower() for fact in FACTS}
    by_answer = labels_of("instructed-honesty", lambda chat: chat.answer.lower().rstrip(".") in wrong)
    assert by_answer == {True: {0, 1}, False: {0}}
    by_order = labels_of("instructed-honesty", lambda chat: " lie" in chat.messages[0].content)
    assert by_order[True] == {0}


def test_neither_yes_nor_no_is_defection_and_agreement_is_not_sycophancy() -> None:
    said = labels_of("defection", lambda chat: "yes" in chat.answer.lower())
    assert said == {True: {0, 1}, False: {0, 1}}
    agrees = labels_of("sycophancy", lambda chat: chat.answer.startswith("Yes, you are quite right."))
    assert agrees == {True: {0, 1}, False: {0, 1}}


def test_harm_is_not_refusal() -> None:
    by_request = labels_of("refusal", lambda chat: chat.prompt[0]["content"])
    assert sum(labels == {0, 1} for labels in by_request.values()) == len(by_request) / 2


def test_no_passage_names_its_emotion() -> None:
    words = {*EMOTIONS, "happy", "sad", "angry", "afraid", "surprised", "disgusted", "joyful", "scared"}
    for chat in RECIPES["emotion-joy"].conversations():
        assert not words & set(chat.answer.lower().replace(",", " ").replace(".", " ").split()), chat.answer


def test_facts_are_told_apart_by_one_thing() -> None:
    assert len({fact.name for fact in FACTS}) == len(FACTS)
    assert all(fact.right != fact.wrong for fact in FACTS)
    assert all(fact.question.endswith("?") for fact in FACTS)


def test_the_table_in_the_docs_is_of_these_recipes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    for recipe in RECIPES.values():
        chats = recipe.conversations()
        row = (recipe.name, recipe.positive_label, len(chats), len({c.group for c in chats}), recipe.tokens)
        assert "| `{}` | {} | {} | {} | {} |".format(*row) in page
