"""Curves of cost with the measured points on them: what ``monitor.cost`` predicts, and what was found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.fit import tap_shape
from bench.points import FinishPoint, HostPoint, StepPoint, TapPoint
from monitor.cost import Cost, Device, Host, Load, Taps, cost
from monitor.shape import Shape

PROMPT, ANSWER = 512, 128
"""Tokens of a request, where requests a second count."""
_SETS = {
    "8 probes on 3 layers": (8, 3),
    "1000 probes on 3 layers": (1000, 3),
    "8 probes on all layers": (8, 0),
}


def step_seconds(shape: Shape, core: Device, host: Host, point: StepPoint) -> float:
    """What a step of that engine should take on one core, front end included."""
    load = Load(point.requests, point.context, point.rows)
    if not point.columns:
        return core.forward_seconds(shape, load)
    tapped = shape.layers - 1
    found = cost(shape, Taps(tapped, point.columns, tapped), load, core, host)
    return found.forward + found.taps + found.engine + found.server


def check_table(shape: Shape, core: Device, host: Host, steps: Sequence[StepPoint]) -> str:
    """Markdown: CPU seconds of a step with wide taps over those of stock's, predicted and found."""
    lines = ["| requests x context | columns of 11 taps | predicted | found |", "|---|---|---|---|"]
    stock = {(p.requests, p.context): p for p in steps if not p.columns}
    for point in (p for p in steps if p.columns):
        bare = stock[point.requests, point.context]
        predicted = step_seconds(shape, core, host, point) / step_seconds(shape, core, host, bare)
        ratio = point.seconds / bare.seconds
        lines.append(
            f"| {point.requests} x {point.context} | {point.columns} | {predicted:.3f} | {ratio:.3f} |"
        )
    return "\n".join(lines)


