"""Sweeps over kinds, layers and redraws of the groups, on planted activations; and the picture of the profile."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

import probes
from probes import fitting, specs, sweeps, training
from probes.dataset import Conversation
from probes.hf import Activations
from probes.identity import ModelIdentity
from probes.manifest import TokenMask
from probes.method import Aggregation
from probes.plan import Plan, versions
from probes.reports import profile as picture
from probes.sweeps import Point, Side
from probes.training import Setting

torch.set_num_threads(1)

D = 6
KNOWS = 1
"""The layer that holds the concept."""
DESCRIBE: dict[str, object] = {
    "name": "planted",
    "concept": "deception",
    "positive_label": "lie",
    "negative_label": "honest",
}


def chats(n: int, split: str, positives: float = 0.5) -> list[Conversation]:
    """Conversations in groups of two; the share of positives is spread evenly."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return [
        Conversation.model_validate(
            {
                "id": f"{split}{i}",
                "messages": turns,
                "label": int((i + 1) * positives) - int(i * positives),
                "group": f"{split}-g{i // 2}",
            }
        )
        for i in range(n)
    ]


@dataclass
class Planted:
    """Activations in which layer `KNOWS` shifts by the label, and the others are noise; as from a disk or a model."""

    on_disk: bool = False
    shift: float = 3.0
    asked: list[tuple[int, ...]] = field(default_factory=list)
    identity: ModelIdentity = field(default_factory=lambda: ModelIdentity("m", "0" * 64, None, None, D, 4))
    layers: tuple[int, ...] = (0, KNOWS, 2)

    def activations(
        self, conversations: Sequence[Conversation], layers: Sequence[int], token_mask: TokenMask
    ) -> Sequence[Activations]:
        self.asked.append(tuple(layers))
        found = [self._one(chat, layers) for chat in conversations]
        return tuple(found) if self.on_disk else found

    def _one(self, chat: Conversation, layers: Sequence[int]) -> Activations:
        seed = int.from_bytes(chat.id.encode()[-7:], "big")
        hidden = torch.randn(5, len(self.layers), D, generator=torch.Generator().manual_seed(seed))
        hidden[2:, KNOWS, 3] += self.shift * (chat.label or 0)
        return Activations(tuple(layers), hidden[:, [self.layers.index(layer) for layer in layers]], 0, 2)


def swept(source: Planted, plan: Plan, positives: float = 0.5) -> list[Point]:
    fit, held = Side(chats(80, "t", positives)), Side(chats(60, "v", positives))
    return [point for at in sweeps.profile(source, fit, held, plan, DESCRIBE) for point in at]


def test_the_layer_that_knows_is_chosen_and_the_others_stay_at_chance() -> None:
    plan = Plan(kinds=("difference_of_means", "ridge"), seeds=2)
    points = swept(Planted(), plan)
    assert [(p.setting.layers, p.setting.kind) for p in points] == [
        ((layer,), kind) for layer in (0, KNOWS, 2) for kind in plan.kinds
    ]
    assert all(len(point.aurocs) == 2 for point in points)
    chosen = sweeps.choose(points)
    assert chosen.setting.layers == (KNOWS,)
    assert chosen.mean > 0.98
    assert chosen.separation > 2
    assert all(abs(p.mean - 0.5) < 0.2 for p in points if p.setting.layers != (KNOWS,))
    assert chosen.probe.selftest() < 1e-4


def test_a_rare_class_weighs_as_much_as_the_other() -> None:
    points = swept(Planted(), Plan(kinds=("logistic",), layers=((KNOWS,),), seeds=2), positives=0.1)
    assert points[0].mean > 0.97
    assert abs(float(points[0].probe.tensors["weight"][0].argmax()) - 3) == 0


def test_the_same_plan_gives_the_same_probe_and_another_seed_other_redraws() -> None:
    plan = Plan(kinds=("logistic",), layers=((KNOWS,),), seeds=3)
    one, again = (swept(Planted(shift=0.5), plan)[0] for _ in range(2))
    assert torch.equal(one.probe.tensors["weight"], again.probe.tensors["weight"])
    assert one.aurocs == again.aurocs
    assert len(set(one.aurocs)) > 1
    assert swept(Planted(shift=0.5), replace_plan(plan, seed=9))[0].aurocs[1:] != one.aurocs[1:]


def replace_plan(plan: Plan, **changes: object) -> Plan:
    return Plan.model_validate({**plan.model_dump(), **changes})


def test_several_layers_are_one_score() -> None:
    points = swept(Planted(), Plan(kinds=("difference_of_means",), layers=((0, KNOWS), (KNOWS,)), seeds=1))
    assert [p.setting.layers for p in points] == [(0, KNOWS), (KNOWS,)]
    assert points[0].probe.tensors["weight"].shape == (2, D)


def test_what_lies_on_disk_is_read_a_layer_at_a_time_and_a_model_runs_once() -> None:
    plan = Plan(kinds=("difference_of_means",), seeds=1)
    model, disk = Planted(), Planted(on_disk=True)
    assert [p.aurocs for p in swept(model, plan)] == [p.aurocs for p in swept(disk, plan)]
    assert model.asked == [(0, 1, 2)] * 2
    assert [layers for layers in disk.asked if len(layers) == 1] == [(0,), (0,), (1,), (1,), (2,), (2,)]


