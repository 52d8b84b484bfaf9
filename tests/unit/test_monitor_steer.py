"""Steering: its grammar, its formula with planted numbers, and the operation on both kinds of device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.arguments import cache_salt, ours
from monitor.errors import AttachError, RequestError
from monitor.events import StepRows
from monitor.seam import steer
from monitor.seam.steer import OFF, ON, SteerBuffers
from monitor.seam.steerer import Steerer, check_gates
from monitor.steering import KEY, Steer, VectorBank, parse
from probes import Probe
from tests.unit.monitor_fakes import alerting, make_bank, make_probe

D = 8
NAMES = ("up", "down")


def vector(name: str, seed: int, layers: tuple[int, ...] = (1,)) -> Probe:
    return make_probe(name, seed, kind="steering", scoring="projection", layers=layers, d_model=D)


@pytest.fixture
def vectors() -> VectorBank:
    return VectorBank([vector("up", 1), vector("down", 2, (1, 3))], D, 4)


# The grammar.


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("up", [Steer("up")]),
        ("up:2", [Steer("up", 2.0)]),
        ("up:-1.5e-1:relative", [Steer("up", -0.15, relative=True)]),
        ("down:ablate", [Steer("down", mode="ablate")]),
        ("up:3:clamp:generated", [Steer("up", 3.0, "clamp", prompt=False)]),
        (["up:1:prompt", "down:2"], [Steer("up", generated=False), Steer("down", 2.0)]),
    ],
)
def test_what_is_asked_is_read(asked: object, expected: list[Steer]) -> None:
    assert parse(asked, NAMES) == tuple(expected)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("sideways:1", "loaded are up, down"),
        ("up:nan", "finite scale"),
        ("up:inf", "finite scale"),
        ("up:1e9", "finite scale"),
        ("up:0x10", "finite scale"),
        ("up:1_0", "finite scale"),
        ("up:" + "9" * 400, "finite scale"),
        ("up:\u0661", "finite scale"),
        ("up:loudly", "neither"),
        ("", "no vector"),
        (3, "no text"),
        ({"up": 1}, "no text"),
        ([["up"]], "no text"),
        (["up"] * 9, "at most 8"),
        (["up", "up:2"], "named twice"),
    ],
)
def test_what_cannot_be_met_is_refused_in_one_line(asked: object, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refusal:
        parse(asked, NAMES)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_without_vectors_the_remedy_is_named() -> None:
    with pytest.raises(RequestError, match="--vector"):
        cache_salt({KEY: "up:1"}, None, None)


def test_arguments_that_do_not_exist_are_refused_and_others_are_not_ours() -> None:
    with pytest.raises(RequestError, match="probewatch_skp is not known"):
        ours({"probewatch_skp": 1})
    assert ours({"other": 1}) == {}


def test_the_salt_tells_every_way_of_steering_from_every_other(vectors: VectorBank) -> None:
    asked = ["up:1", "up:2", "down:1", "up:ablate", "up:1:relative", "up:1:prompt", ["up:1", "down:1"]]
    salts = [cache_salt({KEY: one}, vectors, None) for one in asked]
    assert len(set(salts)) == len(asked)
    assert cache_salt({KEY: ["down:1", "up:1"]}, vectors, None) == salts[-1]
    assert cache_salt({KEY: "up:1"}, vectors, "a tenant's") not in [*salts, "a tenant's"]
    assert cache_salt({}, vectors, "a tenant's") == "a tenant's"
    for arguments in ({}, {KEY: "up:1"}):
        with pytest.raises(RequestError, match="choose another"):
            cache_salt(arguments, vectors, f"{salts[0]}:")


def test_vectors_that_do_not_fit_are_refused() -> None:
    for given, reason in (
        ([make_probe("lie", d_model=D)], "no steering vector"),
        ([vector("up", 1, (7,))], "layer 7"),
        ([vector("up", 1), vector("up", 2)], "must differ"),
    ):
        with pytest.raises(AttachError, match=reason):
            VectorBank(given, D, 4)
    with pytest.raises(AttachError, match="d_model"):
        VectorBank([vector("up", 1)], 2 * D, 4)


# The operation.


def by_hand(x: torch.Tensor, wish: tuple[Steer, ...], layer: int) -> torch.Tensor:
    """The module's formula, one vector after the other, each reading the unchanged stream."""
    found = x.clone()
    given = {"up": vector("up", 1), "down": vector("down", 2, (1, 3))}
    for one in wish:
        probe = given[one.vector]
        if layer not in probe.manifest.layers:
            continue
        v = probe.tensors["direction"][probe.manifest.layers.index(layer)]
        unit = v / v.norm()
        along, length = x @ unit, x.norm(dim=1) if one.relative else v.norm().expand(len(x))
        size = {
            "add": one.scale * length,
            "ablate": -one.scale * along,
            "clamp": one.scale * length - along,
        }[one.mode]
        found = found + size[:, None] * unit
    return found


