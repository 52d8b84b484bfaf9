"""Training, calibration, evaluation and controls against planted answers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes import calibration, controls, evaluation, fitting, manifest, training
from probes.fitting import linear
from probes.hf import Activations
from probes.manifest import Aggregation, TokenMask
from probes.testing import fake_manifest
from probes.training import Setting

torch.set_num_threads(1)

D = 8
MASK = TokenMask()
DESCRIBE: dict[str, object] = {
    "name": "planted",
    "concept": "deception",
    "positive_label": "lie",
    "negative_label": "honest",
}


def planted(
    n: int, *, shift: float, seed: int, layers: tuple[int, ...] = (0, 1)
) -> tuple[list[Activations], list[int]]:
    """Conversations of 3 prompt and 2 to 6 answer tokens; positives are shifted along axis 2 of the last layer.

    Prompt tokens carry a huge value there instead: a fit that used them would be wrecked. Axis 5 has a large mean and
    variance that say nothing.
    """
    g = torch.Generator().manual_seed(seed)
    found, labels = [], []
    for i in range(n):
        length = 3 + 2 + i % 5
        hidden = torch.randn(length, len(layers), D, generator=g)
        hidden[:, :, 5] = 1e3 + 50 * hidden[:, :, 5]
        hidden[3:, -1, 2] += shift * (i % 2)
        hidden[:3, -1, 2] = -100.0 * (i % 2)
        found.append(Activations(layers, hidden, 0, 3))
        labels.append(i % 2)
    return found, labels


def setting(kind: str, layers: tuple[int, ...] = (1,)) -> Setting:
    return Setting(kind, layers, MASK, MASK, Aggregation())


@pytest.mark.parametrize("kind", ["logistic", "difference_of_means"])
def test_the_planted_direction_is_recovered(kind: str) -> None:
    found, labels = planted(400, shift=3.0, seed=0)
    weight = training.fit(setting(kind), found, labels)["weight"][0].clone()
    assert weight[2] > 0
    weight[5] = 0  # its scale, not its meaning, shows in a difference of means
    assert torch.cosine_similarity(weight, torch.eye(D)[2], dim=0) > 0.95


def test_logistic_gives_log_odds() -> None:
    # Two unit Gaussians at 0 and at s, equally likely: log-odds = s x - s^2 / 2.
    g = np.random.default_rng(0)
    y = np.arange(4000) % 2
    x = g.normal(size=(4000, 1)) + 2.0 * y[:, None]
    rows = linear.Rows(x, y, np.ones(4000))
    weight, bias = linear.fit_logistic(rows, regularisation=1e3)
    assert weight[0] == pytest.approx(2.0, abs=0.15)
    assert bias == pytest.approx(-2.0, abs=0.2)


def test_difference_of_means_is_zero_halfway() -> None:
    rows = linear.Rows(
        np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 2.0]]), np.array([0, 0, 1]), np.array([1.0, 1.0, 2.0])
    )
    weight, bias = linear.fit_difference_of_means(rows)
    assert weight.tolist() == [3.0, 2.0]
    assert weight @ np.array([2.5, 1.0]) + bias == pytest.approx(0.0)


def test_sweep_finds_the_layer_that_knows() -> None:
    train, labels = planted(200, shift=4.0, seed=0)
    held, held_labels = planted(100, shift=4.0, seed=1)
    tried = [setting(kind, (layer,)) for layer in (0, 1) for kind in ("difference_of_means", "logistic")]
    trials = training.sweep(train, labels, held, tried, evaluation.auroc_of(held_labels), DESCRIBE)
    best = training.best(trials)
    assert best.setting.layers == (1,)
    assert best.objective > 0.98
    assert abs(trials[1].objective - 0.5) < 0.2
    assert best.probe.selftest() < 1e-4
    assert len(best.probe.golden_inputs) == training.N_GOLDEN


def test_thinned_rows_are_drawn_from_both_classes() -> None:
    found, labels = planted(200, shift=1.0, seed=0)
    options = setting("logistic").options
    rows = linear.rows_of(fitting.token_rows(found, MASK, (1,)), np.asarray(labels), options)
    fewer = linear.thinned(rows, 100)
    assert len(fewer.x) == len(fewer.y) == len(fewer.weight) == 100
    assert 0.3 < fewer.y.mean() < 0.7
    assert linear.thinned(rows, 10_000) is rows


def test_two_layers_are_one_score() -> None:
    train, labels = planted(200, shift=4.0, seed=0)
    tensors = training.fit(setting("logistic", (0, 1)), train, labels)
    assert tensors["weight"].shape == (2, D)


@pytest.mark.parametrize(
    ("labels", "poison", "words"),
    [([1, 1], 0.0, "0 negative"), ([0, 1], math.nan, "NaN"), ([0, 1], math.inf, "NaN or infinity")],
)
def test_unusable_rows_are_refused(labels: list[int], poison: float, words: str) -> None:
    hidden = torch.full((5, 1, 2), poison)
    with pytest.raises(probes.DataError, match=words):
        training.fit(setting("logistic", (0,)), [Activations((0,), hidden, 0, 1)] * 2, labels)


def test_unknown_kind_is_refused() -> None:
    found, labels = planted(4, shift=1.0, seed=0)
    with pytest.raises(probes.DataError, match="difference_of_means"):
        training.fit(setting("tarot"), found, labels)


@given(st.integers(1, 400), st.sampled_from([0.5, 0.1, 0.05, 0.01]), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_threshold_is_the_order_statistic(n: int, fpr: float, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(n).astype(float)
    if n < 1 / fpr - 1:
        with pytest.raises(probes.CalibrationError, match=f"at least {round(1 / fpr) - 1}"):
            calibration.threshold_at(scores, fpr)
        return
    k = math.ceil(round((n + 1) * (1 - fpr), 6))
    assert calibration.threshold_at(scores, fpr) == sorted(scores)[k - 1]
    assert (scores > calibration.threshold_at(scores, fpr)).mean() <= fpr


def test_nominal_rate_holds_on_average_over_calibrations() -> None:
    rng = np.random.default_rng(0)
    rates = [
        (rng.normal(size=500) > calibration.threshold_at(rng.normal(size=199), 0.05)).mean()
        for _ in range(400)
    ]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.004)


def test_clopper_pearson_against_published_values() -> None:
    # 10 of 100 and 0 of 50, two-sided 95%: Newcombe 1998 and the rule of three's exact form 1 - 0.025^(1/50).
    assert calibration.clopper_pearson(10, 100) == pytest.approx((0.0490, 0.1762), abs=1e-4)
    assert calibration.clopper_pearson(0, 50) == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))
    assert calibration.clopper_pearson(50, 50)[1] == 1.0
    with pytest.raises(probes.CalibrationError):
        calibration.clopper_pearson(5, 4)


def test_calibrated_manifest_holds_both_sets_and_acts_by_concept() -> None:
    benign, second = np.arange(1000.0), np.arange(0.0, 2000.0, 2.0)
    found = calibration.calibrated(fake_manifest(), benign, second, 0.01)
    assert found.threshold == 990.0
    assert found.default_action == "alert"
    assert found.calibration is not None
    assert found.calibration.realised_false_positives == 504
    assert found.calibration.realised_fpr == pytest.approx(0.504)
    assert found.benign_quantiles is not None
    assert found.benign_quantiles.iqr == pytest.approx(499.5)
    assert (
        calibration.calibrated(fake_manifest(concept="weather"), benign, second, 0.01).default_action
        == "observe"
    )
    assert manifest.parse(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("benign", "second", "fpr", "words"),
    [
        (np.zeros(98), np.zeros(9), 0.01, "at least 99"),
        (np.full(99, np.nan), np.zeros(9), 0.01, "NaN"),
        (np.zeros(99), np.zeros(0), 0.01, "second benign set"),
        (np.zeros(99), np.zeros(9), 0.0, "between 0 and 1"),
    ],
)
def test_calibration_refuses(benign: np.ndarray, second: np.ndarray, fpr: float, words: str) -> None:
    with pytest.raises(probes.CalibrationError, match=words):
        calibration.calibrated(fake_manifest(), benign, second, fpr)


def test_auroc_of_known_cases() -> None:
    assert evaluation.auroc([2, 3], [0, 1]) == 1.0
    assert evaluation.auroc([0, 1], [2, 3]) == 0.0
    assert evaluation.auroc([1, 1], [1, 1]) == 0.5
    assert evaluation.auroc([1, 3], [0, 2]) == 0.75
    assert math.isnan(evaluation.auroc([], [1]))
    rng = np.random.default_rng(0)  # shift 1 between unit Gaussians: Phi(1 / sqrt 2)
    assert evaluation.auroc(rng.normal(size=20000) + 1, rng.normal(size=20000)) == pytest.approx(
        0.7602, abs=0.01
    )


def test_recall_at_a_rate_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)  # Phi(3 - 2.326) = 0.7499
    figure = evaluation.recall_at(0.01)
    assert figure(rng.normal(size=20000) + 3, rng.normal(size=20000)) == pytest.approx(0.75, abs=0.02)
    assert math.isnan(figure(np.ones(3), np.zeros(50)))


def test_clustered_interval_is_wider_where_groups_share_their_luck() -> None:
    rng = np.random.default_rng(0)
    n_groups, size = 30, 20
    luck = np.repeat(rng.normal(size=n_groups), size)
    labels = np.repeat(np.arange(n_groups) % 2, size)
    scores = luck + labels + 0.1 * rng.normal(size=n_groups * size)
    groups = np.repeat([f"g{i}" for i in range(n_groups)], size).tolist()
    alone = [str(i) for i in range(n_groups * size)]
    clustered = evaluation.bootstrap(evaluation.auroc, scores, labels, groups, resamples=300)
    naive = evaluation.bootstrap(evaluation.auroc, scores, labels, alone, resamples=300)
    assert clustered.value == naive.value
    assert clustered.low <= clustered.value <= clustered.high
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)


def flat_probe(**changes: object) -> probes.Probe:
    """Scores a token by its first coordinate."""
    found = fake_manifest(layers=(0,), d_model=2, **changes)
    tensors = {"weight": torch.tensor([[1.0, 0.0]]), "bias": torch.tensor(0.0)}
    return training.assemble(found, tensors, torch.zeros(1, 1, 2))


def flat(scores: Sequence[float], prompt_length: int) -> Activations:
    hidden = torch.zeros(len(scores), 1, 2)
    hidden[:, 0, 0] = torch.tensor(scores)
    return Activations((0,), hidden, 0, prompt_length)


def test_statistics_take_the_mask_and_refuse_an_empty_one() -> None:
    probe = flat_probe(statistic="final")
    assert evaluation.statistics(probe, [flat([9, 9, 1, 3], 2)]).tolist() == [2.0]
    with pytest.raises(probes.DataError, match="score NaN"):
        evaluation.statistics(probe, [flat([9, 9, math.nan, 3], 2)])
    with pytest.raises(probes.DataError, match="1 of 1 conversations score NaN or infinity"):
        evaluation.statistics(flat_probe(), [flat([9, 9, 3, -math.inf], 2)])
    with pytest.raises(probes.DataError, match="1 of 2 conversations"):
        evaluation.statistics(probe, [flat([9, 9, 1], 2), flat([9, 9], 2)])


def test_time_to_detection_counts_answer_tokens() -> None:
    rule = {"aggregation": {"method": "last"}, "threshold": 0.5}
    assert evaluation.detection_tokens(flat_probe(**rule), flat([0, 0, 0, 1, 0], 2)) == 2
    assert evaluation.detection_tokens(flat_probe(**rule), flat([0, 0, 0, 0], 2)) is None
    early = flat_probe(**rule, token_mask={"prompt": "last_k", "last_k": 1})
    assert evaluation.detection_tokens(early, flat([0, 1, 0, 0], 2)) == 0
    late = flat_probe(aggregation={"method": "last", "min_tokens": 3}, threshold=0.5)
    assert evaluation.detection_tokens(late, flat([0, 0, 1, 1, 1], 2)) == 3


def test_text_only_finds_a_word_and_nothing_else() -> None:
    texts = [f"the {'cat' if i % 2 else 'dog'} of house {i % 7}" for i in range(80)]
    labels = [i % 2 for i in range(80)]
    scores = controls.text_only(texts, labels, texts)
    assert evaluation.auroc_of(labels)(scores) == 1.0
    unrelated = [i // 2 % 2 for i in range(80)]
    held = controls.text_only(texts[:40], unrelated[:40], texts[40:])
    assert abs(evaluation.auroc_of(unrelated[40:])(held) - 0.5) < 0.25


def test_controls_fail_where_the_probe_works() -> None:
    train, labels = planted(300, shift=4.0, seed=0)
    test, test_labels = planted(200, shift=4.0, seed=1)
    trials = training.sweep(
        train, labels, test, [setting("logistic")], evaluation.auroc_of(test_labels), DESCRIBE
    )
    probe = trials[0].probe
    assert trials[0].objective > 0.98
    shuffled = controls.shuffled_labels(probe, setting("logistic"), train, labels, test, test_labels)
    drawn = controls.random_directions(probe, test, test_labels, draws=50)
    assert shuffled.median < 0.9
    assert drawn.median < 0.8
    assert drawn.highest < 0.999
    hashed = controls.entity_hash_labels([f"e{i}" for i in range(200)])
    entity = controls.refitted(probe, setting("logistic"), train[:200], hashed)
    figure = evaluation.auroc_of(controls.entity_hash_labels([f"f{i}" for i in range(200)]))
    assert abs(figure(evaluation.statistics(entity, test)) - 0.5) < 0.15
