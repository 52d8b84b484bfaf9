"""What each command of `probes.cli` does. Each takes parsed options and returns the exit status."""

import argparse
from typing import Final

from probes import artifact, dataset, evaluation, report, training
from probes.command_calibrate import calibrate as calibrate
from probes.errors import DataError
from probes.evaluating.command import evaluate as evaluate
from probes.identity import check_binding, model_identity
from probes.manifest import Aggregation, TokenMask, TrainingData
from probes.probe import load
from probes.sources import Sources
from probes.training import Setting

TOKENS: Final = {
    "answer": TokenMask(),
    "last-prompt": TokenMask(prompt="last_k", last_k=1, generated=False),
    "last-prompt+answer": TokenMask(prompt="last_k", last_k=1),
    "all": TokenMask(prompt="all"),
}


def train(options: argparse.Namespace) -> int:
    """Fit, choose on validation, write an artifact without a threshold."""
    source, chats = Sources(options.model, options.activations).open(options.data)
    fit, validation = (dataset.of_split(chats, split) for split in ("train", "validation"))
    labels, held = dataset.labels(fit), dataset.labels(validation)
    dataset.check_disjoint(train=fit, validation=validation)
    rule = _aggregation(options.aggregation, options.min_tokens)
    layers = options.layers or source.layers
    settings = [
        Setting(kind, (layer,), TOKENS[options.tokens], TOKENS[options.tokens], rule, "running_sup", c)
        for layer in layers
        for kind in options.kind or ("logistic",)
        for c in (options.regularisation if kind == "logistic" else (1.0,))
    ]
    found, judged = (source.activations(side, layers, TOKENS[options.tokens]) for side in (fit, validation))
    described = {
        "name": options.name,
        "concept": options.concept,
        "positive_label": options.positive,
        "negative_label": options.negative,
        "binding": source.identity.binding(),
        "training": TrainingData(
            digest=dataset.digest(fit),
            split="train",
            n_positive=sum(labels),
            n_negative=len(labels) - sum(labels),
            source=(options.data or options.activations).name,
        ),
    }
    trials = training.sweep(found, labels, judged, settings, evaluation.auroc_of(held), described)
    for trial in trials:
        s = trial.setting
        print(
            f"layer {s.layers[0]:3d}  {s.kind:20s} C {s.regularisation:<8g} validation AUROC {trial.objective:.3f}"
        )
    best = training.best(trials)
    written = best.probe.save(options.out).manifest
    print(f"chosen: layer {written.layers[0]}, {written.kind}; {options.out} has no threshold: calibrate it")
    return 0


def inspect(options: argparse.Namespace) -> int:
    """The manifest as JSON, or the report card."""
    manifest, _ = artifact.read(options.probe)
    print(manifest.model_dump_json(indent=2) if options.json else report.markdown(manifest), end="")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Format, digest and golden scores; with a model, the binding too. Faults raise."""
    probe = load(options.probe)
    checked = "format, digest, golden scores"
    if options.model is not None:
        check_binding(probe.manifest, model_identity(options.model))
        checked += ", binding"
    print(f"ok: {options.probe}: {probe.manifest.name} ({checked}; golden error {probe.selftest():.2g})")
    return 0


def _aggregation(text: str, min_tokens: int) -> Aggregation:
    method, _, alpha = text.partition(":")
    try:
        return Aggregation.model_validate(
            {"method": method, "alpha": float(alpha) if alpha else None, "min_tokens": min_tokens}
        )
    except ValueError:
        raise DataError(
            f"aggregation {text!r} is unknown; give mean, max, last or ema:ALPHA (0 < ALPHA <= 1)"
        ) from None