WISHES = [
    "up:2",
    "down:-1:relative",
    "up:ablate",
    "down:0.5:clamp",
    "up:0.3:clamp:relative",
    ["up:1", "down:2:ablate"],
]


def call(
    operation: Any, vectors: VectorBank, buffers: SteerBuffers, layer: int, h: Any, residual: Any, scores: Any
) -> None:
    units, lengths = vectors.directions()
    row = vectors.layers.index(layer)
    g = buffers.gates
    operation(
        h,
        residual,
        units[row],
        lengths[row],
        buffers.table,
        buffers.lines,
        buffers.levels,
        buffers.fired,
        buffers.busy,
        g.column,
        g.uses,
        g.bias,
        g.last,
        g.line,
        scores,
    )


operations = pytest.mark.parametrize(
    "operation", [steer._steer_all, steer._steer_where_busy], ids=["device", "cpu"]
)


@operations
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("fused", [True, False])
def test_each_row_is_changed_by_its_own_formula_and_others_keep_their_bits(
    operation: Any, layer: int, fused: bool, vectors: VectorBank
) -> None:
    torch.manual_seed(0)
    n = 2 * (len(WISHES) + 1)
    buffers = SteerBuffers.allocate(32, 2, 20, 3, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 2, "down": 3})
    wishes = [parse(one, NAMES) for one in WISHES]
    lines = [0] + [steerer._line(wish, set()) for wish in wishes]
    buffers.lines[:n] = torch.tensor(lines * 2)
    buffers.busy.fill_(1)
    h, residual = torch.randn(n, D), torch.randn(n, D) if fused else None
    x = h if residual is None else h + residual
    expected = torch.cat([by_hand(x[i : i + 1], wish, layer) for i, wish in enumerate([(), *wishes] * 2)])
    before = h.clone()
    call(operation, vectors, buffers, layer, h, residual, [])
    found = h if residual is None else h + residual
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    untouched = [0, len(lines)]
    assert torch.equal(h[untouched], before[untouched])


@operations
def test_bfloat16_rows_that_nothing_steers_keep_their_bits(operation: Any, vectors: VectorBank) -> None:
    buffers = SteerBuffers.allocate(8, 2, 6, 1, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    buffers.lines[2] = steerer._line(parse("up:3", NAMES), set())
    buffers.busy.fill_(1)
    h = torch.randn(6, D).bfloat16()
    h[0, 0], h[1, 1] = float("inf"), float("nan")
    before = h.clone()
    call(operation, vectors, buffers, 1, h, torch.randn(6, D).bfloat16(), [])
    same = (h.view(torch.int16) == before.view(torch.int16)).all(dim=1)
    assert same.tolist() == [True, True, False, True, True, True]


@operations
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_no_wish_makes_the_stream_infinite(operation: Any, dtype: torch.dtype, vectors: VectorBank) -> None:
    wishes = ["up:1000:relative", "up:-1000:ablate", "up:1000", "up:1000:clamp:relative"]
    buffers = SteerBuffers.allocate(8, 2, 4, 1, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    buffers.lines[:] = torch.tensor([steerer._line(parse(wish, NAMES), set()) for wish in wishes])
    buffers.busy.fill_(1)
    h = torch.randn(4, D).to(dtype)
    for _ in range(80):  # layers
        call(operation, vectors, buffers, 1, h, torch.randn(4, D).to(dtype), [])
    assert torch.isfinite(h).all()


@operations
def test_gates_open_where_the_summed_score_is_above_the_rows_level(
    operation: Any, vectors: VectorBank
) -> None:
    n, taps = 5, 3
    buffers = SteerBuffers.allocate(8, 2, n, taps, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    gates = buffers.gates
    gates.line[:2] = steerer._line(parse("up:1", NAMES), set())
    gates.column[:2] = torch.tensor([1, 0])
    gates.uses[[0, 1], 0] = True
    gates.uses[2, 1] = True
    gates.bias[0] = 10.0
    gates.last[:2] = torch.tensor([1, 2])
    scores = [torch.full((n, 2), float("nan")) for _ in range(taps)]
    scores[0][:, 1] = torch.tensor([1.0, 2.0, 3.0, float("nan"), 3.0])
    scores[1][:, 1] = 1.0
    buffers.levels[:n, 0] = torch.tensor([12.5, 12.5, 12.5, 12.5, OFF])  # sums are 12, 13, 14, none, 14
    buffers.levels[:n, 1] = torch.tensor([OFF, OFF, OFF, ON, -1e30])
    buffers.busy.fill_(1)
    h = torch.zeros(n, D)
    call(operation, vectors, buffers, 1, h, None, scores[:2])
    assert buffers.fired[:, 0].tolist() == [False, True, True, False, False]
    assert buffers.fired[:, 1].tolist() == [False, False, False, True, False], (
        "its last layer is not read yet"
    )
    assert (h != 0).any(dim=1).tolist() == [False, True, True, True, False]


def test_with_nothing_to_do_the_cpu_looks_at_nothing(vectors: VectorBank) -> None:
    buffers = SteerBuffers.allocate(8, 2, 4, 1, torch.device("cpu"))
    buffers.levels.fill_(ON)
    h = torch.zeros(4, D)
    call(steer._steer_where_busy, vectors, buffers, 1, h, None, [])
    assert not h.any()


# The rows of a step.


def step(*requests: tuple[str, int, int, int]) -> StepRows:
    """(id, rows, first position, prompt) of each request."""
    counts = np.array([rows for _, rows, _, _ in requests])
    return StepRows(
        [name for name, *_ in requests],
        np.concatenate([[0], np.cumsum(counts)]),
        np.array([first for _, _, first, _ in requests]),
        np.array([prompt for *_, prompt in requests]),
    )


def arriving(**asked: object) -> SimpleNamespace:
    new = [
        SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=wish and {KEY: wish}))
        for name, wish in asked.items()
    ]
    return SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=())


