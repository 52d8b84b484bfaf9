"""The pictures of a report card, drawn with matplotlib.

Within the page they are inline SVG whose colours are CSS variables, so that one drawing serves light and dark:
matplotlib draws in placeholder colours, which are then replaced by `var(--name)`. On demand the same panels go
into one picture file.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from probes.atomic import write_bytes
from probes.errors import DataError
from probes.evaluating.card import (
    Card,
    Causal,
    Deployed,
    Effect,
    Figure,
    Latency,
    NotComputed,
    Profile,
    Reliability,
    Share,
)


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for. The defaults are placeholders, one for each CSS variable."""

    ink: str = "#010101"
    muted: str = "#010102"
    grid: str = "#010103"
    paper: str = "#010104"
    first: str = "#010105"
    second: str = "#010106"
    third: str = "#010107"
    bad: str = "#010108"

    @property
    def series(self) -> tuple[str, ...]:
        """For several curves in one picture."""
        return self.first, self.second, self.third, self.muted


PLACEHOLDERS: Final = Theme()
LIGHT: Final = Theme("#1c2430", "#6b7686", "#e3e7ed", "#ffffff", "#2467c9", "#c2620a", "#2f8554", "#c5352b")
SUFFIXES: Final = (".png", ".svg", ".pdf")
Part = TypeVar("Part")
Draw = Callable[[Any, Card, Theme], None]
"""(matplotlib axes, card, theme) -> None"""


def roc(ax: Any, card: Card, theme: Theme) -> None:
    """Recall over the false-positive rate on a logarithmic axis, one curve a contrast."""
    lowest = 0.5 / max(contrast.n_negative for contrast in card.contrasts)
    for contrast, colour in zip(card.contrasts, theme.series, strict=False):
        x = [max(point[0], lowest) for point in contrast.roc]
        ax.step(
            x, [point[1] for point in contrast.roc], where="post", color=colour, lw=1.8, label=contrast.name
        )
    for rate in (0.01, 0.001):
        ax.axvline(rate, color=theme.muted, lw=0.8, ls=(0, (2, 3)))
    if isinstance(card.deployed, Deployed):
        at = max(card.deployed.false_positives.value, lowest)
        ax.plot(
            [at],
            [card.deployed.recall.value],
            "o",
            ms=7,
            mfc=theme.paper,
            mec=theme.bad,
            mew=2,
            label="threshold",
        )
    ax.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.03), xlabel="false-positive rate", ylabel="recall")
    decades = [rate for rate in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0) if rate >= lowest]
    ax.set_xticks(decades, [f"{100 * rate:g}%" for rate in decades])
    ax.minorticks_off()
    ax.legend(loc="lower right")


def reliability(ax: Any, card: Card, theme: Theme) -> None:
    """Observed share of positives over predicted probability, with exact intervals."""
    found = _part(card.reliability, Reliability)
    ax.plot([0, 1], [0, 1], color=theme.muted, lw=1, ls=(0, (2, 3)))
    x, y = [b.predicted for b in found.bins], [b.observed.value for b in found.bins]
    spread = [[v - b.observed.low for v, b in zip(y, found.bins, strict=True)]]
    spread.append([b.observed.high - v for v, b in zip(y, found.bins, strict=True)])
    ax.errorbar(x, y, yerr=spread, fmt="none", ecolor=theme.first, elinewidth=1)
    most = max(b.observed.n for b in found.bins)
    ax.scatter(
        x, y, s=[14 + 130 * b.observed.n / most for b in found.bins], color=theme.first, lw=0, zorder=3
    )
    ax.set(
        xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability", ylabel="share of positives"
    )


def latency(ax: Any, card: Card, theme: Theme) -> None:
    """Share of the positives caught by each answer token."""
    found = _part(card.latency, Latency)
    steps = [(-0.5, 0.0), *found.caught_by] if found.caught_by else [(0, 0.0)]
    last = max(steps[-1][0] + 1, 10)
    x, y = [step[0] for step in steps] + [last], [step[1] for step in steps] + [steps[-1][1]]
    ax.step(x, y, where="post", color=theme.first, lw=1.8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlim=(-0.5, last), ylim=(0, 1.03), xlabel="answer tokens", ylabel="positives caught")


def profile(ax: Any, card: Card, theme: Theme) -> None:
    """AUROC after each block; the probe's own blocks are filled."""
    found = _part(card.profile, Profile)
    x, y = [layer for layer, _ in found.layers], [value for _, value in found.layers]
    ax.axhline(0.5, color=theme.muted, lw=1, ls=(0, (2, 3)))
    ax.plot(x, y, color=theme.first, lw=1.8)
    for layer, value in found.layers:
        own = layer in card.subject.layers
        ax.plot(layer, value, "o", ms=7, mec=theme.first, mew=1.8, mfc=theme.first if own else theme.paper)
    ax.set(ylim=(min(0.4, *y) - 0.02, 1.03), xlabel="block (0-based)", ylabel="AUROC", xticks=x)


def controls(ax: Any, card: Card, theme: Theme) -> None:
    """The probe above everything that must stay below it; the zone that none may enter is shaded."""
    probe = card.headline.auroc
    rows: list[tuple[str, Figure, str]] = [("the probe", probe, theme.first)]
    rows += [(c.name, c.auroc, theme.bad if c.succeeded else theme.muted) for c in card.controls]
    ax.axvspan((probe.value or 0.0) - card.margin, 1.02, color=theme.grid, lw=0, zorder=0)
    ax.axvline(0.5, color=theme.muted, lw=1, ls=(0, (2, 3)))
    _dots(ax, rows)
    lowest = min(
        0.4, *(bound for _, found, _ in rows for bound in (found.low, found.value) if bound is not None)
    )
    ax.set(xlim=(lowest - 0.02, 1.02), xlabel="AUROC")


