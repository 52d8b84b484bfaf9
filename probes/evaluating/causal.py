"""Does the model use what the probe reads? Push the residual stream along its direction and see what it says.

Steering adds scale x length x unit vector after every layer of the probe, at every token, against the behaviour at
prompts that show it and towards it at prompts that do not. Patching sets the component along the direction to
the other class's mean. An answer counts as turned where it shows the opposite, not where it shows nothing: a push
that is hard enough breaks any model. Both are done along the probe's direction, along the difference of class means,
and along random directions of the same length: what the random ones do as well is no evidence. Length is the distance
of the class means in that layer.

A direction that detects well need not steer (AxBench, arXiv 2501.17148), so no gate hangs on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes import fitting, hf
from probes.dataset import Conversation
from probes.evaluating import behaviour
from probes.evaluating.bench import Bench, share_of
from probes.evaluating.card import Causal, Effect, NotComputed, Share
from probes.evaluating.controls import NO_MODEL
from probes.evaluating.forward import Edit, edited
from probes.evaluating.profile import without_train
from probes.hf import Activations, LoadedModel
from probes.probe import Probe

Along = Literal["none", "probe", "class means", "random"]
SCALES: Final = (1.0, 2.0)
N_RANDOM: Final = 3
MAX_PROMPTS: Final = 40
"""Prompts of each class."""
MAX_NEW_TOKENS: Final = 48


@dataclass(frozen=True)
class Direction:
    """Unit vectors [L, d] at the probe's layers and what the classes are like along them."""

    along: Along
    unit: Tensor
    length: Tensor
    """[L] distance of the class means in each layer"""
    means: tuple[Tensor, Tensor]
    """[L] mean component of the negatives, of the positives"""


def causal(bench: Bench) -> Causal | NotComputed:
    """All interventions on prompts of the headline contrast, in the test split."""
    if bench.loaded is None:
        return NO_MODEL
    if min(bench.headline_train.counts()) == 0:
        return without_train()
    told = [chat for chat in bench.headline_test.chats if behaviour.markers(chat) is not None]
    if not told:
        return behaviour.NO_MARKERS
    asked = [chat for label in (1, 0) for chat in [c for c in told if c.label == label][:MAX_PROMPTS]]
    base = _shown(bench.loaded, asked, {})
    by_itself = [int((base == shows).sum()) for shows in (1, 0)]
    if 0 in by_itself:
        return NotComputed(
            reason=f"{by_itself[0]} prompts show the behaviour by themselves and {by_itself[1]} its opposite",
            remedy="give prompts of both sorts",
        )
    found = directions(bench)
    effects = [_effect("no intervention", "none", base, base)]
    for method in ("steer", "patch"):
        for scale in SCALES if method == "steer" else (1.0,):
            effects += _tried(bench, asked, base, found, method, scale)
    return Causal(effects=tuple(effects), verdict=verdict(effects))


def directions(bench: Bench) -> list[Direction]:
    """The probe's, the class means', and random ones."""
    side, layers = bench.headline_train, bench.probe.manifest.layers
    rows = fitting.token_rows(side.found, bench.probe.manifest.token_mask, layers)
    means = [
        torch.from_numpy(rows.means[side.labels == y].mean(0)).float().view(len(layers), -1) for y in (1, 0)
    ]  # positives, negatives: [L, d]
    difference = means[0] - means[1]  # [L, d], positives minus negatives
    generator = torch.Generator().manual_seed(bench.seed)
    drawn = [torch.randn(difference.shape, generator=generator) for _ in range(N_RANDOM)]
    vectors: list[tuple[Along, Tensor]] = [
        ("probe", gradient(bench.probe, side.found[:32])),
        ("class means", difference),
        *(("random", vector) for vector in drawn),
    ]
    found = []
    for along, vector in vectors:
        unit = vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        components = (means[1] * unit).sum(-1), (means[0] * unit).sum(-1)
        found.append(Direction(along, unit, difference.norm(dim=-1), components))
    return found


