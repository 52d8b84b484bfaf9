"""Kinds, masks, aggregation and the probe itself, against planted answers."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes.aggregation import RULES
from probes.kinds import KINDS, fold_scaling
from probes.manifest import Aggregation, TokenMask
from probes.masks import mask
from probes.testing import write_artifact

torch.set_num_threads(1)

scores_of_a_token = st.floats(-1e3, 1e3, width=32)
requests = st.lists(st.tuples(scores_of_a_token, st.booleans()), max_size=40)
aggregations = st.builds(
    lambda method, alpha, least: Aggregation(
        method=method, alpha=alpha if method == "ema" else None, min_tokens=least
    ),
    st.sampled_from(sorted(RULES)),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
)


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


@given(requests, aggregations, st.sampled_from(["final", "running_sup"]), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_streaming_equals_offline_under_any_chunking(
    plain: probes.Probe, request_: list[tuple[float, bool]], rule: Aggregation, which: str, rng: object
) -> None:
    probe = with_rule(plain, rule, which)
    state = torch.tensor([[score] for score, _ in request_]).reshape(-1, 1)
    counted = np.array([inside for _, inside in request_], dtype=bool)
    stream, at, value = probe.stream(), 0, math.nan
    sizes = getattr(rng, "choices")(range(5), k=60)  # noqa: B009
    for size in [*sizes, len(request_)]:
        value = stream.update(state[at : at + size], counted[at : at + size])
        at = min(at + size, len(request_))
    assert same(value, probe.aggregate(state, counted))
    assert same(stream.statistic, probe.statistic(state, counted))
    assert stream.count == counted.sum()


@given(requests, aggregations)
@settings(max_examples=200, deadline=None)
def test_masked_tokens_never_count(
    plain: probes.Probe, request_: list[tuple[float, bool]], rule: Aggregation
) -> None:
    probe = with_rule(plain, rule)
    kept = torch.tensor([score for score, inside in request_ if inside])
    noise = torch.tensor([score if inside else 1e30 for score, inside in request_])
    counted = torch.tensor([inside for _, inside in request_], dtype=torch.bool)
    assert same(probe.aggregate(noise, counted), probe.aggregate(kept))
    assert same(probe.statistic(noise, counted), probe.statistic(kept))


@given(st.lists(scores_of_a_token, min_size=1, max_size=30), aggregations)
@settings(max_examples=200, deadline=None)
def test_running_sup_is_the_highest_prefix_value(
    plain: probes.Probe, scores: list[float], rule: Aggregation
) -> None:
    probe = with_rule(plain, rule)
    prefixes = [probe.aggregate(np.array(scores[: n + 1])) for n in range(len(scores))]
    eligible = prefixes[rule.min_tokens - 1 :]
    assert same(probe.statistic(np.array(scores)), max(eligible) if eligible else prefixes[-1])


def test_planted_aggregates(plain: probes.Probe) -> None:
    scores = torch.tensor([-4.0, 2.0, 1.0, -1.0])
    planted: dict[str, tuple[Aggregation, float, float]] = {
        "mean": (Aggregation(method="mean"), -0.5, -1 / 3),
        "max of negatives is no zero": (Aggregation(method="max"), 2.0, 2.0),
        "last": (Aggregation(method="last"), -1.0, 2.0),
        "ema": (Aggregation(method="ema", alpha=0.5), -0.5, 0.0),
        "mean after four": (Aggregation(method="mean", min_tokens=4), -0.5, -0.5),
        "too short": (Aggregation(method="mean", min_tokens=9), -0.5, -0.5),
    }
    for name, (rule, final, sup) in planted.items():
        probe = with_rule(plain, rule)
        assert probe.aggregate(scores) == pytest.approx(final), name
        assert probe.statistic(scores) == pytest.approx(sup), name
    assert with_rule(plain, Aggregation(method="max")).aggregate(torch.tensor([-3.0, -2.0])) == -2.0


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


@pytest.mark.parametrize(("kind", "scoring"), sorted(KINDS))
def test_score_matches_its_formula_and_the_split_arithmetic(tmp_path: Path, kind: str, scoring: str) -> None:
    probe = probe_with(tmp_path, kind=kind, scoring=scoring, layers=(0, 3, 7), d_model=6)
    hidden = torch.randn(11, 3, 6, generator=torch.Generator().manual_seed(1))
    formulas: dict[str, Callable[[], torch.Tensor]] = {
        "logit": lambda: (hidden * probe.tensors["weight"]).sum((1, 2)) + probe.tensors["bias"],
        "projection": lambda: (
            (hidden * probe.tensors["direction"]).sum(-1) / probe.tensors["direction"].norm(dim=-1)
        ).mean(-1),
        "cosine": lambda: torch.cosine_similarity(hidden, probe.tensors["direction"][None], dim=-1).mean(-1),
    }
    scores = probe.score_tokens(hidden)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, formulas[scoring](), rtol=1e-5, atol=1e-5)
    projections = torch.stack([hidden[:, i] @ probe.columns[i] for i in range(3)], dim=1)
    norms = hidden.square().sum(-1) if probe.needs_norm else None
    torch.testing.assert_close(probe.token_scores(probe.state_from_projections(projections, norms)), scores)
    torch.testing.assert_close(probe.token_state(hidden), scores[:, None])
    assert probe.columns.shape == (3, 6, 1)
    assert probe.selftest() <= 1e-5
    assert probe.score_tokens(hidden.bfloat16()).dtype == torch.float32


def test_zero_residual_has_cosine_zero(tmp_path: Path) -> None:
    probe = probe_with(tmp_path, kind="steering", scoring="cosine")
    assert probe.score_tokens(torch.zeros(2, 2, 4)).tolist() == [0.0, 0.0]


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


def test_mask_of_a_batch_takes_a_prompt_length_for_each_row() -> None:
    found = mask(np.array([0, 1, 2, 5, 6]), np.array([2, 2, 2, 6, 6]), TokenMask(prompt="last_k", last_k=1))
    assert found.tolist() == [False, True, True, True, True]


def test_import_loads_neither_sklearn_nor_transformers() -> None:
    code = (
        "import sys, probes;"
        "print([m for m in ('sklearn', 'transformers', 'scipy', 'vllm', 'monitor') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
