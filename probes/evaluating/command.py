"""`probewatch evaluate`: from files to a card, its JSON, a picture, and an exit status."""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from probes import dataset, report, splits
from probes.atomic import write_text
from probes.dataset import Conversation
from probes.errors import DataError
from probes.evaluating import profile, protocol
from probes.evaluating.bench import Bench, Side, contrasts
from probes.evaluating.card import NAMES, Card, Contrast, Figure
from probes.evaluating.gate import check_waived
from probes.identity import check_binding
from probes.probe import Probe, load
from probes.reports import html, plots
from probes.sources import FromModel, Source, Sources


def evaluate(options: argparse.Namespace) -> int:
    """Write the card; status 1 where `--gate` finds a fault or the AUROC is below `--min-auroc`."""
    check_waived(options.waive)  # before minutes are spent
    if options.picture:
        plots.check_format(options.picture)
    probe = load(options.probe)
    source, chats = Sources(options.model, options.activations).open(options.data)
    check_binding(probe.manifest, source.identity)
    bench = stand(probe, source, splits.as_trained(chats, probe.manifest), options)
    card = protocol.evaluate(
        bench,
        protocol.Options(
            source=(options.data or options.activations).name,
            command=_command(options),
            version=_version(),
            quick=options.quick,
            attack_steps=options.attack_steps,
            waived=options.waive,
            say=_say,
        ),
    )
    _write(card, options, probe)
    for line in summary(card):
        print(line)
    return status(card, gate=options.gate, min_auroc=options.min_auroc)


def status(card: Card, *, gate: bool, min_auroc: float | None) -> int:
    """1 where the gate is asked for and shut, or the headline's AUROC is below a minimum; else 0."""
    auroc = card.headline.auroc.value
    low = min_auroc is not None and (auroc is None or auroc < min_auroc)
    return int(low or (gate and bool(card.faults)))


def summary(card: Card) -> list[str]:
    """What the terminal shows: figures of each contrast, then the faults."""
    lines = [
        f"{c.name}: AUROC {_figure(c.auroc)}, recall at 1% FPR {_figure(c.recall_1pct)} "
        f"({c.n_positive} / {c.n_negative})"
        + "".join(f", {NAMES[key]} {_figure(found)}" for key, found in c.beside.items())
        for c in card.contrasts
    ]
    return [*lines, *(f"fault: {fault.key}: {fault.text}" for fault in card.faults)]


def stand(probe: Probe, source: Source, chats: list[Conversation], options: argparse.Namespace) -> Bench:
    """The bench: splits checked, activations taken. `DataError` for labels, groups or a headline that cannot be."""
    sides = {
        name: [chat for chat in chats if chat.split in ((name, None) if name == "test" else (name,))]
        for name in ("train", "validation", "test")
    }
    for name, side in sides.items():
        if side or name == "test":
            dataset.labels(side)  # refuses missing labels and a single class
    dataset.check_disjoint(**sides)
    names = contrasts(sides["test"])
    headline = options.headline or names[0]
    if headline not in names:
        raise DataError(f"contrast {headline!r} is not in the data; give one of: {', '.join(names)}")
    layers = profile.spread(source.layers, probe.manifest.layers)
    train, validation, test = (
        Side(side, source.activations(side, layers, probe.manifest.token_mask) if side else [])
        for side in sides.values()
    )
    loaded = source.loaded if isinstance(source, FromModel) else None
    return Bench(probe, loaded, train, validation, test, headline, options.margin, options.seed)


def _write(card: Card, options: argparse.Namespace, probe: Probe) -> None:
    page = options.report or Path(f"{card.subject.name}.report.html")
    write_text(page, html.page(card))
    write_text(page.with_suffix(".json"), card.model_dump_json(indent=1) + "\n")
    print(f"{page}: the card; {page.with_suffix('.json')}: the same as JSON")
    if options.picture:
        plots.picture(card, options.picture)
    if options.out:
        figures: dict[str, JsonValue] = {**probe.manifest.metrics, "test": _metrics(card)}
        written = probe.save(options.out, metrics=figures)
        write_text(options.out.with_suffix(".md"), report.markdown(written.manifest))


def _metrics(card: Card) -> JsonValue:
    """Contrasts as they stand in `manifest.metrics["test"]`."""
    return {c.name: _contrast(c) for c in card.contrasts}


def _contrast(c: Contrast) -> JsonValue:
    return {
        "description": c.name,
        "n_positive": c.n_positive,
        "n_negative": c.n_negative,
        "auroc": c.auroc.model_dump(),
        "recall_at_1pct_fpr": c.recall_1pct.model_dump(),
        "others_auroc": {NAMES[key]: found.model_dump() for key, found in c.beside.items()},
    }


def _figure(found: Figure) -> str:
    if found.value is None:
        return "too few negatives"
    between = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{between}"


def _command(options: argparse.Namespace) -> str:
    """As typed, without folders: a card is sent to others."""
    words = ["probewatch evaluate", options.probe.name]
    for flag in ("model", "activations", "data"):
        path = getattr(options, flag)
        words += [f"--{flag} {path.name}"] if path else []
    words += [f"--headline {options.headline}"] if options.headline else []
    words += ["--quick"] if options.quick else []
    words += [f"--attack-steps {options.attack_steps}"] if options.attack_steps else []
    words += [f"--margin {options.margin:g} --seed {options.seed}"]
    return " ".join(words + [f"--waive {key}" for key in options.waive])


def _say(part: str) -> None:
    """Progress, for somebody who watches."""
    if sys.stderr.isatty():
        print(f"... {part}", file=sys.stderr, flush=True)


def _version() -> str:
    try:
        return version("probewatch")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