def _cost(shape: Shape, core: Device, host: Host, probes: int, layers: int, load: Load) -> Cost:
    """Single-layer probes, spread over ``layers`` tapped ones (0: all but the last)."""
    tapped = layers or shape.layers - 1
    return cost(shape, Taps(tapped, max(16, -(-probes // tapped)), probes), load, core, host)


def _share(found: Cost) -> float:
    """Per cent of the step that all of the monitor's work makes on one core."""
    return 100 * (found.taps + found.engine + found.server) / found.forward


def _rate(
    shape: Shape, core: Device, host: Host, probes: int, layers: int, running: int
) -> tuple[float, float]:
    """Requests a second that keep ``running`` at work on one core, and the per cent of it that the monitor takes."""
    own = _cost(shape, core, host, probes, layers, Load.decoding(running, PROMPT + ANSWER // 2))
    fed = _cost(shape, core, host, probes, layers, Load(1, PROMPT // 2, PROMPT))
    step, prompt = own.forward + own.taps + own.engine + own.server, fed.forward + fed.taps
    verdict = host.finish_seconds(ANSWER, probes)
    each = prompt + step * ANSWER / running + verdict  # core seconds of a request
    ours = fed.taps + (step - own.forward) * ANSWER / running + verdict
    return 1 / each, 100 * ours / each


def draw(path: Path, shape: Shape, core: Device, host: Host, found: dict[str, list[Any]]) -> None:
    """The measured parts with their predictions; then the share of a step along each axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 7.5), layout="constrained")
    axes = figure.subplots(2, 4)
    _taps(axes[0, 0], core, found["taps"])
    _host(axes[0, 1], host, found["host"])
    _finish(axes[0, 2], host, found["finish"])
    _steps(axes[0, 3], shape, core, host, found["steps"])
    _against_probes(axes[1, 0], shape, core, host)
    _against_layers(axes[1, 1], shape, core, host)
    _against_load(axes[1, 2], shape, core, host)
    _against_rate(axes[1, 3], shape, core, host)
    figure.suptitle(
        f"134M Llama, {core.name}: points measured, lines predicted by monitor/cost.py", fontsize=10
    )
    figure.savefig(path, dpi=100)


def _against_probes(axis: Any, shape: Shape, core: Device, host: Host) -> None:
    counts = [1, 3, 10, 30, 100, 300, 1000, 3000]
    costs = [_cost(shape, core, host, n, 3, Load.decoding(32, 512)) for n in counts]
    axis.plot(counts, [_share(one) for one in costs], color="C0", label="all of it")
    axis.plot(counts, [100 * one.taps / one.forward for one in costs], "--", color="C0", label="taps")
    _label(axis, "probes on 3 layers; 32 requests of 512 tokens", "% of a step's CPU time")


def _against_layers(axis: Any, shape: Shape, core: Device, host: Host) -> None:
    counts = range(1, shape.layers)
    for n in (1, 32, 256):
        costs = [_cost(shape, core, host, 8, layers, Load.decoding(n, 512)) for layers in counts]
        axis.plot(counts, [_share(one) for one in costs], label=f"{n} requests")
    _label(axis, "tapped layers; 8 probes", "% of a step's CPU time")


def _against_load(axis: Any, shape: Shape, core: Device, host: Host) -> None:
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for i, (name, (probes, layers)) in enumerate(_SETS.items()):
        for context, style in ((512, "-"), (8192, ":")):
            costs = [_cost(shape, core, host, probes, layers, Load.decoding(n, context)) for n in counts]
            axis.plot(
                counts,
                [_share(one) for one in costs],
                style,
                color=f"C{i}",
                label=f"{name}, {context} tokens",
            )
    _label(axis, "running requests", "% of a step's CPU time")


def _against_rate(axis: Any, shape: Shape, core: Device, host: Host) -> None:
    for name, (probes, layers) in _SETS.items():
        points = [_rate(shape, core, host, probes, layers, n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
        axis.plot(*zip(*points, strict=True), "-", label=name)
    _label(
        axis,
        f"requests a second ({PROMPT} + {ANSWER} tokens), a core full",
        "% of the core, verdicts included",
    )


def _label(axis: Any, x: str, y: str, title: str = "") -> None:
    axis.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axis.legend(fontsize=7)


def _taps(axis: Any, core: Device, points: Sequence[TapPoint]) -> None:
    shape, own = tap_shape(768), [p for p in points if p.d_model == 768]
    for columns in sorted({p.columns for p in points}):
        found = [(p.rows, p.seconds) for p in own if p.columns == columns]
        fitted = functools.partial(core.tap_seconds, shape, columns)
        _beside(axis, np.geomspace(1, 2048, 40), fitted, found, f"{columns} columns")
    _label(axis, "rows", "us", "one tap, width 768")


def _host(axis: Any, host: Host, points: Sequence[HostPoint]) -> None:
    for states in sorted({p.states for p in points}):
        found = [(p.requests, p.engine) for p in points if p.states == states]
        fitted = functools.partial(host.engine_seconds, states=states)
        _beside(axis, np.geomspace(1, 256, 40), fitted, found, f"{states} probes")
    _label(axis, "running requests", "us a step", "host, engine's process")


def _finish(axis: Any, host: Host, points: Sequence[FinishPoint]) -> None:
    for states in sorted({p.states for p in points}):
        found = [(p.tokens, p.seconds) for p in points if p.states == states]
        fitted = functools.partial(host.finish_seconds, states=states)
        _beside(axis, np.geomspace(64, 1000, 40), fitted, found, f"{states} probes")
    _label(axis, "tokens of an answer", "us", "verdicts at its end, API server")


def _beside(
    axis: Any,
    at: NDArray[np.float64],
    fitted: Callable[[int], float],
    found: Sequence[tuple[int, float]],
    label: str,
) -> None:
    """Microseconds: a fitted curve, and what was measured as dots of its colour."""
    [curve] = axis.plot(at, [fitted(int(n)) * 1e6 for n in at])
    x, y = [x for x, _ in found], [seconds * 1e6 for _, seconds in found]
    axis.plot(x, y, "o", color=curve.get_color(), label=label)


def _steps(axis: Any, shape: Shape, core: Device, host: Host, points: Sequence[StepPoint]) -> None:
    for i, columns in enumerate(sorted({p.columns for p in points})):
        own = [p for p in points if p.columns == columns]
        label = f"taps of {columns} on 11 blocks" if columns else "stock"
        axis.plot(
            [step_seconds(shape, core, host, p) * 1e3 for p in own],
            [p.seconds * 1e3 for p in own],
            "o",
            ms=4,
            color=f"C{i}",
            label=label,
        )
    ends = [min(p.seconds for p in points) * 1e3, max(p.seconds for p in points) * 1e3]
    axis.plot(ends, ends, color="0.7", zorder=0)
    _label(axis, "predicted, ms", "measured, ms", "a whole decoding step")
