"""The report card as one HTML page: no script, nothing fetched, opens from a file; light and dark."""

from html import escape
from importlib.resources import files

from probes.evaluating.card import Card, Deployed, Latency
from probes.reports.markup import decimal, interval, percent, tile
from probes.reports.sections import SECTIONS


def page(card: Card) -> str:
    """The whole page."""
    title = escape(f"{card.subject.name}: report card")
    style = (files("probes.reports") / "card.css").read_text("utf-8")
    body = "".join(
        [_head(card), _banner(card), _tiles(card), *(part(card) for part in SECTIONS), _foot(card)]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _head(card: Card) -> str:
    s = card.subject
    return (
        f"<h1>{escape(s.name)}</h1>"
        f'<p class="lead">A high score means: {escape(s.positive_label)}. A low one: {escape(s.negative_label)}.</p>'
    )


def _banner(card: Card) -> str:
    waived = f" Waived: {', '.join(card.waived)}." if card.waived else ""
    if not card.faults:
        said = f"No control or leakage test comes within {card.margin:g} of the probe.{waived}"
        return f'<div class="banner"><strong>The gate is open</strong>{escape(said)}</div>'
    rows = "".join(f"<li>{escape(fault.text)}</li>" for fault in card.faults)
    n = len(card.faults)
    return (
        f'<div class="banner bad"><strong>The gate is shut: {n} fault{"s" * (n > 1)}</strong>'
        f"{escape(waived.strip())}<ul>{rows}</ul></div>"
    )


def _tiles(card: Card) -> str:
    head = card.headline
    text = [c.auroc.value for c in card.controls if c.key.startswith("text-") and c.auroc.value is not None]
    shown = [
        tile(decimal(head.auroc.value), f"AUROC, {interval(head.auroc.low, head.auroc.high)}"),
        tile(decimal(max(text, default=None)), "AUROC of the best text-only model"),
        tile(percent(head.recall_1pct.value), "recall at 1% false positives"),
    ]
    if isinstance(card.deployed, Deployed):
        false = card.deployed.false_positives
        shown.append(tile(f"{false.value:.2%}", f"flagged of {false.n} benign, at the threshold"))
    if isinstance(card.latency, Latency) and card.latency.median is not None:
        shown.append(tile(f"{card.latency.median:g}", "answer tokens to detection (median)"))
    return f'<div class="tiles">{"".join(shown)}</div><p class="note">{escape(_what(card))}</p>'


def _what(card: Card) -> str:
    d, s = card.data, card.subject
    threshold = "" if s.threshold is None else f" Threshold {s.threshold:.4g}"
    nominal = "" if s.nominal_fpr is None else f", calibrated for {s.nominal_fpr:.2%} false positives"
    return (
        f"Contrast “{d.headline}” of {d.source}: {card.headline.n_positive} positives against "
        f"{card.headline.n_negative} negatives, all unseen in training. Kind {s.kind} on blocks "
        f"{', '.join(map(str, s.layers))} (0-based) of {s.model_id}, over {s.tokens}; {s.aggregation}."
        f"{threshold}{nominal}{'.' if threshold else ''}"
    )


def _foot(card: Card) -> str:
    slow = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in card.seconds.items() if seconds >= 1)
    d = card.data
    lines = [
        f"<code>{escape(card.command)}</code>",
        escape(
            f"probewatch {card.version}, {card.created_at}. Probe tensors {card.subject.digest[:16]}, test data "
            f"{d.digest[:16]}: {d.test[0]} positives and {d.test[1]} negatives in {d.test_groups} groups; "
            f"controls were fitted to {d.train[0]} and {d.train[1]}."
        ),
        escape(f"Took: {slow or 'under a second for each part'}."),
    ]
    return f"<footer>{'<br>'.join(lines)}</footer>"
