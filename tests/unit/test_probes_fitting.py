"""Every fit of the registry recovers what was planted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import probes
from probes import fitting, kinds
from probes.aggregation import aggregate
from probes.evaluation import auroc
from probes.fitting import FITTERS, LensSource, Options, SaeSource, TokenRows
from probes.fitting.descent import descend, held_out
from probes.fitting.pooling import POOLINGS
from probes.hf import Activations
from probes.kinds import KINDS
from probes.manifest import TokenMask
from probes.testing import fake_aggregation, fake_manifest

torch.set_num_threads(1)

L, D, AXIS = 2, 8, 3


def planted(
    n: int = 240, *, shift: float = 3.0, seed: int = 0, loud: float = 5.0
) -> tuple[TokenRows, np.ndarray]:
    """Conversations of 2 to 5 tokens; positives are shifted along AXIS of the last layer.

    Axis 5 has a large mean and a large variance (`loud`) that say nothing.
    """
    g = torch.Generator().manual_seed(seed)
    labels = np.arange(n) % 2
    counts = 2 + np.arange(n) % 4
    hidden = torch.randn(int(counts.sum()), L, D, generator=g)
    hidden[:, :, 5] = 100 + loud * hidden[:, :, 5]
    hidden[:, -1, AXIS] += shift * torch.from_numpy(np.repeat(labels, counts)).float()
    groups = tuple(f"g{i // 2}" for i in range(n))
    return TokenRows(hidden, np.cumsum([0, *counts]), groups), labels


def scaled(weight: torch.Tensor) -> torch.Tensor:
    """[L, d] -> [L * d] what a step of one standard deviation along each axis changes."""
    deviation = torch.ones(L, D)
    deviation[:, 5] = 5
    return (weight * deviation).flatten()


AFFINE = [
    name for name, found in FITTERS.items() if KINDS[found.kind, found.scoring] is KINDS["affine", "logit"]
]


ON_MEANS = ("logistic", "ridge", "difference_of_means", "mass_mean", "lda")


@pytest.mark.parametrize(
    ("name", "pooled"), [*((name, False) for name in AFFINE), *((name, True) for name in ON_MEANS)]
)
def test_affine_fits_find_the_planted_direction(name: str, pooled: bool) -> None:
    rows, labels = planted(loud=1.0 if name == "lat" else 5.0)
    tensors = fitting.fit(name, rows, labels, Options(pooled=pooled, epochs=30))
    step = scaled(tensors["weight"]) if name != "lat" else tensors["weight"].flatten()
    if name == "difference_of_means":
        step = step.reshape(L, D).clone()
        step[:, 5] = 0  # its scale, not its meaning, shows there
        step = step.flatten()
    assert step.argmax() == D + AXIS
    assert step[D + AXIS] / step.norm() > (0.75 if FITTERS[name].through else 0.9)
    score = (rows.hidden * tensors["weight"]).sum((1, 2)) + tensors["bias"]
    means = [float(score[labels[rows.owner] == y].mean()) for y in (0, 1)]
    assert means[0] < 0 < means[1]


def value_of(name: str, tensors: dict[str, torch.Tensor], rows: TokenRows, options: Options) -> np.ndarray:
    """[c] what a probe of these tensors gives for each conversation."""
    probe = made(name, tensors, rows, options)
    states = probe.token_state(rows.hidden)
    return np.array([probe.aggregate(states[a:b]) for a, b in pairwise(rows.offsets)])


def made(name: str, tensors: dict[str, torch.Tensor], rows: TokenRows, options: Options) -> probes.Probe:
    """A probe as the registry describes it."""
    found = FITTERS[name]
    scoring = found.scoring if options.lens is None else options.lens.norm
    manifest = fake_manifest(
        kind=found.kind,
        scoring=scoring,
        layers=tuple(range(rows.hidden.shape[1])),
        d_model=rows.hidden.shape[2],
        aggregation=options.aggregation or found.aggregation,
    )
    kinds.check_shapes(kinds.of(manifest), tensors, rows.hidden.shape[1], rows.hidden.shape[2])
    kinds.check_values(manifest, tensors)
    inputs = rows.hidden[:4].clone()
    golden = kinds.golden(kinds.of(manifest), tensors, inputs)
    return probes.Probe(manifest, tensors, inputs, golden[kinds.GOLDEN_SCORES])


@pytest.mark.parametrize("name", sorted(name for name, found in FITTERS.items() if found.labels == "binary"))
def test_every_binary_fit_separates_conversations_that_it_has_not_seen(name: str) -> None:
    options = Options(epochs=30, heads=2, hidden=4, dictionary=32, features=4)
    loud = 1.0 if name in ("lat", "sae") else 5.0
    tensors = fitting.fit(name, *planted(loud=loud), options, seed=1)
    rows, labels = planted(120, seed=9, loud=loud)
    values = value_of(name, tensors, rows, options)
    # Nothing but the shift is sparse here, and an autoencoder looks for sparse features.
    assert auroc(values[labels == 1], values[labels == 0]) > (0.9 if name == "sae" else 0.97)


@pytest.mark.parametrize("name", ["mlp", "attention", "ccs", "sae", "lat"])
def test_the_same_seed_gives_the_same_tensors(name: str) -> None:
    options = Options(epochs=3, heads=2, hidden=4, dictionary=16, features=4)
    first, again = (fitting.fit(name, *planted(60), options, seed=5) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_attention_finds_the_one_token_that_tells() -> None:
    """One token in thirty carries the sign, and a mark that says so; the others carry noise that is as loud."""
    g = torch.Generator().manual_seed(0)
    n, length = 300, 30
    hidden = torch.randn(n, length, 1, D, generator=g)
    labels = np.arange(n) % 2
    hidden[..., 0, 1] = 0.1 * hidden[..., 0, 1]
    at = torch.randint(length, (n,), generator=g)
    hidden[torch.arange(n), at, 0, 1] = 5.0
    hidden[torch.arange(n), at, 0, AXIS] = torch.from_numpy(2.0 * labels - 1.0).float() * 2
    rows = TokenRows(hidden.flatten(0, 1), np.arange(n + 1) * length)
    options = Options(heads=1, learning_rate=3e-2)
    tensors = fitting.fit("attention", rows, labels, options)
    assert tensors["query"][0, :, 0].argmax() == 1
    values = value_of("attention", tensors, rows, options)
    plain = value_of("difference_of_means", fitting.fit("difference_of_means", rows, labels), rows, Options())
    assert auroc(values[labels == 1], values[labels == 0]) > 0.98
    assert auroc(plain[labels == 1], plain[labels == 0]) < 0.9


def test_an_mlp_learns_what_no_direction_tells() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(1500, 1, 4, generator=g)
    labels = (hidden[:, 0, 0] * hidden[:, 0, 1] > 0).long().numpy()
    rows = TokenRows(hidden, np.arange(1501))
    options = Options(hidden=12, batch=8)
    tensors = fitting.fit("mlp", rows, labels, options)
    values = value_of("mlp", tensors, rows, options)
    assert auroc(values[labels == 1], values[labels == 0]) > 0.95
    straight = value_of("logistic", fitting.fit("logistic", rows, labels), rows, Options())
    assert auroc(straight[labels == 1], straight[labels == 0]) < 0.6


@pytest.mark.parametrize("name", ["lat", "ccs"])
def test_contrast_pairs_give_the_direction_without_labels(name: str) -> None:
    rows, labels = planted(loud=1.0)
    # Nearly half of the groups are told the wrong way round: only the sign is read from labels.
    scrambled = labels.copy()
    scrambled[: len(labels) // 2 - 20] = 1 - scrambled[: len(labels) // 2 - 20]
    step = fitting.fit(name, rows, scrambled)["weight"].flatten()
    assert step.abs().argmax() == D + AXIS
    assert step[D + AXIS] / step.norm() > 0.9


@pytest.mark.parametrize("name", ["lat", "ccs"])
def test_the_sign_comes_from_pairs_and_not_from_what_else_the_classes_differ_in(name: str) -> None:
    """Negatives that are in no pair lie beyond the positives along the axis."""
    rows, labels = planted(120, loud=1.0)
    beyond = torch.zeros(400, *rows.hidden.shape[1:])
    beyond[:, 1, AXIS] = 40.0
    groups = (*rows.groups, *(f"beyond {i}" for i in range(400)))
    hidden = torch.cat([rows.hidden, beyond])
    offsets = np.concatenate([rows.offsets, rows.offsets[-1] + 1 + np.arange(400)])
    mixed = TokenRows(hidden, offsets, groups)
    weight = fitting.fit(name, mixed, np.concatenate([labels, np.zeros(400, np.int64)]))["weight"].flatten()
    assert weight[D + AXIS] > 0


def test_pairs_are_needed() -> None:
    rows, labels = planted()
    alone = TokenRows(rows.hidden, rows.offsets, tuple(map(str, range(rows.conversations))))
    with pytest.raises(probes.DataError, match="no contrast pairs"):
        fitting.fit("lat", alone, labels)


def classes_along_an_axis(n: int = 600, n_classes: int = 3) -> tuple[TokenRows, np.ndarray]:
    labels = np.arange(n) % n_classes
    hidden = torch.randn(n, L, D, generator=torch.Generator().manual_seed(3))
    hidden[:, -1, AXIS] += 3.0 * torch.from_numpy(labels).float()
    return TokenRows(hidden, np.arange(n + 1)), labels


def test_multiclass_tells_the_log_odds_of_its_class() -> None:
    rows, labels = classes_along_an_axis()
    options = Options(positive_class=2)
    values = value_of("multiclass", fitting.fit("multiclass", rows, labels, options), rows, options)
    assert ((values > 0) == (labels == 2)).mean() > 0.9


def test_two_classes_are_the_binary_regression() -> None:
    rows, labels = planted()
    two = value_of("multiclass", fitting.fit("multiclass", rows, labels), rows, Options())
    one = value_of("logistic", fitting.fit("logistic", rows, labels), rows, Options())
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3)


def test_levels_are_told_in_their_order() -> None:
    rows, labels = classes_along_an_axis(n_classes=4)
    values = value_of("level", fitting.fit("level", rows, labels), rows, Options())
    assert np.abs(values - labels).mean() < 0.3


def test_ordinal_recovers_slope_and_cuts() -> None:
    """u = 2 x, cuts -2, 0.5 and 3, by the model's own definition."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000) * 2
    u = 2 * x + rng.logistic(size=4000)
    labels = np.searchsorted([-2.0, 0.5, 3.0], u)
    hidden = torch.from_numpy(np.stack([x, rng.normal(size=4000)], 1)).float().unsqueeze(1)
    rows = TokenRows(hidden, np.arange(4001))
    # Classes weigh alike, which moves cuts as resampling would, so that each is drawn as often.
    found = fitting.fit("ordinal", rows, labels, Options(regularisation=1e4))
    assert found["weight"][0].tolist() == pytest.approx([2.0, 0.0], abs=0.25)
    assert (found["cuts"].diff() > 0).all()
    assert found["cuts"].tolist() == pytest.approx([-2.0, 0.5, 3.0], abs=0.8)


