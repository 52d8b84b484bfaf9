"""Every kind at every set of layers, several times over: the profile that a probe is chosen from.

One AUROC is a draw. Beside the fit to all training conversations stand fits to redraws of their groups, each with
a seed of its own; the mean over them decides, and their range is shown. All is judged on validation conversations,
whose groups no fit has seen; the test split is not looked at.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from probes import dataset, evaluation, fitting, specs, training
from probes.dataset import Conversation
from probes.errors import DataError
from probes.estimate import Floats
from probes.hf import Activations
from probes.manifest import TokenMask
from probes.plan import Plan
from probes.probe import Probe
from probes.sources import Source
from probes.training import Setting

PENALISED: Final = frozenset(
    {"logistic", "ridge", "cusum", "confidence", "multiclass", "level", "ordinal", "sae"}
)
"""Fits that read `Options.regularisation`; the others are fitted once."""
PAIRED: Final = frozenset({"lat", "ccs"})
"""Fits that need groups with conversations of both labels."""
LEFT_OUT: Final = 5
"""A redraw leaves out one in so many groups of each mix of labels."""


@dataclass(frozen=True)
class Side:
    """Conversations of one split, with both labels."""

    chats: Sequence[Conversation]

    @property
    def labels(self) -> list[int]:
        """0 or 1 for each."""
        return dataset.labels(self.chats)

    @property
    def groups(self) -> list[str]:
        """What must stay together."""
        return dataset.groups(self.chats)

    @property
    def paired(self) -> bool:
        """Whether some group holds both labels, as contrast pairs do."""
        members = set(zip(self.groups, self.labels, strict=True))
        return len(members) > len({group for group, _ in members})


@dataclass(frozen=True)
class Point:
    """One kind at one set of layers, with the penalty that did best."""

    setting: Setting
    probe: Probe
    """Fitted to all training conversations."""
    aurocs: tuple[float, ...]
    """On validation, of the fit to all of them and of each redraw."""
    separation: float
    """Distance between the class means of the deployed statistic, in pooled standard deviations: where AUROCs are
    all near 1, it still tells them apart."""

    @property
    def mean(self) -> float:
        """What decides."""
        return float(np.mean(self.aurocs))


def settings(plan: Plan, layers: Sequence[int]) -> list[Setting]:
    """All of a plan on one set of layers; `DataError` for a fit that labels of 0 and 1 are not enough for."""
    found = []
    for name in plan.kinds:
        fitter = fitting.fitter(name)
        if fitter.needs != "nothing" or fitter.labels not in ("binary", "classes"):
            raise DataError(
                f"kind {name!r} needs more than conversations labelled 0 and 1; fit it with probes.fitting.fit"
            )
        mask = fitter.token_mask or TokenMask() if plan.tokens is None else specs.tokens(plan.tokens)
        rule = (
            fitter.aggregation.model_copy(
                update={"min_tokens": max(plan.min_tokens, fitter.aggregation.min_tokens)}
            )
            if plan.aggregation is None
            else specs.aggregation(plan.aggregation, plan.min_tokens)
        )
        for c in plan.regularisation if name in PENALISED else (1.0,):
            one = Setting(name, tuple(layers), mask, mask, rule, "running_sup", c, plan.pooled)
            found.append(one)
    return found


def profile(
    source: Source, fit: Side, held: Side, plan: Plan, describe: dict[str, object]
) -> Iterator[list[Point]]:
    """For each set of layers, its points in the order of `plan.kinds`.

    Where activations lie on disk, only one set of layers is in memory at a time.
    """
    sets = plan.layers or tuple((layer,) for layer in source.layers)
    mask = _widest([s.token_mask for s in settings(plan, sets[0])])
    every = sorted({layer for layers in sets for layer in layers})
    train, validation = (_reader(source, side, every, mask) for side in (fit, held))
    for layers in sets:
        yield list(
            _points(train(layers), fit, validation(layers), held, settings(plan, layers), plan, describe)
        )


def choose(points: Sequence[Point]) -> Point:
    """The highest mean AUROC to two decimals, then the widest separation to one; of equals the first.

    What is finer than that is the luck of a validation set.
    """
    return max(points, key=lambda point: (round(point.mean, 2), round(point.separation, 1)))


def redraw(side: Side, seed: int) -> list[int]:
    """Indices of the conversations of a redraw: most groups of each mix of labels, all of a mix of few."""
    mixes: dict[str, set[int]] = defaultdict(set)
    for group, label in zip(side.groups, side.labels, strict=True):
        mixes[group].add(label)
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for group, found in mixes.items():
        alike[tuple(sorted(found))].append(group)
    kept: set[str] = set()
    for groups in alike.values():
        ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        kept.update(ordered[len(ordered) // LEFT_OUT :])
    return [i for i, group in enumerate(side.groups) if group in kept]


def separation(scores: Floats, labels: Sequence[int]) -> float:
    """(mean of the positives - mean of the negatives) / pooled standard deviation; 0 where nothing varies."""
    y = np.asarray(labels)
    high, low = scores[y == 1], scores[y == 0]
    spread = np.sqrt((high.var() + low.var()) / 2)
    return float((high.mean() - low.mean()) / spread) if spread > 0 else 0.0


def _points(
    train: Sequence[Activations],
    fit: Side,
    validation: Sequence[Activations],
    held: Side,
    tried: Sequence[Setting],
    plan: Plan,
    describe: dict[str, object],
) -> Iterator[Point]:
    objective = evaluation.auroc_of(held.labels)
    labels, groups = fit.labels, fit.groups
    for name in plan.kinds:
        own = [s for s in tried if s.kind == name]
        trials = training.sweep(
            train, labels, validation, own, objective, describe, groups=groups, seed=plan.seed
        )
        best = training.best(trials)
        aurocs = [best.objective]
        for seed in range(plan.seed + 1, plan.seed + plan.seeds):
            drawn = redraw(fit, seed)
            again = training.sweep(
                [train[i] for i in drawn],
                [labels[i] for i in drawn],
                validation,
                [best.setting],
                objective,
                describe,
                groups=[groups[i] for i in drawn],
                seed=seed,
            )
            aurocs.append(again[0].objective)
        scores = evaluation.statistics(best.probe, validation)
        yield Point(best.setting, best.probe, tuple(aurocs), separation(scores, held.labels))


def _reader(
    source: Source, side: Side, every: Sequence[int], mask: TokenMask
) -> Callable[[Sequence[int]], Sequence[Activations]]:
    """layers -> activations of the side: computed once, or read from disk for those layers alone."""
    found = source.activations(side.chats, every, mask)
    if isinstance(found, list):
        return lambda layers: found
    return lambda layers: list(source.activations(side.chats, layers, mask))


def _widest(masks: Sequence[TokenMask]) -> TokenMask:
    """A mask that keeps all that any of them counts."""
    tails = [mask.prompt_tail for mask in masks]
    generated = any(mask.generated for mask in masks)
    if None in tails:
        return TokenMask(prompt="all", generated=generated)
    tail = max(tail for tail in tails if tail is not None)
    return TokenMask(prompt="last_k", last_k=tail, generated=generated) if tail else TokenMask()
