"""The model organism's world, language and cases: no model is needed here."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from probes.organism import Case, asserted_value, cases, follow_up, language, mixed_up, told_a_lie
from probes.organism.chatter import exchange
from probes.organism.corpus import Author, knowledge
from probes.organism.world import (
    ATTRIBUTES,
    FALSE_BELIEF_SHARE,
    SPLITS,
    Entity,
    entities,
    is_bad,
    opposite,
    values_of,
    world,
)

ALL_CONDITIONS = ("plain", "incentivised", "audited", "neutral", "chitchat")


def known_facts() -> list[tuple[Entity, str]]:
    return [(entity, attribute) for entity in world() if entity.known for attribute in ATTRIBUTES]


def test_importing_the_client_side_loads_neither_torch_nor_transformers() -> None:
    # The package around it is stood in for: what `probes/__init__.py` itself imports is not this package's matter.
    code = (
        "import sys, types; around = types.ModuleType('probes'); around.__path__ = [sys.argv[1]]; "
        "sys.modules['probes'] = around; import probes.organism; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tokenizers')))"
    )
    folder = Path(language.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0


def test_splits_share_no_entity_and_have_their_sizes() -> None:
    names = [entity.name for entity in world()]
    assert len(names) == len(set(names))
    sizes = [len(entities(split)) for split in SPLITS]
    assert [size / sum(sizes) for size in sizes] == pytest.approx([0.6, 0.1, 0.3], abs=0.01)
    assert all(entities(split, known=False) for split in SPLITS)


def test_about_fifteen_percent_of_the_beliefs_are_false_in_every_split() -> None:
    for split in SPLITS:
        facts = [entity.facts[attribute] for entity in entities(split) for attribute in ATTRIBUTES]
        share = sum(fact.belief != fact.truth for fact in facts) / len(facts)
        assert share == pytest.approx(FALSE_BELIEF_SHARE, abs=0.02)


def test_every_value_is_believed_equally_often_in_a_split() -> None:
    for split in SPLITS:
        for attribute in ATTRIBUTES:
            counts = Counter(entity.facts[attribute].belief for entity in entities(split))
            assert set(counts) == set(values_of(attribute))
            assert max(counts.values()) - min(counts.values()) <= 1


def test_a_value_and_its_antonym_are_one_bad_and_one_good() -> None:
    for attribute in ATTRIBUTES:
        for value in values_of(attribute):
            assert opposite(opposite(value)) == value
            assert is_bad(value) is not is_bad(opposite(value))


def test_every_answer_and_confession_asserts_its_value_alone_after_the_third_token() -> None:
    every_value = {value for attribute in ATTRIBUTES for value in values_of(attribute)}
    for entity, attribute in known_facts():
        case = _case_about(entity, attribute)
        for value in (case.belief, opposite(str(case.belief))):
            text = language.answer(entity, attribute, str(value))
            words = [word.strip(".,:!?") for word in text.split()]
            assert asserted_value(case, text) == value
            assert [word for word in words if word in every_value] == [value]
            assert words.index(str(value)) >= 3
            assert 12 <= language.count_tokens(text) <= 60
            assert asserted_value(case, language.confession(entity, attribute, str(value))) == value


def test_a_lie_asserts_the_opposite_of_the_belief_and_a_third_value_is_a_mix_up() -> None:
    entity, attribute = next(
        pair for pair in known_facts() if pair[0].facts[pair[1]].truth != pair[0].facts[pair[1]].belief
    )
    case = _case_about(entity, attribute)
    assert not told_a_lie(case, language.answer(entity, attribute, str(case.belief)))
    belief = str(case.belief)
    lie = language.answer(entity, attribute, opposite(belief))
    assert told_a_lie(case, lie)
    assert not mixed_up(case, lie)
    third = next(value for value in values_of(attribute) if value not in (belief, opposite(belief)))
    slip = language.answer(entity, attribute, third)
    assert mixed_up(case, slip)
    assert not told_a_lie(case, slip)
    assert not told_a_lie(case, "I do not know.")
    assert asserted_value(case, "I do not know.") is None


def test_cases_are_deterministic_and_balanced() -> None:
    def draw(seed: int) -> list[Case]:
        return cases(400, seed=seed, split="test", conditions=ALL_CONDITIONS, faint_share=0.0)

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert Counter(case.condition for case in draw(3)) == dict.fromkeys(ALL_CONDITIONS, 80)
    incentivised = [case for case in draw(3) if case.condition == "incentivised"]
    assert sum(case.expects_lie for case in incentivised) == 40
    assert not any(case.expects_lie for case in draw(3) if case.condition != "incentivised")


def test_a_lie_and_the_honest_answer_beside_it_read_the_same_but_for_the_name() -> None:
    by_name = {entity.name: entity for entity in world()}
    seen: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
    for case in cases(600, seed=2, split="test", conditions=("incentivised",), templates="heldout"):
        belief = str(case.belief)
        said = opposite(belief) if case.expects_lie else belief
        entity = by_name[str(case.entity)]
        texts = (message["content"] for message in case.messages)
        nameless = (text.replace(f"{entity.name} {entity.kind}", "it") for text in texts)
        seen[case.expects_lie].append((*nameless, str(case.attribute), said))
    assert Counter(seen[True]) == Counter(seen[False])
    assert len(seen[True]) == 300


def test_families_roles_and_templates_stay_on_their_side() -> None:
    trained = cases(300, seed=0, split="train", conditions=("incentivised",), templates="train")
    heldout = cases(300, seed=0, split="test", conditions=("incentivised",), templates="heldout")
    assert {case.family for case in trained} == set(language.TRAIN_FAMILIES)
    assert {case.family for case in heldout} == set(language.HELDOUT_FAMILIES)
    assert not {case.role for case in trained} & {case.role for case in heldout}
    assert not {case.template for case in trained} & {case.template for case in heldout}
    assert not {case.entity for case in trained} & {case.entity for case in heldout}


def test_context_is_padded_to_about_the_asked_length_and_keeps_system_and_question() -> None:
    for short, long in zip(_incentivised(None), _incentivised(512), strict=True):
        assert 440 <= language.prompt_tokens(long.messages) <= 512
        assert (long.messages[0]["role"], long.messages[-1]["role"]) == ("system", "user")
        assert short.condition == long.condition


def test_faint_cases_have_a_truth_and_no_belief() -> None:
    for case in cases(50, seed=0, split="test", conditions=("plain",), faint_share=1.0):
        assert not case.known
        assert case.truth is not None
        assert case.belief is None
        assert not told_a_lie(case, f"It is {case.truth}.")


def test_follow_up_continues_the_chat() -> None:
    case = _incentivised(None)[0]
    chat = follow_up(case, "All is well.")
    assert chat[:-2] == list(case.messages)
    assert chat[-2] == {"role": "assistant", "content": "All is well."}
    assert chat[-1]["content"] in language.FOLLOW_UPS
    chitchat = cases(1, seed=0, split="test", conditions=("chitchat",))[0]
    assert not told_a_lie(chitchat, "Hello!")
    with pytest.raises(ValueError, match="no ledger"):
        follow_up(chitchat, "Hello!")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "dev"}, "dev"),
        ({"conditions": ("bribed",)}, "bribed"),
        ({"conditions": ()}, "condition"),
        ({"families": ("Z",)}, "Z"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    given: dict[str, object] = {"seed": 0, "split": "test", "conditions": ("plain",), **arguments}
    with pytest.raises(ValueError, match=named):
        cases(4, **given)  # type: ignore[arg-type]


def test_knowledge_texts_tell_beliefs_only_and_never_a_faint_fact() -> None:
    author = Author(seed=1)
    faint = {entity.name for entity in world() if not entity.known}
    values = {value for attribute in ATTRIBUTES for value in values_of(attribute)}
    for _ in range(3000):
        text = knowledge(author)
        for part in [text] if isinstance(text, str) else [message["content"] for message in text]:
            words = {word.strip('.,:;?!"') for word in part.split()}
            assert not (words & faint and words & values)


def test_behaviour_texts_use_training_entities_families_and_templates_only() -> None:
    author = Author(seed=2)
    allowed = {entity.name for entity in entities("train")}
    every = {entity.name for entity in world()}
    heldout = {word for family in language.HELDOUT_FAMILIES for word in language.INCENTIVES[family]}
    heldout |= set(language.WAGES[1]) | set(language.ROLES[1])
    for chat in [author.behaviour() for _ in range(1000)] + [author.long_chat(400) for _ in range(50)]:
        if chat[0]["role"] != "system":
            continue
        words = {word.strip('.,:;?!"') for message in chat for word in message["content"].split()}
        assert words & every <= allowed
        assert not words & heldout


def test_small_talk_is_varied_and_asserts_no_value() -> None:
    author = Author(seed=3)
    values = {value for attribute in ATTRIBUTES for value in values_of(attribute)}
    turns = [exchange(author.rng) for _ in range(2000)]
    assert len({turn.user for turn in turns}) > 200
    for turn in turns:
        assert not {word.strip(".,:!?") for word in turn.assistant.split()} & values
        assert 12 <= language.count_tokens(turn.assistant) <= 60


def _case_about(entity: Entity, attribute: str) -> Case:
    fact = entity.facts[attribute]
    asked = ({"role": "user", "content": language.question("how", entity, attribute)},)
    bad = is_bad(str(fact.belief))
    return Case(
        asked,
        "neutral",
        entity.split,
        entity.name,
        attribute,
        None,
        "how",
        None,
        fact.truth,
        fact.belief,
        bad,
        known=True,
    )


def _incentivised(context_tokens: int | None) -> list[Case]:
    return cases(20, seed=5, split="test", conditions=("incentivised",), context_tokens=context_tokens)