def stress(ax: Any, card: Card, theme: Theme) -> None:
    """AUROC under other conditions."""
    if isinstance(card.stress, NotComputed):
        raise ValueError("stress was not computed")
    rows = [(c.name, c.auroc, theme.first if i else theme.muted) for i, c in enumerate(card.stress)]
    _dots(ax, rows)
    lowest = min(found.low or found.value or 0.0 for _, found, _ in rows)
    ax.set(xlim=(min(0.9, lowest - 0.02), 1.01), xlabel="AUROC")


def causal(ax: Any, card: Card, theme: Theme) -> None:
    """Answers that turn to the opposite when the stream is pushed against the behaviour."""
    found = _part(card.causal, Causal)
    names = list(dict.fromkeys(effect.intervention for effect in found.effects))[1:]
    colours = {"probe": theme.first, "class means": theme.second, "random": theme.muted}
    for i, (along, colour) in enumerate(colours.items()):
        shares = [_turned(found.effects, name, along) for name in names]
        x = [place + (i - 1) * 0.27 for place in range(len(names))]
        label = "strongest random" if along == "random" else f"along {along}"
        ax.bar(x, [share.value for share in shares], width=0.24, color=colour, label=label)
        for place, share in zip(x, shares, strict=True):
            ax.text(
                place, share.value + 0.02, f"{share.value:.0%}", ha="center", color=theme.ink, fontsize=8.5
            )
    ax.set(ylim=(0, 1.28), ylabel="answers turned", yticks=[0, 0.25, 0.5, 0.75, 1.0])
    ax.set_xticks(range(len(names)), names)
    ax.legend(loc="upper center", ncols=3)


PANELS: Final[Mapping[str, tuple[str, Draw, tuple[float, float]]]] = {
    "roc": ("Recall over false positives", roc, (5.2, 3.5)),
    "reliability": ("Reliability", reliability, (5.2, 3.5)),
    "controls": ("The probe and what must not do as well", controls, (10.4, 3.4)),
    "profile": ("AUROC by layer", profile, (5.2, 3.2)),
    "latency": ("Time to detection", latency, (5.2, 3.2)),
    "causal": ("Pushed against the behaviour", causal, (10.4, 3.2)),
    "stress": ("Under other conditions", stress, (10.4, 3.2)),
}
"""name -> (title, how it is drawn, size in inches)"""


def available(card: Card) -> list[str]:
    """The panels that a card has figures for."""
    parts = {name: getattr(card, name, None) for name in PANELS}
    return [name for name, part in parts.items() if not isinstance(part, NotComputed)]


def svg(card: Card, name: str) -> str:
    """One panel as inline SVG in the page's own colours; deterministic."""
    title, draw, size = PANELS[name]
    plt = _pyplot()
    with plt.rc_context({**_style(PLACEHOLDERS), "svg.fonttype": "none", "svg.hashsalt": name}):
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        draw(ax, card, PLACEHOLDERS)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return _inline(out.getvalue(), title, name)


def picture(card: Card, path: Path) -> None:
    """All panels in one picture: .png, .svg or .pdf. `DataError` for another suffix."""
    check_format(path)
    plt, names = _pyplot(), available(card)
    with plt.rc_context(_style(LIGHT)):
        rows = (len(names) + 1) // 2
        figure, axes = plt.subplots(rows, 2, figsize=(13, 3.6 * rows), layout="constrained", squeeze=False)
        for ax, name in zip(axes.flat, names, strict=False):
            PANELS[name][1](ax, card, LIGHT)
            ax.set_title(PANELS[name][0], loc="left", fontsize=11, color=LIGHT.ink)
        for ax in axes.flat[len(names) :]:
            ax.axis("off")
        figure.suptitle(f"{card.subject.name} on {card.data.source}", color=LIGHT.ink, fontsize=13)
        out = io.BytesIO()
        figure.savefig(out, format=path.suffix[1:], dpi=130, facecolor=LIGHT.paper)
        plt.close(figure)
    write_bytes(path, out.getvalue())


def check_format(path: Path) -> None:
    """`DataError` for a suffix that is no picture's."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path.name}: no picture format; give a name that ends with {', '.join(SUFFIXES)}")


def _part(found: object, kind: type[Part]) -> Part:
    if not isinstance(found, kind):
        raise ValueError(f"{kind.__name__} was not computed")
    return found


def _turned(effects: Sequence[Effect], name: str, along: str) -> Share:
    return next(e.turned_off for e in effects if e.intervention == name and e.along == along)


def _dots(ax: Any, rows: Sequence[tuple[str, Figure, str]]) -> None:
    for place, (_, found, colour) in enumerate(rows):
        value = found.value if found.value is not None else 0.5
        low, high = (
            found.low if found.low is not None else value,
            found.high if found.high is not None else value,
        )
        ax.plot([low, high], [place, place], color=colour, lw=2, solid_capstyle="round")
        ax.plot([value], [place], "o", color=colour, ms=7)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _style(theme: Theme) -> dict[str, object]:
    return {
        "font.size": 9.5,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }


def _inline(drawn: str, title: str, name: str) -> str:
    """matplotlib's file as an element of a page: no prologue, no fixed size, colours and font from the page."""
    body = drawn[drawn.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(
        r'\bid="(?![mpC][0-9a-f]{8,})[^"]*"', "", body
    )  # ids that nothing refers to would occur twice
    for field in fields(Theme):
        body = body.replace(getattr(PLACEHOLDERS, field.name), f"var(--{field.name})")
    return body.replace("<svg", f'<svg role="img" aria-label="{title}" class="plot {name}"', 1)
