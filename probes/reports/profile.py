"""The picture of a sweep: validation AUROC at each layer, a line for each kind with the range over its fits."""

import io
from collections.abc import Sequence
from typing import Any, Final

from probes.sweeps import Point

STYLES: Final = ("-", "--", ":", "-.")
"""Of lines that share a colour, and for eyes that do not tell colours apart."""


def svg(points: Sequence[Point], chosen: Point, name: str) -> bytes:
    """An SVG of its own. The same points give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(point.setting.layers for point in points))
    kinds = list(dict.fromkeys(point.setting.kind for point in points))
    with matplotlib.rc_context({"svg.hashsalt": "probewatch", "font.size": 9, "svg.fonttype": "path"}):
        figure = Figure(figsize=(min(14.0, 6.0 + 0.25 * len(layers)), 3.8), layout="constrained")
        axes: Any = figure.subplots()
        for number, kind in enumerate(kinds):
            own = [point for point in points if point.setting.kind == kind]
            at = [layers.index(point.setting.layers) for point in own]
            style = {"color": f"C{number % 10}", "linestyle": STYLES[number // 10 % len(STYLES)]}
            axes.plot(at, [point.mean for point in own], marker="o", markersize=3, label=kind, **style)
            low, high = [min(point.aurocs) for point in own], [max(point.aurocs) for point in own]
            axes.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
        _furnish(axes, points, chosen, layers, name)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _furnish(
    axes: Any, points: Sequence[Point], chosen: Point, layers: list[tuple[int, ...]], name: str
) -> None:
    """Axes, chance, what was chosen, and the words."""
    lowest = min(min(point.aurocs) for point in points)
    axes.set_ylim(min(0.45, lowest - 0.03), 1.02)
    axes.axhline(0.5, color="0.6", linewidth=0.8)
    axes.text(
        1.0, 0.5, " chance", transform=axes.get_yaxis_transform(), va="center", color="0.5", fontsize=7.5
    )
    place = layers.index(chosen.setting.layers)
    label = f"chosen: {chosen.setting.kind}, {chosen.mean:.3f}"
    axes.plot([place], [chosen.mean], "o", markersize=11, fillstyle="none", color="black", label=label)
    every = max(1, len(layers) // 24)
    shown = range(0, len(layers), every)
    axes.set_xticks(list(shown), ["+".join(map(str, layers[i])) for i in shown])
    axes.set_xlabel("layer (0-based, the residual stream after the block)")
    axes.set_ylabel("AUROC on validation")
    axes.set_title(f"{name}: mean and range over {len(chosen.aurocs)} fits", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 0.95), fontsize=7.5)
