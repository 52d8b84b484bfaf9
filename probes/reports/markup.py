"""Small pieces of HTML. Everything that comes from a card is escaped here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from probes.evaluating.card import Figure, NotComputed, Share


@dataclass(frozen=True)
class Cell:
    """A table cell: words, with smaller ones behind them, good or bad or neither."""

    text: str
    small: str = ""
    tone: str = ""


def table(head: Sequence[str], rows: Sequence[Sequence[Cell | str]]) -> str:
    """A table that scrolls within itself where the page is narrow."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, lead: str, *parts: str) -> str:
    """A heading, one sentence on how to read what follows, and the parts."""
    return f"<section><h2>{escape(title)}</h2><p class='note'>{escape(lead)}</p>{''.join(parts)}</section>"


def missing(part: NotComputed) -> str:
    """A part that was not computed, in its place."""
    return f'<p class="missing">Not computed: {escape(part.reason)}. To have it: {escape(part.remedy)}.</p>'


def tile(value: str, label: str) -> str:
    """A figure to be seen from afar."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def drawing(svg: str, caption: str) -> str:
    """A picture with its caption; the SVG is ours."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def number(found: Figure, few: str = "too few") -> Cell:
    """value with its interval"""
    if found.value is None:
        return Cell(few)
    return Cell(f"{found.value:.3f}", interval(found.low, found.high))


def interval(low: float | None, high: float | None) -> str:
    """What is known of an interval."""
    if low is None or high is None:
        return "" if high is None else f"up to {high:.3f}"
    return f"{low:.3f} to {high:.3f}"


def share(found: Share | None) -> Cell:
    """A share with its exact interval and what it is of."""
    if found is None:
        return Cell("none there")
    return Cell(f"{found.value:.1%}", f"{found.low:.1%} to {found.high:.1%}, {found.hits} of {found.n}")


def decimal(value: float | None, digits: int = 3) -> str:
    """A number, or that it cannot be given."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share without its interval."""
    return "unknown" if value is None else f"{value:.1%}"


def _cell(found: Cell | str) -> str:
    cell = Cell(found) if isinstance(found, str) else found
    tone = f' class="{cell.tone}"' if cell.tone else ""
    small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
    return f"<td{tone}>{escape(cell.text)}{small}</td>"