def test_a_redraw_keeps_groups_whole_and_every_mix_of_labels() -> None:
    side = Side(chats(100, "t", positives=0.1))
    drawn = sweeps.redraw(side, 1)
    groups = [side.groups[i] for i in drawn]
    assert all(groups.count(group) == 2 for group in groups)
    assert len(set(groups)) == 40
    assert sum(side.labels[i] for i in drawn) == 8
    assert drawn != sweeps.redraw(side, 2)
    assert len(sweeps.redraw(Side(chats(8, "t")), 1)) == 8


def test_pairs_are_groups_that_hold_both_labels() -> None:
    assert Side(chats(8, "t")).paired
    assert not Side([chat.model_copy(update={"group": chat.id}) for chat in chats(8, "t")]).paired


def test_of_equal_curves_the_wider_separation_is_taken_and_of_equals_the_first() -> None:
    point = swept(Planted(), Plan(kinds=("difference_of_means",), layers=((KNOWS,),), seeds=1))[0]
    near = replace(point, aurocs=(0.998, 0.999), separation=3.0)
    wide = replace(point, aurocs=(0.997, 0.999), separation=5.0)
    better = replace(point, aurocs=(0.9, 0.92), separation=9.0)
    assert sweeps.choose([near, better, wide]) is wide
    assert sweeps.choose([near, replace(near, separation=3.01)]) is near


def test_kinds_bring_their_aggregation_and_tokens_unless_the_plan_says_otherwise() -> None:
    cusum, confidence = sweeps.settings(Plan(kinds=("cusum", "confidence"), regularisation=(1.0,)), (1,))
    assert cusum.aggregation.method == "cusum"
    assert cusum.token_mask == TokenMask()
    assert confidence.token_mask == specs.tokens("last-prompt")
    told = Plan(kinds=("logistic",), tokens="all", aggregation="ema:0.5", min_tokens=4, regularisation=(2.0,))
    (setting,) = sweeps.settings(told, (1, 2))
    assert setting.aggregation == Aggregation(method="ema", alpha=0.5, min_tokens=4)
    assert setting.token_mask.prompt == "all"
    assert [s.regularisation for s in sweeps.settings(Plan(kinds=("logistic", "lda")), (1,))] == [
        0.001,
        0.03,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("name", ["logistic", "ridge", "lda", "mass_mean", "difference_of_means"])
def test_the_penalty_is_swept_where_a_fit_reads_it(name: str) -> None:
    source, side = Planted(), Side(chats(40, "t"))
    found = source.activations(side.chats, (KNOWS,), TokenMask())
    weak, strong = (
        training.fit(
            Setting(name, (KNOWS,), TokenMask(), TokenMask(), Aggregation(), regularisation=c),
            found,
            side.labels,
        )
        for c in (1.0, 1e-3)
    )
    assert fitting.FITTERS.keys() >= sweeps.PENALISED
    assert torch.equal(weak["weight"], strong["weight"]) == (name not in sweeps.PENALISED)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(probes.DataError, match="difference_of_means"):
        sweeps.settings(Plan(kinds=("tarot",)), (1,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer", TokenMask()),
        ("all", TokenMask(prompt="all")),
        ("last-prompt", TokenMask(prompt="last_k", last_k=1, generated=False)),
        ("last-5-prompt+answer", TokenMask(prompt="last_k", last_k=5)),
    ],
)
def test_tokens_are_read(text: str, expected: TokenMask) -> None:
    assert specs.tokens(text) == expected


@pytest.mark.parametrize("text", ["", "last-0-prompt", "last-prompt+", "answer+all", "last--5-prompt"])
def test_other_tokens_are_refused(text: str) -> None:
    with pytest.raises(probes.DataError, match="last-5-prompt"):
        specs.tokens(text)


def test_aggregations_are_read() -> None:
    assert specs.aggregation("mean", 3) == Aggregation(min_tokens=3)
    assert specs.aggregation("rolling_mean:40") == Aggregation(method="rolling_mean", window=40)
    assert specs.aggregation("softmax:2.5").temperature == 2.5
    for text in ("ema", "ema:2", "mean:3", "median", "ema:nan", "ema:0.1:2"):
        with pytest.raises(probes.DataError, match="ema:ALPHA"):
            specs.aggregation(text)


def test_the_picture_is_one_svg_and_the_same_each_time() -> None:
    points = swept(Planted(), Plan(kinds=("difference_of_means",), seeds=2))
    chosen = sweeps.choose(points)
    drawn = picture.svg(points, chosen, "planted")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert picture.svg(points, chosen, "planted") == drawn
    assert picture.svg(points, points[0], "planted") != drawn


def test_versions_name_what_decides_a_fit() -> None:
    assert {"torch", "numpy", "scikit-learn", "python", "machine"} <= versions().keys()
