"""All probes in one matrix a layer: the states that come back are those of each probe by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monitor.bank import ProbeBank
from monitor.errors import AttachError
from monitor.events import FloatArray
from monitor.jury import Jury
from monitor.unscored import Reason, nan_for, reasons
from monitor.verdict import judge
from probes import Probe, kinds
from tests.unit.monitor_fakes import make_probe

D = 8
KINDS = sorted([*kinds.KINDS, kinds.ENSEMBLE])


def tapped(bank: ProbeBank, residual: Tensor) -> tuple[FloatArray, FloatArray | None]:
    """What the taps of a model would write for ``residual [L, T, d]``."""
    norms = residual.square().sum(-1).numpy() if bank.needs_norm else None
    return torch.bmm(residual, bank.weights()).numpy(), norms


def states_of(bank: ProbeBank, residual: Tensor) -> dict[str, FloatArray]:
    """States of every probe by name, for ``residual [L, T, d]`` of the tapped layers."""
    found = bank.states(*tapped(bank, residual))
    assert found.shape == (residual.shape[1], bank.state_columns)
    return {seat.probe.manifest.name: found[:, seat.states] for seat in bank.seats}


def expected(probe: Probe, layers: list[int], residual: Tensor) -> FloatArray:
    rows = [layers.index(layer) for layer in probe.manifest.layers]
    found: FloatArray = probe.token_state(residual[rows].transpose(0, 1)).numpy()
    return found


def check(probes: list[Probe], layers: list[int], capacity: int, seed: int = 0) -> ProbeBank:
    residual = torch.randn(len(layers), 7, D, generator=torch.Generator().manual_seed(seed)) * 3
    bank = ProbeBank(probes, layers, D, capacity)
    for probe in probes:
        found = states_of(bank, residual)[probe.manifest.name]
        np.testing.assert_allclose(found, expected(probe, layers, residual), rtol=1e-4, atol=1e-4)
    return bank


@pytest.mark.parametrize(("kind", "scoring"), KINDS)
def test_each_kind_alone(kind: str, scoring: str) -> None:
    check([make_probe("p", kind=kind, scoring=scoring, layers=(1, 4, 6), d_model=D)], [0, 1, 4, 6, 9], 5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_any_mix_of_kinds_layers_and_room(seed: int) -> None:
    rng = random.Random(seed)
    probes = []
    for i in range(rng.randint(1, 6)):
        kind, scoring = rng.choice(KINDS)
        layers = tuple(sorted(rng.sample(range(10), rng.randint(1, 4))))
        probes.append(make_probe(f"p{i}", seed + i, kind=kind, scoring=scoring, layers=layers, d_model=D))
    tapped_layers = sorted({*rng.sample(range(12), 3), *(x for p in probes for x in p.manifest.layers)})
    check(probes, tapped_layers, rng.randint(1, 12), seed)


def test_the_order_of_probes_does_not_change_their_states() -> None:
    first = make_probe("a", 1, kind="steering", scoring="cosine", layers=(0, 2), d_model=D)
    second = make_probe("b", 2, layers=(2,), d_model=D)
    residual = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(3))
    one = states_of(ProbeBank([first, second], [0, 2], D, 2), residual)
    two = states_of(ProbeBank([second, first], [0, 2], D, 9), residual)
    for name in ("a", "b"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


def test_affine_probes_share_one_sum_and_others_go_through_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = [
        make_probe(
            "-".join(named).replace("_", "-"), i, kind=named[0], scoring=named[1], layers=(1, 2), d_model=D
        )
        for i, named in enumerate(KINDS)
    ]
    bank = check(probes, [1, 2], 1)
    affine = [seat.probe.manifest.name for seat in bank.seats if seat.bias is not None]
    assert set(affine) == {
        *(
            f"{name}-logit"
            for name in ("affine", "ccs", "lat", "lda", "logistic", "mass-mean", "ordinal", "ridge")
        ),
        *("difference-of-means-logit", "concept-projection", "steering-projection"),
    }
    asked = []
    original = Probe.state_from_projections

    def counted(probe: Probe, projections: Tensor, squared_norms: Tensor | None = None) -> Tensor:
        asked.append(probe.manifest.name)
        return original(probe, projections, squared_norms)

    monkeypatch.setattr(Probe, "state_from_projections", counted)
    states_of(bank, torch.ones(2, 3, D))
    assert sorted([*asked, *affine]) == sorted(probe.manifest.name for probe in probes)


def test_a_projection_is_the_mean_over_its_layers_after_folding() -> None:
    probe = make_probe("v", kind="steering", scoring="projection", layers=(0, 1, 2, 3), d_model=D)
    direction = probe.tensors["direction"]
    unit = direction / direction.norm(dim=-1, keepdim=True)
    residual = unit.unsqueeze(1) * torch.tensor([4.0, 8.0, 0.0, 0.0]).reshape(4, 1, 1)
    assert states_of(ProbeBank([probe], [0, 1, 2, 3], D, 1), residual)["v"].item() == pytest.approx(
        3.0, abs=1e-5
    )


def test_a_kind_of_several_columns_and_states_keeps_its_seat(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = kinds.Kind(
        shapes={"heads": ("L", "d", 3)},
        columns=lambda tensors: tensors["heads"],
        state=lambda projections, _norms, _tensors: torch.cat(
            [projections.sum(1), projections.abs().amax(1)[:, :1]], 1
        ),
        token_score=lambda state: state[:, 0],
    )
    monkeypatch.setattr(kinds, "KINDS", {**kinds.KINDS, ("wide", "logit"): wide})
    probes = [
        make_probe("a", 1, layers=(3,), d_model=D),
        make_probe("b", 2, kind="wide", layers=(1, 3), d_model=D),
        make_probe("c", 3, kind="steering", scoring="cosine", layers=(1,), d_model=D),
    ]
    bank = check(probes, [1, 3], 1)
    assert bank.capacity == 4
    assert [(seat.columns.start, seat.columns.stop) for seat in bank.seats] == [(0, 1), (1, 4), (0, 1)]
    assert [(seat.states.start, seat.states.stop) for seat in bank.seats] == [(0, 1), (1, 5), (5, 6)]


def test_probes_of_different_layers_share_columns() -> None:
    probes = [make_probe(f"p{i}", i, layers=(i % 3,), d_model=D) for i in range(9)]
    bank = check([*probes, make_probe("wide", 9, layers=(0, 2), d_model=D)], [0, 1, 2], 1)
    assert bank.capacity == 4
    later = bank.follow([*probes, make_probe("late", 10, layers=(1,), d_model=D)])
    assert later.seats[-1].columns == bank.seats[-1].columns, "free at layer 1 alone"
    with pytest.raises(AttachError, match="room for 4 each"):
        bank.follow(
            [*(seat.probe for seat in bank.seats), make_probe("one-more", 11, layers=(0,), d_model=D)]
        )


def test_room_beyond_the_probes_stays_empty() -> None:
    bank = ProbeBank([make_probe("a", layers=(1,), d_model=D)], [0, 1], D, 6)
    weights = bank.weights()
    assert weights.shape == (2, D, 6)
    assert not weights[0].any()
    assert not weights[1, :, 1:].any()
    assert weights[1, :, 0].any()


def test_no_probe_gives_no_states() -> None:
    bank = ProbeBank([], [3], D, 4)
    assert states_of(bank, torch.ones(1, 6, D)) == {}
    assert bank.weights().shape == (1, D, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "scoring"), KINDS)
def test_a_bad_residual_unscores_its_own_token_only(kind: str, scoring: str, bad: float) -> None:
    probe = make_probe("p", kind=kind, scoring=scoring, layers=(0, 1), d_model=D)
    residual = torch.ones(2, 3, D)
    residual[1, 1, 0] = bad
    found = states_of(ProbeBank([probe], [0, 1], D, 1), residual)["p"]
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "scoring"), KINDS)
def test_a_layer_that_a_probe_does_not_read_cannot_unscore_it(kind: str, scoring: str, bad: float) -> None:
    probe = make_probe("p", kind=kind, scoring=scoring, layers=(0,), d_model=D)
    residual = torch.ones(2, 3, D)
    residual[1, 1, 0] = bad
    assert np.isfinite(states_of(ProbeBank([probe], [0, 1], D, 1), residual)["p"]).all()


def test_a_silent_tap_says_so_in_the_states_of_every_kind() -> None:
    probes = [
        make_probe(f"p{i}", kind=kind, scoring=scoring, layers=(0, 1), d_model=D)
        for i, (kind, scoring) in enumerate(KINDS)
    ]
    bank = ProbeBank(probes, [0, 1], D, 1)
    projections, norms = tapped(bank, torch.ones(2, 4, D))
    projections[1, 2] = nan_for(Reason.TAP_SILENT)
    states = bank.states(projections, norms)
    found = reasons(states)
    assert (found[2] == Reason.TAP_SILENT).all()
    assert (np.delete(found, 2, axis=0) == -1).all()


def test_two_probes_of_one_name_are_refused() -> None:
    with pytest.raises(AttachError, match=r"^[^\n]*names must differ[^\n]*same[^\n]*$"):
        ProbeBank([make_probe("same", 1), make_probe("other", 2), make_probe("same", 3)], [1, 2], 4, 1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_probes_that_come_and_go_in_any_order_keep_their_own_states_and_verdicts(seed: int) -> None:
    rng = random.Random(seed)
    layers = [1, 2]
    residual = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(seed)) * 3
    bank = ProbeBank([], layers, D, 8)
    for turn in range(rng.randint(2, 7)):
        stay = [seat.probe for seat in bank.seats if rng.random() < 0.6]
        come = [
            make_probe(
                f"p{turn}-{i}", seed=100 * turn + i, layers=rng.choice([(1,), (2,), (1, 2)]), d_model=D
            )
            for i in range(rng.randint(0, 8 - len(stay)) // 2)
        ]
        bank = bank.follow([*stay, *come])
        states = states_of(bank, residual)
        for seat in bank.seats:
            found = states[seat.probe.manifest.name]
            np.testing.assert_allclose(found, expected(seat.probe, layers, residual), rtol=1e-4, atol=1e-4)
        whole = bank.states(*tapped(bank, residual))
        for seat in bank.seats:
            together = Jury(bank).judge(whole, 3)[seat.probe.manifest.name]
            alone = judge(seat.probe, whole[:, seat.states], 3)
            assert together.score == pytest.approx(alone.score, abs=1e-5)
            assert together[1:] == alone[1:]
