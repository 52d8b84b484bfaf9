"""The sections of a report card's page, in their order."""

from collections.abc import Callable
from html import escape
from typing import Final

from probes.evaluating.attack import verdict
from probes.evaluating.card import (
    NAMES,
    Card,
    Causal,
    Control,
    Latency,
    NotComputed,
    Profile,
    Reliability,
)
from probes.reports import plots
from probes.reports.markup import (
    Cell,
    decimal,
    drawing,
    interval,
    missing,
    number,
    percent,
    section,
    share,
    table,
)


def _separation(card: Card) -> str:
    names = list(dict.fromkeys(name for c in card.contrasts for name in c.beside))
    rows: list[list[Cell | str]] = []
    for c in card.contrasts:
        few = "needs 999 negatives"
        row: list[Cell | str] = [c.name, f"{c.n_positive} / {c.n_negative}", number(c.auroc)]
        row += [number(c.recall_1pct, "needs 99 negatives"), number(c.recall_01pct, few)]
        rows.append(row + [number(c.beside[name]) if name in c.beside else "" for name in names])
    head = ["contrast", "positive / negative", "AUROC", "recall at 1% FPR", "recall at 0.1% FPR"]
    drawn = drawing(
        plots.svg(card, "roc"),
        "Dotted: 1% and 0.1% false positives. Ring: the threshold in use.",
    )
    return section(
        "Separation",
        "Each contrast sets the same positives against another choice of negatives. Intervals: 95%, bootstrap over "
        "groups, the threshold estimated anew in each resample.",
        table([*head, *(NAMES[name] for name in names)], rows),
        f'<div class="row">{drawn}{_reliability(card)}</div>',
    )


def _reliability(card: Card) -> str:
    if isinstance(card.reliability, NotComputed):
        return missing(card.reliability)
    found: Reliability = card.reliability
    caption = (
        f"Brier score {decimal(found.brier.value)} (always saying the base rate: {found.brier_of_base_rate:.3f}), "
        f"calibration error {decimal(found.ece.value)} ({interval(found.ece.low, found.ece.high)}). Probabilities by "
        f"Platt scaling fitted on {found.fitted_on}."
    )
    return drawing(plots.svg(card, "reliability"), caption)


def _deployed(card: Card) -> str:
    lead = (
        "What the artifact's threshold does on all test conversations, and what a flag is worth where the concept is "
        "rarer (at worst: at the bad ends of both intervals). False positives depend on the mix: see By group."
    )
    if isinstance(card.deployed, NotComputed):
        return section("At the threshold", lead, missing(card.deployed))
    found = card.deployed
    rows: list[list[Cell | str]] = [
        [f"{row.base_rate:.2%}", percent(row.expected), percent(row.pessimistic)] for row in found.precision
    ]
    head = ["share of traffic with it", "flags that are right", "at worst"]
    at = table(
        ["", "at the threshold"],
        [["recall", share(found.recall)], ["false positives", share(found.false_positives)]],
    )
    return section(
        "At the threshold", lead, f'<div class="row"><div>{at}{table(head, rows)}</div>{_latency(card)}</div>'
    )


def _latency(card: Card) -> str:
    if isinstance(card.latency, NotComputed):
        return missing(card.latency)
    found: Latency = card.latency
    caption = (
        f"Positives caught by each answer token; 0: before anything is said. Never: {found.never.value:.1%}."
    )
    return drawing(plots.svg(card, "latency"), caption)


def _controls(card: Card) -> str:
    rows: list[list[Cell | str]] = [[c.name, number(c.auroc), c.detail, _verdict(c)] for c in card.controls]
    rows += [
        [NAMES[key], "not computed", f"{part.reason}; {part.remedy}", Cell("unknown", tone="bad")]
        for key, part in card.not_computed.items()
        if not key.endswith(("filtering", "transcripts"))
    ]
    return section(
        "Controls that must fail",
        f"Each is judged as the probe is. One that comes within {card.margin:g} of it (shaded) means that the "
        "figure above says little about the model's inside.",
        drawing(
            plots.svg(card, "controls"),
            "AUROC on the headline contrast; a control below 0.5 counts with its better sign.",
        ),
        table(["control", "AUROC", "how", ""], rows),
    )


def _verdict(control: Control) -> Cell:
    return Cell("succeeds", tone="bad") if control.succeeded else Cell("fails, as it must", tone="good")