def gradient(probe: Probe, found: Sequence[Activations]) -> Tensor:
    """[L, d] mean gradient of a token's score with respect to the residual: for an affine probe its weight."""
    total = torch.zeros(len(probe.manifest.layers), probe.manifest.d_model)
    for a in found:
        hidden = a.at(probe.manifest.layers)[torch.from_numpy(a.mask(probe.manifest.token_mask))]
        with torch.enable_grad():
            hidden = hidden.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(probe.score_tokens(hidden).sum(), hidden)
        total += slope.mean(0)
    return total / len(found)


def verdict(effects: Sequence[Effect]) -> str:
    """One sentence on the intervention in which a read direction stands out most from the random ones beside it."""

    def turned(name: str, along: Along) -> float:
        return next(e.turned_off.value for e in effects if e.intervention == name and e.along == along)

    names = dict.fromkeys(effect.intervention for effect in effects[1:])
    best, moved, random = max(
        (
            (name, max(turned(name, "probe"), turned(name, "class means")), turned(name, "random"))
            for name in names
        ),
        key=lambda row: row[1] - row[2],
    )
    said = (
        f"{best}, {turned(best, 'probe'):.0%} of the answers turn to the opposite along the probe's direction, "
        f"{turned(best, 'class means'):.0%} along the class means, {random:.0%} along the strongest random one"
    )
    if moved >= 0.2 and moved > 2 * random:
        return f"The model uses what is read: {said}."
    return f"No evidence that the model uses what is read: {said}."


def _tried(
    bench: Bench,
    asked: Sequence[Conversation],
    base: NDArray[np.int64],
    found: Sequence[Direction],
    method: str,
    scale: float,
) -> list[Effect]:
    """One effect a direction; of the random ones that which changes most."""
    effects = []
    for direction in found:
        after = base.copy()
        for shows in (1, 0):
            kept = np.flatnonzero(base == shows)
            edits = _edits(bench.probe.manifest.layers, direction, method, -scale if shows else scale)
            after[kept] = _shown(_model(bench), [asked[i] for i in kept], edits)
        name = f"steered, scale {scale:g}" if method == "steer" else "patched"
        effects.append(_effect(name, direction.along, base, after))
    random = [effect for effect in effects if effect.along == "random"]
    strongest = max(random, key=lambda e: (e.turned_off.hits + e.turned_on.hits, -e.broken.hits))
    return [*(effect for effect in effects if effect.along != "random"), strongest]


def _edits(layers: Sequence[int], d: Direction, method: str, scale: float) -> Mapping[int, Edit]:
    def edit(i: int) -> Edit:
        unit, target = d.unit[i], d.means[int(scale > 0)][i]
        push = scale * d.length[i] * unit

        def steer(hidden: Tensor) -> Tensor:
            return hidden + push.to(hidden)

        def patch(hidden: Tensor) -> Tensor:
            component = (hidden.float() @ unit).unsqueeze(-1)
            return hidden + ((target - component) * unit).to(hidden)

        return steer if method == "steer" else patch

    return {layer: edit(i) for i, layer in enumerate(layers)}


def _effect(name: str, along: Along, base: NDArray[np.int64], after: NDArray[np.int64]) -> Effect:
    return Effect(
        intervention=name,
        along=along,
        turned_off=_share(after[base == 1] == 0),
        turned_on=_share(after[base == 0] == 1),
        broken=_share(after == -1),
    )


def _share(hits: NDArray[np.bool_]) -> Share:
    found = share_of(hits)
    if found is None:
        raise ValueError("a share of no prompts was asked for")
    return found


def _model(bench: Bench) -> LoadedModel:
    if bench.loaded is None:
        raise ValueError("no model was given")
    return bench.loaded


def _shown(
    loaded: LoadedModel, asked: Sequence[Conversation], edits: Mapping[int, Edit]
) -> NDArray[np.int64]:
    with edited(loaded, edits):
        answers = hf.generate(loaded, [chat.prompt for chat in asked], max_new_tokens=MAX_NEW_TOKENS)
    return behaviour.shown(asked, [text for text, _ in answers])
