"""Kinds, masks, aggregation and the probe itself, against planted answers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes.aggregation import RULES
from probes.kinds import fold_scaling
from probes.manifest import Aggregation, TokenMask
from probes.masks import mask, span
from probes.method import PARAMETERS
from probes.testing import fake_aggregation, write_artifact
from tests.unit import nursery

torch.set_num_threads(1)

numbers = st.floats(-1e3, 1e3, width=32)
WIDTH = {  # state numbers a token
    "multimax": 3,
    "attention": 4,
    "rolling_attention": 4,
    "feature_max": 3,
    "mean_log_odds": 3,
    "mean_level": 3,
    "gap": 2,
    "members": 7,
}
Request = list[tuple[list[float], bool]]


@st.composite
def aggregations(draw: st.DrawFn) -> Aggregation:
    method = draw(st.sampled_from(sorted(RULES)))
    drawn = {
        "alpha": draw(st.floats(0.01, 1.0)),
        "window": draw(st.integers(1, 6)),
        "temperature": draw(st.sampled_from([0.5, 5.0, 100.0])),
        "reference": draw(st.floats(-5.0, 5.0)),
        "heads": draw(st.sampled_from(["max_then_sum", "sum_then_max"])),
    }
    own = {name: value for name, value in drawn.items() if method in PARAMETERS[name]}
    return fake_aggregation(method, **own, min_tokens=draw(st.integers(3 if method == "gap" else 1, 8)))


def requests(rule: Aggregation, least: int = 0) -> st.SearchStrategy[Request]:
    token = st.lists(numbers, min_size=WIDTH.get(rule.method, 1), max_size=WIDTH.get(rule.method, 1))
    return st.lists(st.tuples(token, st.booleans()), min_size=least, max_size=30)


def split(request: Request, rule: Aggregation) -> tuple[np.ndarray, np.ndarray]:
    """(states [T, K], mask [T])"""
    states = np.array([state for state, _ in request], np.float64).reshape(-1, WIDTH.get(rule.method, 1))
    return states, np.array([inside for _, inside in request], dtype=bool)


def probe_with(tmp_path: Path, **changes: object) -> probes.Probe:
    return probes.load(write_artifact(tmp_path / "p.safetensors", **changes))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> probes.Probe:
    return probe_with(tmp_path_factory.mktemp("plain"))


def with_rule(plain: probes.Probe, rule: Aggregation, statistic: str = "running_sup") -> probes.Probe:
    revised = probes.manifest.revise(plain.manifest, aggregation=rule, statistic=statistic)
    return probes.Probe(revised, plain.tensors, plain.golden_inputs, plain.golden_scores)


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)


@given(st.data(), aggregations(), st.sampled_from(["final", "running_sup"]))
@settings(max_examples=250, deadline=None)
def test_streaming_equals_offline_under_any_chunking(
    plain: probes.Probe, data: st.DataObject, rule: Aggregation, which: str
) -> None:
    probe = with_rule(plain, rule, which)
    states, counted = split(data.draw(requests(rule)), rule)
    stream, at, value = probe.stream(), 0, math.nan
    while at < len(states):
        size = data.draw(st.integers(0, 7))
        value = stream.update(states[at : at + size], counted[at : at + size])
        at += size
    assert same(value, probe.aggregate(states, counted))
    assert same(stream.statistic, probe.statistic(states, counted))
    assert stream.count == counted.sum()


@given(st.data(), aggregations())
@settings(max_examples=100, deadline=None)
def test_masked_tokens_never_count(plain: probes.Probe, data: st.DataObject, rule: Aggregation) -> None:
    probe = with_rule(plain, rule)
    states, counted = split(data.draw(requests(rule)), rule)
    noise = np.where(counted[:, None], states, 1e30)
    assert same(probe.aggregate(noise, counted), probe.aggregate(states[counted]))
    assert same(probe.statistic(noise, counted), probe.statistic(states[counted]))


@given(st.data(), aggregations())
@settings(max_examples=100, deadline=None)
def test_running_sup_is_the_highest_prefix_value(
    plain: probes.Probe, data: st.DataObject, rule: Aggregation
) -> None:
    probe = with_rule(plain, rule)
    states, _ = split(data.draw(requests(rule, least=1)), rule)
    prefixes = [probe.aggregate(states[: n + 1]) for n in range(len(states))]
    eligible = prefixes[rule.min_tokens - 1 :]
    assert same(probe.statistic(states), max(eligible) if eligible else prefixes[-1])


@pytest.mark.parametrize("method", sorted(RULES))
def test_what_a_stream_remembers_does_not_grow(plain: probes.Probe, method: str) -> None:
    stream, sizes = with_rule(plain, fake_aggregation(method)).stream(), set()
    for _ in range(3):
        stream.update(np.random.default_rng(0).normal(size=(40, WIDTH.get(method, 1))))
        sizes.add(remembered(stream._carry))
    assert len(sizes) == 1


def remembered(carry: object) -> int:
    return sum(map(remembered, carry)) if isinstance(carry, tuple) else int(np.size(carry))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(set(RULES) - {"multimax", "feature_max", "mean_level"}))
def test_states_of_another_width_are_refused(plain: probes.Probe, method: str) -> None:
    width = 1 if method == "mean_log_odds" else 5
    for statistic in ("final", "running_sup"):
        with pytest.raises(ValueError, match="state has K="):
            with_rule(plain, fake_aggregation(method), statistic).statistic(np.ones((4, width)))


def e(**fields: object) -> Aggregation:
    return Aggregation.model_validate(fields)


PLANTED: dict[str, tuple[Aggregation, list[object], float, float]] = {
    "mean": (e(), [-4, 2, 1, -1], -0.5, -1 / 3),
    "max of negatives is no zero": (e(method="max"), [-3, -2], -2, -2),
    "max": (e(method="max"), [-4, 2, 1, -1], 2, 2),
    "last": (e(method="last"), [-4, 2, 1, -1], -1, 2),
    "ema": (e(method="ema", alpha=0.5), [-4, 2, 1, -1], -0.5, 0),
    "mean after four": (e(min_tokens=4), [-4, 2, 1, -1], -0.5, -0.5),
    "too short": (e(min_tokens=9), [-4, 2, 1, -1], -0.5, -0.5),
    "cusum": (e(method="cusum", reference=1), [-4, 3, 2, -1], 1, 3),
    "softmax": (e(method="softmax", temperature=1 / math.log(3)), [0, 1], 0.75, 0.75),
    "rolling mean": (e(method="rolling_mean", window=2), [-4, -2, -6, -8], -3, -3),
    "shorter than a window": (e(method="rolling_mean", window=9), [-4, -2], -3, -3),
    "max then sum": (e(method="multimax", heads="max_then_sum"), [[-1, -5], [-3, -2]], -3, -3),
    "sum then max": (e(method="multimax", heads="sum_then_max"), [[-1, -5], [-3, -2]], -5, -5),
    "attention": (e(method="attention"), [[0, 4], [math.log(3), 8], [-900, 1e9]], 7, 7),
    "two heads": (e(method="attention"), [[0, 0, 4, 1], [0, -900, 8, 1e9]], 7, 7),
    "rolling attention": (
        e(method="rolling_attention", window=2, heads="sum_then_max"),
        [[0, 4], [0, 8], [0, 2], [900, 1]],
        6,
        6,
    ),
    "features": (e(method="feature_max"), [[2, -1, 0.5], [0, -4, 0.5]], -1.5, 1.5),
    "classes": (e(method="mean_log_odds"), [[4, 0, 0], [0, 0, 0]], 2 - math.log(2), 4 - math.log(2)),
    "level": (e(method="mean_level"), [[0, 0, 0], [-900, 0, 900]], 2, 2),
    "a gap": (e(method="gap", belief_tokens=1, min_tokens=2), [[9, -9], [-9, -3], [-9, -7]], 5, 5),
    "no gap": (e(method="gap", belief_tokens=1, min_tokens=2), [[-9, 9], [9, -5]], -5, -5),
}


@pytest.mark.parametrize(("rule", "states", "final", "sup"), PLANTED.values(), ids=PLANTED)
def test_planted_aggregates(
    plain: probes.Probe, rule: Aggregation, states: list[object], final: float, sup: float
) -> None:
    probe = with_rule(plain, rule)
    assert probe.aggregate(np.array(states, float)) == pytest.approx(
        final, abs=0.05 if rule.method == "gap" else 1e-6
    )
    assert probe.statistic(np.array(states, float)) == pytest.approx(
        sup, abs=0.05 if rule.method == "gap" else 1e-6
    )


def test_every_method_is_planted() -> None:
    assert {rule.method for rule, *_ in PLANTED.values()} == set(RULES) - {"members"}


def test_an_ensemble_is_the_weighted_sum_of_its_members(plain: probes.Probe) -> None:
    states = np.random.default_rng(0).normal(size=(9, 7))
    found = with_rule(plain, fake_aggregation("members")).aggregate(states)
    one = with_rule(plain, Aggregation()).aggregate(states[:, :1])
    other = with_rule(plain, Aggregation(method="attention")).aggregate(states[:, 1:])
    assert found == pytest.approx(0.5 * one - 2.0 * other)


def test_no_token_in_the_mask_is_nan_and_flags_nothing(tmp_path: Path) -> None:
    probe = probe_with(tmp_path, threshold=-1e9)
    assert math.isnan(probe.aggregate(torch.zeros(3), torch.zeros(3, dtype=torch.bool)))
    assert math.isnan(probe.aggregate(torch.zeros(0, 1)))
    assert math.isnan(probe.stream().statistic)
    assert not probe.crossed(math.nan)
    assert probe.crossed(0.0)


def test_live_alert_waits_for_min_tokens_and_never_falls(plain: probes.Probe) -> None:
    stream = with_rule(plain, Aggregation(method="last", min_tokens=3)).stream()
    live = []
    for score in (9.0, 8.0, 1.0, 2.0, 0.0):
        stream.update([score])
        live.append(stream.live)
    assert np.isnan(live[:2]).all()
    assert live[2:] == [1.0, 2.0, 2.0]
    final = with_rule(plain, Aggregation(method="last"), "final").stream()
    final.update([1.0])
    assert math.isnan(final.live)
    assert final.statistic == 1.0


def test_uncalibrated_probe_says_what_to_run(plain: probes.Probe) -> None:
    with pytest.raises(probes.CalibrationError, match="probewatch calibrate"):
        plain.crossed(0.0)


def test_crossing_is_strict(tmp_path: Path) -> None:
    probe = probe_with(tmp_path, threshold=0.5)
    assert not probe.crossed(0.5)
    assert probe.crossed(0.5 + 1e-9)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1, 4), (5, 2, 3), (2, 4)])
def test_hidden_of_another_shape_is_refused(plain: probes.Probe, shape: tuple[int, ...]) -> None:
    with pytest.raises(probes.DimensionMismatch, match=r"give \[T, 2, 4\]"):
        plain.score_tokens(torch.zeros(shape))


def test_folded_scaling_is_exact_where_float32_is_not() -> None:
    rng = np.random.default_rng(0)
    weight, mean, scale = rng.normal(size=512), rng.normal(size=512) * 1e4, rng.uniform(1e-3, 1.0, size=512)
    x = mean + scale * rng.normal(size=512)
    folded, bias = fold_scaling(weight, 0.5, mean, scale)
    assert folded @ x + bias == pytest.approx(((x - mean) / scale) @ weight + 0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("token_mask", "expected"),
    [
        (TokenMask(), "0000111"),
        (TokenMask(prompt="all"), "0111111"),
        (TokenMask(prompt="all", generated=False), "0111000"),
        (TokenMask(prompt="all", skip_positions=()), "1111111"),
        (TokenMask(prompt="last_k", last_k=1), "0001111"),
        (TokenMask(prompt="last_k", last_k=1, generated=False), "0001000"),
        (TokenMask(prompt="last_k", last_k=9), "0111111"),
        (TokenMask(skip_positions=(0, 4, 6)), "0000010"),
    ],
)
def test_mask_cases(token_mask: TokenMask, expected: str) -> None:
    found = mask(np.arange(7), 4, token_mask)
    assert found.dtype == np.bool_
    assert "".join("01"[int(x)] for x in found) == expected
    assert [bool(mask([p], 4, token_mask)[0]) for p in range(7)] == found.tolist()


@given(
    length=st.integers(0, 9),
    prompt=st.integers(0, 9),
    token_mask=st.builds(
        lambda prompt, k, generated, skipped: TokenMask(
            prompt=prompt,
            last_k=k if prompt == "last_k" else None,
            generated=generated or prompt == "none",
            skip_positions=tuple(skipped),
        ),
        st.sampled_from(["none", "all", "last_k"]),
        st.integers(1, 5),
        st.booleans(),
        st.lists(st.integers(0, 9), max_size=3, unique=True),
    ),
)
def test_a_span_is_what_the_mask_counts_unless_it_is_in_pieces(
    length: int, prompt: int, token_mask: TokenMask
) -> None:
    counted = np.flatnonzero(mask(np.arange(length), prompt, token_mask)).tolist()
    found = span(length, prompt, token_mask)
    in_one_piece = not counted or len(counted) == counted[-1] - counted[0] + 1
    assert (found is not None) == in_one_piece
    if found is not None:
        assert list(range(length))[found] == counted


def test_mask_of_a_batch_takes_a_prompt_length_for_each_row() -> None:
    found = mask(np.array([0, 1, 2, 5, 6]), np.array([2, 2, 2, 6, 6]), TokenMask(prompt="last_k", last_k=1))
    assert found.tolist() == [False, True, True, True, True]


def test_import_loads_neither_sklearn_nor_transformers() -> None:
    listing = (
        "print([m for m in ('sklearn', 'transformers', 'scipy', 'vllm', 'monitor') if m in sys.modules])"
    )
    assert nursery.run(f"import sys; {listing}; import probes; {listing}", []) == ["[]\n[]\n"]