def _leaks(card: Card) -> str:
    rows: list[list[Cell | str]] = [
        [
            leak.name,
            "" if leak.auroc is None else number(leak.auroc),
            f"{leak.n_positive} / {leak.n_negative}",
            leak.detail,
            Cell("leaks", tone="bad") if leak.failed else Cell("holds", tone="good"),
        ]
        for leak in card.leaks
    ]
    rows += [
        [NAMES[key], "not computed", "", f"{part.reason}; {part.remedy}", Cell("unknown", tone="bad")]
        for key, part in card.not_computed.items()
        if key.endswith(("filtering", "transcripts"))
    ]
    return section(
        "Leakage",
        "AUROC where the words have been made to say nothing. A probe that reads words falls to chance here.",
        table(["test", "AUROC", "positive / negative", "how", ""], rows),
    )


def _profile(card: Card) -> str:
    if isinstance(card.profile, NotComputed):
        return section("Layers", "Where in the model it can be read.", missing(card.profile))
    found: Profile = card.profile
    rows: list[list[Cell | str]] = [[str(layer), f"{auroc:.3f}"] for layer, auroc in found.layers]
    span = f"{min(found.refits):.3f} to {max(found.refits):.3f}"
    return section(
        "Layers",
        f"The same recipe fitted after each single block and judged on {found.judged_on}. "
        f"The probe's own setting, fitted again to {len(found.refits)} resamples of the training groups: {span} "
        "on the test split.",
        f'<div class="row">{drawing(plots.svg(card, "profile"), "Filled: the blocks that the probe reads.")}'
        f"<div>{table(['block', 'AUROC'], rows)}</div></div>",
    )


def _slices(card: Card) -> str:
    if not card.slices:
        return section(
            "By group", "Nothing in the data varies that could be told apart (condition, family, template)."
        )
    rows: list[list[Cell | str]] = [
        [
            s.field,
            s.value,
            f"{s.n_positive} / {s.n_negative}",
            Cell(decimal(s.auroc), "" if s.own_negatives else "against the headline's negatives")
            if s.n_positive
            else "",
            share(s.recall) if s.n_positive else "",
            share(s.false_positives) if s.n_negative else "",
        ]
        for s in card.slices
    ]
    head = ["field", "value", "positive / negative", "AUROC", "recall", "false positives"]
    return section(
        "By group", "At the artifact's threshold. Look for the row that the averages hide.", table(head, rows)
    )


def _causal(card: Card) -> str:
    lead = (
        "Is what the probe reads also what the model acts on? No gate hangs on it: a direction that detects well "
        "need not steer."
    )
    if isinstance(card.causal, NotComputed):
        return section("Causal check", lead, missing(card.causal))
    found: Causal = card.causal
    rows: list[list[Cell | str]] = [
        [
            e.intervention,
            "" if e.along == "none" else e.along,
            *map(share, (e.turned_off, e.turned_on, e.broken)),
        ]
        for e in found.effects
    ]
    head = [
        "intervention",
        "along",
        "turned off, pushed against it",
        "turned on, pushed towards it",
        "neither",
    ]
    return section(
        "Causal check",
        f"{found.verdict} {lead}",
        drawing(
            plots.svg(card, "causal"),
            "Of the answers that show the behaviour: those that show its opposite when pushed against it.",
        ),
        table(head, rows),
    )


def _stress(card: Card) -> str:
    lead = "Conditions that the probe was not fitted to. Answers and labels stay; the threshold is the artifact's."
    if isinstance(card.stress, NotComputed):
        return section("Stress", lead, missing(card.stress), _attack(card))
    rows: list[list[Cell | str]] = [
        [c.name, c.detail, number(c.auroc), share(c.recall), share(c.false_positives)] for c in card.stress
    ]
    return section(
        "Stress",
        lead,
        drawing(plots.svg(card, "stress"), "AUROC on a sample of all test conversations."),
        table(["condition", "", "AUROC", "recall", "false positives"], rows),
        _attack(card),
    )


def _attack(card: Card) -> str:
    head = "<h3>Adversarial suffix</h3>"
    if isinstance(card.attack, NotComputed):
        return head + missing(card.attack)
    found = card.attack
    rows: list[list[Cell | str]] = [
        ["recall without it", share(found.recall_before)],
        ["recall with random words instead", share(found.recall_random)],
        ["recall with it", share(found.recall_after)],
        ["answers under it that still show the behaviour", share(found.behaviour_after)],
    ]
    said = f"{found.steps} steps of greedy coordinate gradient; one suffix, judged on {found.n} other conversations:"
    words = f"{escape(said)} <code>{escape(found.suffix)}</code>. {escape(verdict(found))}"
    return f"{head}<p class='note'>{words}</p>{table(['', ''], rows)}"


SECTIONS: Final[tuple[Callable[[Card], str], ...]] = (
    _separation,
    _controls,
    _leaks,
    _deployed,
    _profile,
    _slices,
    _causal,
    _stress,
)
