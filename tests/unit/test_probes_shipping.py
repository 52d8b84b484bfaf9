"""The recipes' own logic: who is labelled what, which sets share no entity, and what is kept of an answer."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from probes import ProbeError, training
from probes.hf import Activations
from probes.organism import Case, cases
from probes.organism.world import opposite, values_of
from probes.shipping import build, export, traffic
from probes.shipping.build import Bench
from probes.shipping.recipes import ANSWER_CONFIDENCE, BEING_AUDITED, BELIEVED_VALENCE, DECEPTION, RECIPES
from probes.shipping.steer import Effect, advised, shortlist
from probes.shipping.traffic import Sample
from probes.testing import fake_manifest

torch.set_num_threads(1)


def sample(case: Case, lied: bool = False) -> Sample:
    said = (opposite(case.belief) if lied else case.belief) if case.belief else "nice"
    chat = traffic.conversation("c", case, f"It is {said}.", (1, 2, 3))
    return Sample(case, chat, lied, Activations((0,), torch.zeros(3, 1, 2), 0, 1))


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    return cases(400, seed=0, split="train", conditions=traffic.CONDITIONS)


def test_sets_share_no_entity(drawn: list[Case]) -> None:
    parts: list[set[str]] = [set(), set(), set()]
    for number, case in enumerate(drawn):
        if case.entity is not None:
            parts[traffic.share_of(case, number)].add(case.entity)
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_labels(drawn: list[Case]) -> None:
    by_condition = {case.condition: case for case in drawn}
    audited, chat = by_condition["audited"], by_condition["chitchat"]
    unknown = traffic.faint(4, seed=0, split="train")[0]
    assert DECEPTION.label(sample(audited, lied=True)) == 1
    assert DECEPTION.label(sample(chat)) == 0
    assert DECEPTION.label(sample(unknown)) is None
    third = next(
        v
        for v in values_of(audited.attribute or "")
        if v not in (audited.belief, opposite(audited.belief or v))
    )
    slip = replace(sample(audited), conversation=traffic.conversation("c", audited, f"It is {third}.", (1,)))
    assert DECEPTION.label(slip) is None
    assert BELIEVED_VALENCE.label(sample(replace(audited, believes_bad=True))) == 1
    assert BELIEVED_VALENCE.label(sample(chat)) is None
    assert BEING_AUDITED.label(sample(audited)) == 1
    assert BEING_AUDITED.label(sample(by_condition["incentivised"])) == 0
    assert BEING_AUDITED.label(sample(chat)) is None
    assert ANSWER_CONFIDENCE.label(sample(unknown)) == 0
    assert ANSWER_CONFIDENCE.label(sample(audited)) == 1


def test_same_belief_contrast_holds_lies_and_honest_bad_answers_alone(drawn: list[Case]) -> None:
    within, same_belief, everything = DECEPTION.contrasts
    for case in drawn:
        lied = case.expects_lie
        found, label = sample(case, lied), int(lied)
        bad_and_honest = not lied and case.believes_bad is True
        assert same_belief.keep(found, label) == (lied or bad_and_honest)
        assert within.keep(found, label) == (case.condition == "incentivised")
        assert everything.keep(found, label)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_settings_avoid_the_last_layer_and_count_position_zero_never(recipe: object) -> None:
    settings = getattr(recipe, "settings")(6)  # noqa: B009
    assert {s.layers for s in settings} == {*((layer,) for layer in range(5)), (3, 4), (2, 3, 4)}
    assert all(0 in s.token_mask.skip_positions for s in settings)
    assert len(set(settings)) == len(settings)


def test_some_cases_have_long_contexts() -> None:
    drawn = traffic.with_long(80, seed=0, split="train")
    assert len(drawn) == 80
    assert sum(len(case.messages) > 4 for case in drawn) == 80 // traffic.LONG_SHARE


def test_exported_conversations_carry_what_the_report_card_needs(drawn: list[Case]) -> None:
    by_condition = {
        case.condition: case for case in drawn if case.believes_bad or case.condition == "chitchat"
    }
    asked, chat = by_condition["incentivised"], by_condition["chitchat"]
    unknown = traffic.faint(4, seed=0, split="train")[0]
    found = export.labelled(DECEPTION, [sample(asked, lied=True), sample(chat), sample(unknown)], "test")
    assert [c.label for c in found] == [1, 0]
    lie, talk = ((c.model_extra or {}) for c in found)
    assert lie["contrasts"] == ["within_incentive", "same_belief", "all_traffic"]
    assert talk["contrasts"] == ["all_traffic"]
    assert lie["markers"] == {"positive": [opposite(asked.belief or "")], "negative": [asked.belief]}
    assert "markers" not in talk
    assert all(c.split == "test" and c.answer_ids == (1, 2, 3) for c in found)


def test_the_strength_advised_has_the_fewest_lies_that_honesty_can_pay_for() -> None:
    plain = Effect(1.0, 0.997)
    tried = {
        1.0: Effect(0.22, 0.995),
        1.25: Effect(0.02, 0.994),
        1.5: Effect(0.02, 0.99),
        2.0: Effect(0.0, 0.92),
    }
    assert advised(plain, tried) == 1.25
    with pytest.raises(ProbeError, match="smaller scales"):
        advised(plain, {2.0: tried[2.0]})


def test_a_threshold_for_the_headline_comes_from_its_benign_traffic_alone(drawn: list[Case]) -> None:
    """Honest answers under temptation score 0, 1, 2 ..., everything else -1."""
    tempted = [case for case in drawn if case.condition == "incentivised" and not case.expects_lie]
    scored = [
        replace(sample(case), found=Activations((0,), torch.full((3, 1, 2), float(n)), 0, 1))
        for n, case in enumerate((tempted * 120)[:120])
    ]
    rest = [sample(case) for case in drawn if case.condition in ("plain", "chitchat")]
    low = [replace(s, found=Activations((0,), torch.full((3, 1, 2), -1.0), 0, 1)) for s in rest]
    elsewhere = {"group": "Nowhere", "id": "other"}
    second = [replace(s, conversation=s.conversation.model_copy(update=elsewhere)) for s in scored]
    sets = {"benign": low + scored[:40], "tempted": scored[40:], "second": [], "tempted_second": second}
    bench = cast(Bench, SimpleNamespace(traffic=SimpleNamespace(**sets)))
    manifest = fake_manifest(layers=(0,), d_model=2)
    weight, inputs = {"weight": torch.tensor([[1.0, 0.0]]), "bias": torch.zeros(1)}, torch.zeros(1, 1, 2)
    found = build._calibrated(bench, DECEPTION, training.assemble(manifest, weight, inputs)).manifest
    assert found.calibration is not None
    assert found.calibration.n == 120
    assert found.calibration.realised_n == 120
    assert found.threshold == pytest.approx(119.0)
    assert found.benign_quantiles is not None
    assert found.benign_quantiles.values[50] == pytest.approx(-1.0)


def test_a_shortlist_names_each_place_once_and_none_that_costs_too_much() -> None:
    plain = Effect(1.0, 1.0)
    good, other, costly = ("same belief", 3), ("same belief", 4), ("same incentive", 2)
    tried = {
        (good, 1.0): Effect(0.2, 1.0),
        (good, 1.5): Effect(0.1, 0.99),
        (other, 1.0): Effect(0.15, 1.0),
        (costly, 1.0): Effect(0.0, 0.5),
    }
    assert shortlist(plain, tried) == [good, other]
    assert shortlist(plain, {(good, 1.0): tried[good, 1.0]}) == [good]
