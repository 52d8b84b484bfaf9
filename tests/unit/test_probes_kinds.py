"""Every kind against its plain formula, and through the arithmetic that a server splits it into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import probes
from probes import kinds
from probes.calibration import threshold_at
from probes.errors import ManifestInvalid, TensorInvalid
from probes.kinds import KINDS
from probes.method import Aggregation, described
from probes.testing import fake_aggregation, fake_manifest, fake_member, fake_tensors, write_artifact

torch.set_num_threads(1)

LAYERS, D = (0, 3, 7), 6
Tensors = Mapping[str, Tensor]


def affine(x: Tensor, t: Tensors) -> Tensor:
    return (x * t["weight"]).sum((1, 2)) + t["bias"]


def projection(x: Tensor, t: Tensors) -> Tensor:
    return ((x * t["direction"]).sum(-1) / t["direction"].norm(dim=-1)).mean(-1)


def cosine(x: Tensor, t: Tensors) -> Tensor:
    return torch.cosine_similarity(x, t["direction"][None], dim=-1).mean(-1)


def mlp(x: Tensor, t: Tensors) -> Tensor:
    flat = x.flatten(1)
    hidden = torch.nn.functional.linear(flat, t["weight"].flatten(0, 1).T, t["hidden_bias"]).relu()
    return hidden @ t["output"] + t["bias"]


def logits(x: Tensor, t: Tensors) -> Tensor:
    return torch.einsum("tld,ldc->tc", x, t["weight"]) + t["bias"]


def log_odds(x: Tensor, t: Tensors) -> Tensor:
    share = logits(x, t).double().softmax(-1)[:, 0]
    return (share / (1 - share)).log().float()


def level(x: Tensor, t: Tensors) -> Tensor:
    return sum(c * share for c, share in enumerate(logits(x, t).softmax(-1).T))  # type: ignore[return-value]


def ordinal(x: Tensor, t: Tensors) -> Tensor:
    return (x * t["weight"]).sum((1, 2)) - t["cuts"].median()


def heads(x: Tensor, t: Tensors) -> Tensor:
    return torch.einsum("tld,ldh->t", x, t["value"]) + t["bias"]


def sae(x: Tensor, t: Tensors) -> Tensor:
    found = torch.einsum("tld,ldf->tf", x, t["encoder"]) + t["encoder_bias"]
    return (found * (found > t["threshold"])) @ t["weight"] + t["bias"]


def gap(x: Tensor, t: Tensors) -> Tensor:
    p, q = logits(x, t).double().sigmoid().unbind(-1)
    differ = p * (1 - q) + q * (1 - p)
    return (differ / (1 - differ)).log().float()


def lens(layer_norm: bool) -> Callable[[Tensor, Tensors], Tensor]:
    def found(x: Tensor, t: Tensors) -> Tensor:
        if "up" in t:
            x = x + torch.einsum("tld,ldr,ler->tle", x, t["up"], t["down"]) + t["shift"]
        epsilon = float(t["epsilon"])
        y = (
            torch.nn.functional.layer_norm(x, x.shape[-1:], eps=epsilon)
            if layer_norm
            else torch.nn.functional.rms_norm(x, x.shape[-1:], eps=epsilon)
        )
        z = torch.einsum("tld,ldv->tlv", y, torch.cat([t["tracked"], t["others"]], -1))
        share = (z + torch.cat([t["tracked_bias"], t["others_bias"]])).double().softmax(-1)
        mass = share[..., : t["tracked"].shape[-1]].sum(-1)
        return (mass / (1 - mass)).log().mean(-1).float()

    return found


FORMULAS: dict[tuple[str, str], Callable[[Tensor, Tensors], Tensor]] = {
    **{(name, "logit"): affine for name in ("logistic", "ridge", "difference_of_means", "mass_mean")},
    **{(name, "logit"): affine for name in ("lda", "lat", "ccs", "affine")},
    **{(name, "projection"): projection for name in ("concept", "steering")},
    **{(name, "cosine"): cosine for name in ("concept", "steering")},
    ("mlp", "logit"): mlp,
    ("multiclass", "log_odds"): log_odds,
    ("multiclass", "level"): level,
    ("ordinal", "logit"): ordinal,
    ("multimax", "logit"): heads,
    ("attention", "logit"): heads,
    ("sae", "logit"): sae,
    ("gap", "logit"): gap,
    **{(name, "rms_norm"): lens(layer_norm=False) for name in ("logit_lens", "tuned_lens")},
    **{(name, "layer_norm"): lens(layer_norm=True) for name in ("logit_lens", "tuned_lens")},
}


def probe_of(kind: str, scoring: str, **changes: object) -> probes.Probe:
    manifest = fake_manifest(kind=kind, scoring=scoring, layers=LAYERS, d_model=D, **changes)
    own, inputs, scores = probes.artifact.split_golden(fake_tensors(manifest))
    return probes.Probe(manifest, own, inputs, scores)


def hidden(n: int = 11) -> Tensor:
    return torch.randn(n, len(LAYERS), D, generator=torch.Generator().manual_seed(1))


def served(probe: probes.Probe, x: Tensor) -> Tensor:
    """The states by the road of a server: products with the columns and squared norms, and no residual."""
    projections = torch.stack([x[:, i] @ probe.columns[i] for i in range(x.shape[1])], dim=1)
    return probe.state_from_projections(projections, x.square().sum(-1) if probe.needs_norm else None)


@pytest.mark.parametrize(("kind", "scoring"), sorted(KINDS))
def test_score_matches_its_formula_and_the_split_arithmetic(kind: str, scoring: str) -> None:
    probe, x = probe_of(kind, scoring), hidden()
    scores = probe.score_tokens(x)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, FORMULAS[kind, scoring](x, probe.tensors), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(probe.token_scores(served(probe, x)), scores, rtol=1e-4, atol=1e-4)
    assert probe.columns.shape[:2] == (len(LAYERS), D)
    assert probe.selftest() <= 1e-5
    assert probe.score_tokens(x.bfloat16()).dtype == torch.float32
    assert probe.token_state(x).shape == (len(x), kinds.state_width(kinds.of(probe.manifest), probe.tensors))
    if probe.manifest.aggregation.method in kinds.record.ONE_SCORE:
        torch.testing.assert_close(probe.token_state(x), scores[:, None])


@pytest.mark.parametrize(("kind", "scoring"), sorted(KINDS))
def test_a_request_of_one_token_is_worth_its_token_score(kind: str, scoring: str) -> None:
    if kind == "gap":  # whose first tokens assert nothing
        return
    probe = probe_of(kind, scoring)
    for row in hidden(4):
        found = probe.aggregate(probe.token_state(row[None]))
        assert found == pytest.approx(float(probe.score_tokens(row[None])), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("kind", "scoring"), [*sorted(KINDS), kinds.ENSEMBLE])
def test_a_live_alert_latches_on_the_statistic_that_is_calibrated(kind: str, scoring: str) -> None:
    probe = probe_of(kind, scoring)
    g = torch.Generator().manual_seed(2)
    benign = [torch.randn(4 + i % 9, len(LAYERS), D, generator=g) for i in range(60)]
    statistics = [probe.statistic(probe.token_state(x)) for x in benign]
    threshold = threshold_at(statistics, 0.1)
    latched = 0
    for x, expected in zip(benign, statistics, strict=True):
        stream, crossed = probe.stream(), False
        for row in probe.token_state(x):
            stream.update(row[None])
            crossed |= stream.live > threshold
        assert stream.live == pytest.approx(expected, rel=1e-5, abs=1e-5)
        latched += crossed
    assert latched == sum(value > threshold for value in statistics) <= 6


@pytest.mark.parametrize("scoring", ["members"])
def test_an_ensemble_scores_its_members_on_their_own_layers(tmp_path: Path, scoring: str) -> None:
    members = (
        fake_member("mlp", layers=(3,), weight=0.5),
        fake_member("tuned_lens", scoring="layer_norm", layers=(0, 7), weight=3.0),
        fake_member(
            "attention", layers=LAYERS, weight=-2.0, states=6, aggregation=fake_aggregation("attention")
        ),
    )
    rule = fake_aggregation("members", members=members)
    probe = probes.load(
        write_artifact(
            tmp_path / "e.safetensors",
            kind="ensemble",
            scoring=scoring,
            layers=LAYERS,
            d_model=D,
            aggregation=rule,
        )
    )
    x = hidden()
    rows = [[1], [0, 2], [0, 1, 2]]
    expected = sum(
        member.weight
        * FORMULAS[member.kind, member.scoring](
            x[:, own], {k[2:]: v for k, v in probe.tensors.items() if k.startswith(f"{i}.")}
        )
        for i, (member, own) in enumerate(zip(members, rows, strict=True))
    )
    torch.testing.assert_close(probe.score_tokens(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(served(probe, x), probe.token_state(x), rtol=1e-4, atol=1e-4)
    poisoned = x.clone()
    poisoned[:, 1] = torch.nan  # the lens does not read layer 3
    assert torch.isfinite(probe.token_state(poisoned)[:, 1]).all()


def test_zero_residual_has_cosine_zero() -> None:
    assert probe_of("concept", "cosine").score_tokens(torch.zeros(2, 3, D)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "scoring", "poison", "words"),
    [
        ("concept", "cosine", {"direction": torch.zeros(3, D)}, "needs a length"),
        ("sae", "logit", {"threshold": torch.tensor([0.0, -1.0, 0.0])}, "negative"),
        ("ordinal", "logit", {"cuts": torch.tensor([1.0, 0.0])}, "sort the levels"),
        ("logit_lens", "rms_norm", {"epsilon": torch.tensor(0.0)}, "above 0"),
        ("tuned_lens", "rms_norm", {name: torch.ones(3, D, 7) for name in ("up", "down")}, "at most 6"),
        ("multiclass", "log_odds", {"weight": torch.ones(3, D, 1), "bias": torch.ones(1)}, "2 or more"),
        ("attention", "logit", {n: torch.ones(3, D, 0) for n in ("query", "value")}, "1 entry or more"),
        ("gap", "logit", {"bias": torch.ones(3)}, "asks for"),
    ],
)
def test_tensors_that_make_no_probe_are_refused(
    tmp_path: Path, kind: str, scoring: str, poison: dict[str, Tensor], words: str
) -> None:
    manifest = fake_manifest(kind=kind, scoring=scoring, layers=LAYERS, d_model=D)
    tensors = {**fake_tensors(manifest), **poison}
    with pytest.raises(TensorInvalid, match=words):
        probes.artifact.write(tmp_path / "p.safetensors", manifest, tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "attention"}, "use one of: attention, rolling_attention"),
        ({"kind": "logistic", "aggregation": Aggregation(method="attention")}, "cusum"),
        ({"kind": "ensemble", "scoring": "members"}, "give it its members"),
        ({"kind": "ensemble", "scoring": "members", "layers": (1, 3)}, "add them"),
        ({"kind": "ensemble", "scoring": "members", "members": (fake_member("tarot"),)}, "is unknown"),
        (
            {"kind": "ensemble", "scoring": "members", "members": (fake_member("attention"),)},
            "rolling_attention",
        ),
    ],
)
def test_manifests_that_do_not_fit_their_kind_are_refused(changes: dict[str, object], words: str) -> None:
    members = changes.pop("members", None)
    if changes["kind"] == "ensemble" and (members or "layers" in changes):
        changes["aggregation"] = fake_aggregation("members", **({"members": members} if members else {}))
    manifest = fake_manifest(**{"aggregation": Aggregation(), **changes})
    with pytest.raises(ManifestInvalid, match=words):
        kinds.of(manifest)


def test_members_that_declare_other_states_than_theirs_are_refused() -> None:
    found = fake_manifest(kind="ensemble", scoring="members")
    tensors = fake_tensors(found)
    one, other = found.aggregation.members or ()
    shifted = tuple(member.model_copy(update={"states": n}) for member, n in ((one, 3), (other, 4)))
    rule = fake_aggregation("members", members=shifted)
    with pytest.raises(TensorInvalid, match="declares 3 states, its tensors give 1"):
        kinds.check_values(probes.manifest.revise(found, aggregation=rule), tensors)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    layers = tuple(range(256))
    member = fake_member("attention", layers=(0,), states=128, aggregation=fake_aggregation("attention"))
    manifest = fake_manifest(
        kind="ensemble",
        scoring="members",
        layers=layers,
        d_model=4096,
        aggregation=fake_aggregation("members", members=(member,)),
    )
    tensors = {name: torch.ones(1, 4096, 64) for name in ("0.query", "0.value")} | {
        "0.bias": torch.tensor(0.0)
    }
    with pytest.raises(TensorInvalid, match="the limit is"):
        kinds.check_values(manifest, tensors)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mean", "mean"),
        ("ema", "ema (alpha 0.3)"),
        ("rolling_attention", "rolling_attention (window 3, heads max_then_sum)"),
        ("members", "0.5 x logistic at 1, 2 by mean + -2 x attention at 1, 2 by attention"),
    ],
)
def test_an_aggregation_is_told_in_a_line(method: str, words: str) -> None:
    assert described(fake_aggregation(method)) == words