def test_prompt_and_generated_rows_get_their_lines_and_none_is_left_behind(vectors: VectorBank) -> None:
    buffers = SteerBuffers.allocate(16, 2, 12, 1, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    steerer.follow(arriving(a="up:1:prompt", b=None, c=["up:1:prompt", "down:2:generated"]))
    steerer.before_forward(step(("a", 4, 0, 6), ("b", 3, 0, 3), ("c", 4, 2, 4)))
    up, down = (steerer._line(parse(wish, NAMES), set()) for wish in ("up:1:prompt", "down:2:generated"))
    assert buffers.lines.tolist() == [up] * 4 + [0] * 3 + [up] * 2 + [down] * 2 + [0]
    steerer.before_forward(step(("c", 1, 6, 4), ("b", 1, 3, 3)))
    assert buffers.lines.tolist() == [down] + [0] * 11
    assert int(buffers.busy) == 1
    steerer.follow(SimpleNamespace(scheduled_new_reqs=[], finished_req_ids=["c"]))
    steerer.before_forward(step(("b", 1, 4, 3)))
    assert not buffers.lines.any()
    assert int(buffers.busy) == 0


def test_lines_are_reused_when_there_are_more_wishes_than_lines(vectors: VectorBank) -> None:
    buffers = SteerBuffers.allocate(4, 2, 4, 1, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    for i in range(20):
        steerer.follow(arriving(**{f"r{i}": f"up:{i + 1}"}))
        steerer.before_forward(step((f"r{i}", 1, 5, 2), (f"r{max(0, i - 1)}", 1, 6, 2)))
        own = buffers.table[buffers.lines[:2], 0, 0].tolist()
        assert own == [i + 1, max(1, i)]


def test_a_fault_of_ours_steers_nothing(vectors: VectorBank) -> None:
    buffers = SteerBuffers.allocate(8, 2, 4, 1, torch.device("cpu"))
    steerer = Steerer(vectors, buffers, {"up": 1, "down": 1})
    heard: list[Exception] = []
    runner = SimpleNamespace(_prepare_inputs=lambda: "prepared")
    steerer.watch(runner, v2=False, guard=heard.append)
    steerer.follow(arriving(a="up:1"))
    steerer.before_forward(step(("a", 2, 0, 2)))
    assert runner._prepare_inputs() == "prepared"  # the runner has no batch
    assert len(heard) == 1
    assert not buffers.lines.any()
    assert int(buffers.busy) == 0


@pytest.mark.parametrize(
    ("action", "possible", "reason"),
    [
        ("steer:sideways", None, "loaded are up, down"),
        ("steer:up:nan", None, "finite scale"),
        ("steer:up:prompt", None, "generated"),
        ("steer:up", "one worker an engine", "one worker an engine"),
    ],
)
def test_gates_that_cannot_work_are_refused(action: str, possible: str | None, reason: str) -> None:
    with pytest.raises(AttachError, match=reason):
        check_gates(make_bank(alerting(default_action=action)), NAMES, possible)
