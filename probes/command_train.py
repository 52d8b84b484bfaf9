"""`probewatch train`: whole groups apart, every kind and layer tried, one probe chosen, and how it was made kept."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from probes import atomic, dataset, fitting, hf, splits, sweeps, training
from probes.dataset import Conversation
from probes.errors import DataError, DatasetInvalid, ManifestInvalid
from probes.manifest import ProbeManifest, TrainingData
from probes.plan import Chosen, Made, Plan, versions
from probes.probe import load
from probes.recipes import Recipe, lookup
from probes.reports import profile as picture
from probes.sources import FromModel, Source, Sources
from probes.splits import Sides
from probes.sweeps import Point, Side

FEW: Final = 20
"""Training conversations of a class below which a fit is told to be poor."""


@dataclass(frozen=True)
class Task:
    """What is to be trained: from the options, from a recipe, or as an earlier artifact says."""

    plan: Plan
    recipe: Recipe | None
    described: dict[str, object]
    """Name, concept and labels."""
    before: tuple[Made, str] | None = None
    """How the earlier artifact was made, and the digest of its tensors."""


def train(options: argparse.Namespace) -> int:
    """Sweep, choose on validation, write an artifact without a threshold, and a picture of the profile beside it."""
    task = _task(options) if options.again is None else _task_again(options.again)
    _check(task)
    source, chats = _open(options, task.recipe)
    if task.before is not None:
        _check_same_data(task.before[0], chats)
    sides = splits.sides(chats, seed=task.plan.seed)
    for line in _counts(sides):
        print(line)
    if options.kind == ["all"] and not Side(sides.train).paired:
        task = replace(task, plan=_without_pairs(task.plan))
    points = _sweep(source, sides, task)
    chosen = sweeps.choose(points)
    written = _write(options, task, chats, sides, points, chosen)
    print(
        f"chosen: layer {_layers(chosen)}, {chosen.setting.kind}, validation AUROC {chosen.mean:.3f}; "
        f"{options.out} has no threshold: calibrate it"
    )
    return 0 if task.before is None else _compare(*task.before, written.tensors_sha256)


def _check(task: Task) -> None:
    """Raise `DataError` for what no manifest can hold, before minutes are spent."""
    try:
        for setting in sweeps.settings(task.plan, (0,)):
            training.check(setting, task.described)
    except ManifestInvalid as error:
        raise DataError(str(error)) from None


def _task(options: argparse.Namespace) -> Task:
    recipe = lookup(options.recipe) if options.recipe else None
    names = ("name", "concept", "positive", "negative")
    given = {name: getattr(options, name) for name in names}
    if recipe is not None:
        own = (recipe.name, recipe.concept, recipe.positive_label, recipe.negative_label)
        given = {name: given[name] or value for name, value in zip(names, own, strict=True)}
    missing = [f"--{name}" for name in names if not given[name]]
    if missing:
        raise DataError(f"{', '.join(missing)} not given; say what the probe is about, or take a --recipe")
    kinds = tuple(options.kind or (recipe.kinds if recipe else Plan().kinds))
    if kinds == ("all",):
        kinds = tuple(name for name, found in fitting.FITTERS.items() if _from_labels(found))
    try:
        plan = Plan(
            kinds=kinds,
            layers=options.layers or (),
            tokens=options.tokens or (recipe.tokens if recipe else None),
            aggregation=options.aggregation,
            min_tokens=options.min_tokens,
            regularisation=options.regularisation,
            pooled=options.pooled,
            seeds=options.seeds,
            seed=options.seed,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"--{fault['loc'][0]}: {fault['msg']}; mend the option") from None
    described: dict[str, object] = {
        "name": given["name"],
        "concept": given["concept"],
        "positive_label": given["positive"],
        "negative_label": given["negative"],
    }
    return Task(plan, recipe, described)


def _without_pairs(plan: Plan) -> Plan:
    print(f"left out: {', '.join(sorted(sweeps.PAIRED))}, for no training group holds both labels")
    return plan.model_copy(update={"kinds": tuple(kind for kind in plan.kinds if kind not in sweeps.PAIRED)})


def _from_labels(fitter: fitting.Fitter) -> bool:
    """Whether labels of 0 and 1 are all that the fit needs, on the tokens of any plan."""
    return fitter.needs == "nothing" and fitter.labels == "binary" and fitter.token_mask is None


def _task_again(path: Path) -> Task:
    manifest = load(path).manifest
    made = None if manifest.training is None else manifest.training.made
    if made is None:
        raise DataError(f"{path} does not say how it was made; train it anew without --again")
    fields = ("name", "concept", "positive_label", "negative_label")
    described: dict[str, object] = {name: getattr(manifest, name) for name in fields}
    recipe = lookup(made.recipe) if made.recipe else None
    return Task(made.plan, recipe, described, (made, manifest.tensors_sha256))


def _open(options: argparse.Namespace, recipe: Recipe | None) -> tuple[Source, list[Conversation]]:
    if recipe is None or options.data is not None or options.activations is not None:
        return Sources(options.model, options.activations).open(options.data)
    if options.model is None:
        raise DataError(
            f"recipe {recipe.name!r} without activations; give --model, or collect its conversations first"
        )
    return FromModel(hf.load(options.model)), recipe.conversations()


def _check_same_data(made: Made, chats: Sequence[Conversation]) -> None:
    found = dataset.digest(chats)
    if found != made.data_digest:
        raise DatasetInvalid(
            f"the probe was made from data {made.data_digest[:12]}.., these are {found[:12]}..; give the same"
        )


def _counts(sides: Sides) -> list[str]:
    told = [f"splits: {sides.rule}"]
    for name, side in (("train", sides.train), ("validation", sides.validation)):
        y = dataset.labels(side)
        told.append(
            f"{name}: {sum(y)} positive, {len(y) - sum(y)} negative, {len(set(dataset.groups(side)))} groups"
        )
        if name == "train" and min(sum(y), len(y) - sum(y)) < FEW:
            told.append(
                f"warning: fewer than {FEW} training conversations of one class; what is found may not hold"
            )
    return told


def _sweep(source: Source, sides: Sides, task: Task) -> list[Point]:
    """The whole profile, told as it comes."""
    described = {**task.described, "binding": source.identity.binding()}
    points: list[Point] = []
    for at in sweeps.profile(source, Side(sides.train), Side(sides.validation), task.plan, described):
        for point in at:
            low, high = min(point.aurocs), max(point.aurocs)
            print(
                f"layer {_layers(point):>5s}  {point.setting.kind:20s} C {point.setting.regularisation:<6g} "
                f"validation AUROC {point.mean:.3f} ({low:.3f} to {high:.3f} over {len(point.aurocs)} fits)",
                flush=True,
            )
        points += at
    return points


def _write(
    options: argparse.Namespace,
    task: Task,
    chats: Sequence[Conversation],
    sides: Sides,
    points: Sequence[Point],
    chosen: Point,
) -> ProbeManifest:
    s, labels = chosen.setting, dataset.labels(sides.train)
    made = Made(
        plan=task.plan,
        chosen=Chosen(kind=s.kind, layers=s.layers, regularisation=s.regularisation, pooled=s.pooled),
        data_digest=dataset.digest(chats),
        recipe=task.recipe.name if task.recipe else None,
        versions=versions(),
    )
    named = options.data or options.activations
    fitted_to = TrainingData(
        digest=dataset.digest(sides.train),
        split=f"train ({sides.rule})",
        n_positive=sum(labels),
        n_negative=len(labels) - sum(labels),
        source=f"recipe {task.recipe.name}" if named is None and task.recipe else str(named.name),
        made=made,
    )
    drawn = picture.svg(points, chosen, str(task.described["name"]))
    probe = chosen.probe.save(options.out, training=fitted_to, metrics=_figures(points))
    atomic.write_bytes(options.out.with_suffix(".profile.svg"), drawn)
    return probe.manifest


def _figures(points: Sequence[Point]) -> dict[str, JsonValue]:
    """The profile for the report card: mean AUROC over the fits, and their range."""
    means: dict[str, dict[str, JsonValue]] = {}
    ranges: dict[str, dict[str, JsonValue]] = {}
    for point in points:
        at, kind = _layers(point), point.setting.kind
        means.setdefault(at, {})[kind] = round(point.mean, 4)
        ranges.setdefault(at, {})[kind] = [round(min(point.aurocs), 4), round(max(point.aurocs), 4)]
    return {"layer_profile": dict(means), "layer_profile_range": dict(ranges)}


def _compare(made: Made, before: str, now: str) -> int:
    print(f"{'the same' if before == now else 'OTHER'} tensors: sha256 {now[:16]}.., before {before[:16]}..")
    if before == now:
        return 0
    here = versions()
    other = [
        f"{name} {made.versions.get(name)} -> {here[name]}"
        for name in here
        if made.versions.get(name) != here[name]
    ]
    print(
        f"versions that differ: {', '.join(other) or 'none; perhaps the number of threads or the processor'}"
    )
    return 1


def _layers(point: Point) -> str:
    return "+".join(map(str, point.setting.layers))