def test_a_concept_is_its_mean_less_the_grand_mean() -> None:
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 4.0], [2.0, 0.0]]).unsqueeze(1)
    rows = TokenRows(hidden, np.arange(5))
    found = fitting.fit("concept", rows, [0, 1, 1, 2])["direction"]
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0]]) - torch.tensor([[1.0, 1.0]]))


def believers(n: int = 200) -> tuple[TokenRows, np.ndarray]:
    """Belief along axis 0 at the one prompt token, what is asserted along axis 1 at the three answer tokens."""
    g = torch.Generator().manual_seed(2)
    labels = np.arange(n) % 4
    hidden = torch.randn(n, 4, 1, D, generator=g)
    hidden[:, 0, 0, 0] += torch.from_numpy(6.0 * (labels // 2) - 3.0).float()
    hidden[:, 1:, 0, 1] += torch.from_numpy(6.0 * (labels % 2) - 3.0).float().unsqueeze(1)
    generated = np.tile([False, True, True, True], n)
    return TokenRows(hidden.flatten(0, 1), np.arange(n + 1) * 4, (), generated), labels


def test_a_gap_opens_where_belief_and_assertion_part() -> None:
    rows, labels = believers()
    tensors = fitting.fit("gap", rows, labels)
    assert tensors["weight"][0, :, 0].abs().argmax() == 0
    assert tensors["weight"][0, :, 1].abs().argmax() == 1
    values = value_of("gap", tensors, rows, Options())
    lying = (labels == 1) | (labels == 2)
    assert ((values > 0) == lying).mean() > 0.98


def test_a_gap_needs_both_kinds_of_rows() -> None:
    rows, labels = believers()
    with pytest.raises(probes.DataError, match="prompt rows and answer rows"):
        fitting.fit("gap", TokenRows(rows.hidden, rows.offsets), labels)
    with pytest.raises(probes.DataError, match="asserted is 1"):
        fitting.fit("gap", rows, labels | 1)


def test_sae_features_that_tell_are_picked_out_of_a_given_encoder() -> None:
    rows, labels = planted()
    encoder = torch.eye(L * D).reshape(L, D, L * D)
    source = SaeSource(encoder, torch.full((L * D,), -0.5), torch.full((L * D,), 0.1))
    options = Options(sae=source, features=1)
    tensors = fitting.fit("sae", rows, labels, options)
    assert tensors["encoder"][1, AXIS, 0] == 1
    assert tensors["weight"].item() > 0


def language(n: int = 400, vocabulary: int = 24, width: int = 8) -> tuple[TokenRows, LensSource]:
    """An early layer whose stream is the last one's, shifted and with one direction turned round."""
    g = torch.Generator().manual_seed(4)
    unembedding = torch.randn(vocabulary, width, generator=g)
    last = torch.randn(n, width, generator=g)
    turned = torch.nn.functional.normalize(torch.randn(width, generator=g), dim=0)
    early = last - 2 * (last @ turned)[:, None] * turned - 1.5
    final = torch.nn.functional.rms_norm(last, (width,))
    source = LensSource(unembedding, torch.ones(width), "rms_norm", 1e-6, (3, 5), final=final)
    return TokenRows(early.unsqueeze(1), np.arange(n + 1)), source


def test_the_tuned_lens_reads_what_the_logit_lens_cannot() -> None:
    rows, source = language()
    assert source.final is not None
    mass = (source.final @ source.unembedding.T).softmax(-1)[:, [3, 5]].sum(-1)
    truth = (mass / (1 - mass)).log().numpy()
    errors = {}
    for name in ("logit_lens", "tuned_lens"):
        options = Options(lens=source, rank=2, epochs=100)
        values = value_of(name, fitting.fit(name, rows, np.zeros(len(truth)), options), rows, options)
        errors[name] = np.abs(values - truth).mean() / truth.std()
    assert errors["tuned_lens"] < 0.15
    assert errors["logit_lens"] > 0.5


def test_the_logit_lens_is_exact_on_the_last_layer() -> None:
    rows, source = language()
    options = Options(lens=source)
    last = TokenRows(3.0 * source.final.unsqueeze(1), rows.offsets)  # type: ignore[union-attr]
    values = value_of("logit_lens", fitting.fit("logit_lens", last, np.zeros(400), options), last, options)
    mass = (source.final @ source.unembedding.T).softmax(-1)[:, [3, 5]].sum(-1)  # type: ignore[operator]
    np.testing.assert_allclose(values, (mass / (1 - mass)).log(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tracked": ()}, "tracked"),
        ({"tracked": (3, 99)}, "lie outside"),
        ({"others": (3,)}, "overlap"),
        ({"final": None}, "final hidden states None"),
        ({"unembedding": torch.zeros(24, 5)}, "reads 5 dimensions"),
    ],
)
def test_a_lens_without_its_model_is_refused(changes: dict[str, Any], words: str) -> None:
    rows, source = language()
    with pytest.raises(probes.DataError, match=words):
        fitting.fit("tuned_lens", rows, np.zeros(400), Options(lens=replace(source, **changes)))
    with pytest.raises(probes.DataError, match=r"Options\.lens"):
        fitting.fit("tuned_lens", rows, np.zeros(400))


@pytest.mark.parametrize("method", sorted(POOLINGS))
def test_what_is_trained_through_is_what_is_deployed(method: str) -> None:
    rule, rng = fake_aggregation(method), np.random.default_rng(0)
    lengths = np.array([1, 2, 3, 4, 9])
    states = rng.normal(size=(5, 9, 4 if "attention" in method else 3 if method == "multimax" else 1)) * 3
    padded = torch.from_numpy(states).requires_grad_()
    found = POOLINGS[method](padded, torch.from_numpy(lengths), rule)
    expected = [aggregate(states[i, :n], rule) for i, n in enumerate(lengths)]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-9)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert padded.grad is not None
    for i, n in enumerate(lengths):
        assert torch.isfinite(padded.grad[i]).all()
        assert not padded.grad[i, n:].any()


def test_early_stopping_keeps_what_was_best_on_whole_groups() -> None:
    rows, labels = planted(60)
    train, held = held_out(rows, labels, 0.2, seed=0)
    assert {rows.groups[i] for i in train}.isdisjoint(rows.groups[i] for i in held)
    assert len(train) + len(held) == 60
    assert len(held) == 12
    weight = torch.zeros((), requires_grad=True)
    # The loss held out turns at 0.3; the one that is learnt from at 1.
    descend(
        [weight],
        lambda chosen: (weight - (0.3 if chosen[0] == 1 else 1.0)).square(),
        np.array([0]),
        np.array([1]),
        Options(epochs=200, learning_rate=0.02, patience=5),
        seed=0,
        batch=1,
    )
    assert float(weight.detach()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1] * 240, "give both"),
        ([0] * 240, "give both"),
        ([0, 2] * 120, "takes 0 .. 1"),
        ([0, 1], "one for each"),
    ],
)
def test_labels_that_cannot_be_fitted_are_refused(labels: list[int], words: str) -> None:
    with pytest.raises(probes.DataError, match=words):
        fitting.fit("logistic", planted()[0], labels)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(probes.DataError, match="mass_mean"):
        fitting.fit("tarot", *planted())


