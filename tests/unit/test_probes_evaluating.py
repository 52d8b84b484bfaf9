"""The evaluation protocol against planted answers: what must be caught is, and what is sound passes."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluating_fakes import WORDS, bench, chat, model, probe, side, told

import probes
from probes import cli, fitting, hf, training
from probes.evaluating import (
    attack,
    behaviour,
    causal,
    command,
    controls,
    forward,
    gate,
    latency,
    leakage,
    profile,
    protocol,
    reliability,
    separation,
    stress,
)
from probes.evaluating.bench import Bench, Side, contrasts
from probes.evaluating.card import (
    NAMES,
    Attack,
    Card,
    Control,
    Deployed,
    Effect,
    Fault,
    Figure,
    Leak,
    NotComputed,
    Share,
)
from probes.fitting import FITTERS
from probes.hf import LoadedModel
from probes.manifest import revise

torch.set_num_threads(1)

NEED_A_MODEL = ("random-network", "surprise", "content-filtering")
OPTIONS = protocol.Options("planted.jsonl", "probewatch evaluate", "0")


def leaky_word(y: int, word: str) -> str:
    return ("cheap" if y else "dear") if word in WORDS[:5] else word


@pytest.fixture(scope="module")
def sound() -> Bench:
    return bench(side(120, "train", 0), side(120, "test", 1))


@pytest.fixture(scope="module")
def sound_card(sound: Bench) -> Card:
    return protocol.evaluate(sound, replace(OPTIONS, waived=NEED_A_MODEL))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return model()


@pytest.fixture(scope="module")
def modelled(loaded: LoadedModel) -> Bench:
    sides = []
    for n, split, seed in ((40, "train", 0), (60, "test", 1)):
        chats = told(n, split, seed)
        sides.append(Side(chats, hf.activations(loaded, chats, (0, 1), prompt_tail=1)))
    return bench(sides[0], sides[1], loaded=loaded, threshold=1.0)


def test_roc_of_known_scores() -> None:
    points = separation.roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert points == ((0.0, 0.5), (0.5, 1.0), (1.0, 1.0))
    rng = np.random.default_rng(0)
    many = separation.roc(rng.normal(size=5000) + 1, rng.normal(size=5000))
    assert len(many) <= separation.ROC_POINTS + 1
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(many))
    assert area == pytest.approx(0.7602, abs=0.02)  # Phi(1 / sqrt 2)


def test_precision_is_bayes() -> None:
    assert separation.precision(0.9, 0.01, 0.5) == pytest.approx(0.9 / 0.91)
    assert separation.precision(1.0, 0.01, 0.001) == pytest.approx(0.0909, abs=1e-3)
    assert np.isnan(separation.precision(0.0, 0.0, 0.1))


def test_brier_and_calibration_error_of_known_probabilities() -> None:
    p, y = np.array([0.25, 0.25, 0.25, 0.25]), np.array([1, 0, 0, 0])
    assert reliability.brier(p, y) == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)
    assert reliability.calibration_error(p, y) == pytest.approx(0.0)
    assert reliability.calibration_error(np.array([0.9, 0.9]), np.array([0, 0])) == pytest.approx(0.9)


def test_scores_that_are_log_odds_become_the_right_probabilities() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(4000) < 0.5).astype(np.int64)
    scores = rng.normal(size=4000) + 2 * y  # log-odds 2 s - 2
    p = reliability.platt(scores, y, np.array([0.0, 1.0, 2.0]))
    assert p == pytest.approx(1 / (1 + np.exp(-np.array([-2.0, 0.0, 2.0]))), abs=0.03)


def test_cross_fitted_reliability_of_the_planted_probe(sound_card: Card) -> None:
    found = sound_card.reliability
    assert isinstance(found, reliability.Reliability)
    assert found.brier.value is not None
    assert found.brier.value < 0.1 < found.brier_of_base_rate == 0.25
    assert sum(b.observed.n for b in found.bins) == 120


def test_detection_curve() -> None:
    found = latency.curve([0, 0, 3, None])
    assert found.caught_by == ((0, 0.5), (3, 0.75))
    assert found.median == 0.0
    assert (found.never.hits, found.never.n) == (1, 4)


def test_a_planted_direction_passes_the_gate(sound_card: Card) -> None:
    assert sound_card.faults == ()
    assert sound_card.headline.auroc.value == pytest.approx(0.98, abs=0.02)
    keys = {control.key for control in sound_card.controls} | set(sound_card.not_computed)
    assert set(NAMES) <= keys | {leak.key for leak in sound_card.leaks}
    assert isinstance(sound_card.deployed, Deployed)
    assert sound_card.deployed.recall.value > 0.8


def test_the_profile_finds_the_layer_that_knows(sound_card: Card) -> None:
    assert isinstance(sound_card.profile, profile.Profile)
    by_layer = dict(sound_card.profile.layers)
    assert by_layer[1] > 0.9
    assert abs(by_layer[0] - 0.5) < 0.2
    assert min(sound_card.profile.refits) > 0.9


def test_without_a_model_the_gate_names_what_it_did_not_see(sound: Bench, sound_card: Card) -> None:
    found = gate.faults(
        sound.auroc, 0.1, sound_card.controls, sound_card.leaks, sound_card.not_computed, waived=()
    )
    assert {fault.key for fault in found} == set(NEED_A_MODEL)
    assert all("--model" in fault.text for fault in found)
    with pytest.raises(probes.DataError, match="cannot be waived"):
        gate.faults(0.9, 0.1, [], [], {}, waived=["luck"])


def test_text_that_tells_the_label_shuts_the_gate() -> None:
    leaky = bench(side(120, "train", 0, word=leaky_word), side(120, "test", 1, word=leaky_word))
    card = protocol.evaluate(leaky, replace(OPTIONS, waived=NEED_A_MODEL))
    found = {fault.key: fault.text for fault in card.faults}
    assert {"text-words", "text-transformer"} <= set(found)
    assert "comes within 0.1 of the probe's" in found["text-words"]


def test_a_kind_that_is_no_direction_has_its_controls_too(sound: Bench) -> None:
    rule = {"kind": "attention", "aggregation": FITTERS["attention"].aggregation}
    rows = fitting.token_rows(sound.train.found, sound.probe.manifest.token_mask, (1,))
    tensors = fitting.fit("attention", rows, sound.train.labels, fitting.Options(epochs=3))
    manifest = revise(sound.probe.manifest, **rule)
    heads = replace(sound, probe=training.assemble(manifest, tensors, sound.probe.golden_inputs))
    found = {key: controls.run(heads, key, {}) for key in ("random-directions", "permuted-labels")}
    assert all(isinstance(one, Control) for one in found.values())
    directions = found["random-directions"]
    assert isinstance(directions, Control)
    assert 0.5 <= (directions.auroc.value or 0.0) < 0.95


@pytest.mark.parametrize(
    ("given", "words"),
    [(["--waive", "luck"], "cannot be waived"), (["--picture", "x.bmp"], "no picture format")],
)
def test_wrong_use_is_told_before_minutes_are_spent(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "no.safetensors", "--model", "no", "--data", "no.jsonl", *given]) == 2
    assert words in capsys.readouterr().err


def test_status_is_for_machines(sound_card: Card) -> None:
    shut = sound_card.model_copy(update={"faults": (Fault(key="surprise", text="it succeeds"),)})
    assert command.status(sound_card, gate=True, min_auroc=0.9) == 0
    assert command.status(sound_card, gate=False, min_auroc=0.999) == 1
    assert command.status(shut, gate=True, min_auroc=None) == 1
    assert command.status(shut, gate=False, min_auroc=None) == 0
    assert command.summary(shut)[-1] == "fault: surprise: it succeeds"


def test_a_probe_that_knows_nothing_is_no_better_than_its_controls() -> None:
    blind = bench(side(120, "train", 0, shift=0.0), side(120, "test", 1, shift=0.0))
    card = protocol.evaluate(blind, replace(OPTIONS, quick=True))
    assert {"permuted-labels", "random-directions", "entity-hash", "text-words"} <= {
        fault.key for fault in card.faults
    }


def test_a_data_set_whose_transcripts_leak_is_caught() -> None:
    train, test = side(40, "train", 0), side(40, "test", 1)
    copied = [
        c.model_copy(update={"messages": train.chats[i].messages}) if i % 4 < 2 else c
        for i, c in enumerate(test.chats)
    ]
    clean, leaking = (leakage.shared(bench(train, Side(chats, test.found))) for chats in (test.chats, copied))
    assert not clean.failed
    assert leaking.failed
    assert (leaking.n_positive, leaking.n_negative) == (10, 10)


def test_score_filtering_fells_a_probe_that_reads_the_words() -> None:
    rng = np.random.default_rng(0)
    inside, outside = side(400, "train", 0), side(400, "test", 1)
    text = rng.normal(size=400) + outside.labels  # what a text-only model says
    honest = bench(inside, outside)
    stands = leakage.score_filtering(honest, {"text-words": text})
    reading = replace(honest)
    reading.__dict__["scores"] = text + 0.1 * rng.normal(size=400)
    falls = leakage.score_filtering(reading, {"text-words": text})
    assert isinstance(stands, Leak)
    assert isinstance(falls, Leak)
    assert not stands.failed
    assert falls.failed
    nothing = leakage.score_filtering(honest, {"text-words": outside.labels.astype(float)})
    assert isinstance(nothing, NotComputed)
    assert "0 positives and 0 negatives" in nothing.reason


def test_the_telling_words_are_found_and_cut() -> None:
    words = leakage.telling_words(side(120, "train", 0, word=leaky_word))
    assert {"cheap", "dear"} <= set(words[:4])
    found = leakage.without_words(
        chat("c", "is Cheap glass", "dear sand", 1, answer_ids=(1, 2)), ["cheap", "dear"]
    )
    assert [m.content for m in found.messages] == ["is glass", "sand"]
    assert found.answer_ids is None


def test_contrasts_are_named_by_the_data() -> None:
    chats = [
        chat("a", "x", "y", 1, contrasts=["hard", "all_traffic"]),
        chat("b", "x", "y", 0, contrasts=["hard"]),
    ]
    assert contrasts(chats) == ["hard", "all_traffic"]
    assert contrasts([chat("a", "x", "y", 1)]) == ["all"]
    with pytest.raises(probes.DatasetInvalid, match="give a list of names"):
        contrasts([chat("a", "x", "y", 1, contrasts="hard")])


def test_markers_decide_by_the_first_one() -> None:
    case = chat("a", "x", "y", 1, markers={"positive": ["Sound"], "negative": ["cracked"]})
    assert behaviour.shows(case, "It is sound, not cracked.") is True
    assert behaviour.shows(case, "cracked. Not sound") is False
    assert behaviour.shows(case, "who knows") is None
    assert behaviour.shown([case] * 3, ["sound", "cracked", "who"]).tolist() == [1, 0, -1]
    with pytest.raises(probes.DatasetInvalid, match="positive and negative"):
        behaviour.markers(chat("a", "x", "y", 1, markers=["sound"]))


def test_the_planted_cause_is_found_and_random_directions_are_not(
    modelled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "MAX_NEW_TOKENS", 3)
    monkeypatch.setattr(causal, "MAX_PROMPTS", 12)
    found = causal.causal(modelled)
    assert isinstance(found, causal.Causal)
    assert found.effects[0].turned_off.value == found.effects[0].broken.value == 0.0
    patched = {e.along: e for e in found.effects if e.intervention == "patched"}
    assert patched["probe"].turned_off.value == patched["probe"].turned_on.value == 1.0
    assert patched["random"].turned_off.value == patched["random"].turned_on.value == 0.0
    assert found.verdict.startswith("The model uses what is read")


def test_a_verdict_needs_more_than_the_random_directions_do() -> None:
    def effect(along: causal.Along, hits: int, name: str = "patched") -> Effect:
        share = Share(hits=hits, n=10, low=0.0, high=1.0)
        return Effect(intervention=name, along=along, turned_off=share, turned_on=share, broken=share)

    base = effect("none", 0, "no intervention")
    strong = [base, effect("probe", 8), effect("class means", 1), effect("random", 1)]
    weak = [base, effect("probe", 8), effect("class means", 1), effect("random", 7)]
    assert causal.verdict(strong).startswith("The model uses")
    assert causal.verdict(weak).startswith("No evidence")


def test_an_edit_is_taken_off_again(loaded: LoadedModel) -> None:
    asked = [told(2, "test", 0)[1].prompt]
    with forward.edited(loaded, {0: lambda hidden: -hidden}):
        assert hf.generate(loaded, asked, max_new_tokens=3)[0][0] == "cracked"
    assert hf.generate(loaded, asked, max_new_tokens=3)[0][0] == "sound"


def test_surprise_of_known_logits(loaded: LoadedModel) -> None:
    expected = forward.surprise(loaded, told(4, "test", 0)[:2], batch_size=2)
    alone = forward.surprise(loaded, told(4, "test", 0)[:1])
    assert expected.shape == (2, 4)
    assert expected[:1] == pytest.approx(alone, abs=1e-5)
    assert (expected[:, 0] < 0).all()
    assert expected[0, 0] == expected[0, 1]  # one token: its mean is its lowest


def test_a_control_that_the_model_itself_gives_away_is_seen(modelled: Bench) -> None:
    found = controls.run(modelled, "random-network", {})
    assert isinstance(found, Control)
    assert modelled.auroc == 1.0
    words = controls.text_scores(modelled.train, modelled.test, ("text-words",), 0)
    read = controls.run(modelled, "text-words", words)
    assert isinstance(read, Control)
    assert read.succeeded  # bribe and wage stand in the text


def test_stress_changes_what_it_says(modelled: Bench, loaded: LoadedModel) -> None:
    case = chat("a", "Is it Sound?", "It is.", 1)
    assert stress.plain_style(case).messages[0].content == "is it sound"
    assert stress.plain_style(case).answer == "It is."
    prompt = hf.token_ids(loaded, modelled.test.chats[0])[1]
    rng = np.random.default_rng(0)
    long = stress.longer(loaded, modelled.test.chats[0], modelled.train.chats, rng)
    assert 8 * prompt <= hf.token_ids(loaded, long)[1] <= 11 * prompt
    found = stress.stress(modelled)
    assert not isinstance(found, NotComputed)
    assert [c.name for c in found] == [
        "as it is",
        "8x context",
        "multi-turn",
        "style shift",
        "bfloat16",
        "int8 weights",
        "int4 weights",
    ]
    assert all(c.auroc.value == 1.0 for c in found)


def test_quantised_weights_lie_on_the_grid(loaded: LoadedModel) -> None:
    weight = stress.quantised(loaded, 4).blocks()[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert max(len(torch.unique(row)) for row in weight) <= 15
    again = loaded.blocks()[0].mlp.up_proj.weight  # type: ignore[union-attr]
    assert len(torch.unique(again[0])) > 15


def test_the_attack_hides_the_concept_where_a_word_can(
    modelled: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack, "PRICE", 0.1)  # at full price it finds that hiding costs the behaviour itself
    found = attack.attack(modelled, 4)
    assert not isinstance(found, NotComputed)
    assert found.recall_before.value == 1.0
    assert found.recall_after.value < 0.5
    assert found.n == 22
    assert isinstance(attack.attack(modelled, 0), NotComputed)


def test_a_suffix_is_an_evasion_only_where_the_behaviour_stays() -> None:
    def found(after: int, still: int | None) -> Attack:
        one = {hits: Share(hits=hits, n=10, low=0.0, high=1.0) for hits in range(11)}
        return Attack(
            suffix="so",
            steps=1,
            n=10,
            recall_before=one[10],
            recall_random=one[8],
            recall_after=one[after],
            behaviour_after=None if still is None else one[still],
        )

    assert attack.verdict(found(0, 9)).startswith("An evasion")
    assert "hides little" in attack.verdict(found(0, 1))
    assert "not known" in attack.verdict(found(0, None))
    assert "no more than as many random words" in attack.verdict(found(8, 9))


def test_the_suffix_goes_before_the_marks_of_the_template(loaded: LoadedModel) -> None:
    case = chat("a", "is it", "sound", 1)
    marked = replace(
        loaded, tokenizer=loaded.tokenizer.__class__(tokenizer_object=loaded.tokenizer._tokenizer)
    )
    marked.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}<assistant>"
    )
    row = attack.rows(marked, case)
    words = marked.tokenizer.convert_ids_to_tokens(row.ids([5]))
    assert words == ["<user>", "is", "it", "river", "<end>", "<assistant>", "sound"]
    assert row.prompt_length(1) == 6


def test_the_gradient_of_an_affine_probe_is_its_weight(sound: Bench) -> None:
    slope = causal.gradient(probe(), sound.test.found[:3])
    assert slope[0].tolist() == [1.0] + [0.0] * 31


def test_a_card_is_json_without_nan(sound_card: Card) -> None:
    again = Card.model_validate(json.loads(sound_card.model_dump_json()))
    assert again == sound_card
    assert "NaN" not in sound_card.model_dump_json()
    assert sound_card.headline.recall_01pct == Figure(value=None)