def test_rows_with_nan_are_refused() -> None:
    rows, labels = planted()
    rows.hidden[3, 1, 2] = torch.nan
    with pytest.raises(probes.DataError, match="NaN"):
        fitting.fit("logistic", rows, labels)


def test_long_conversations_and_large_classes_weigh_no_more() -> None:
    rows = TokenRows(torch.zeros(13, 1, 1), np.array([0, 9, 11, 13]))
    labels = np.array([1, 0, 0])
    weights = rows.row_weights(labels)
    assert weights[:9].sum() == pytest.approx(1.5)
    assert weights[9:11].sum() == pytest.approx(0.75)
    assert weights.sum() == pytest.approx(3.0)


def test_rows_of_conversations_keep_their_order_and_know_the_answer() -> None:
    found = [Activations((0, 1), torch.full((4, 2, 3), float(i)), 0, 2) for i in range(3)]
    rows = fitting.token_rows(found, TokenMask(prompt="last_k", last_k=1), (1,), ["a", "b", "c"])
    assert rows.hidden[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert rows.generated is not None
    assert rows.generated.tolist() == [False, True, True] * 3
    assert rows.means[:, 0].tolist() == [0, 1, 2]


def test_a_conversation_without_a_token_is_refused() -> None:
    found = [Activations((0,), torch.zeros(2, 1, 3), 0, 2)]
    with pytest.raises(probes.DataError, match="no token in the mask"):
        fitting.token_rows(found, TokenMask(), (0,))
