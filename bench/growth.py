"""``make bench-growth``: points on the curves of cost, the constants of ``monitor.cost`` fitted to them, a picture.

Taps and host work are measured by themselves on one core, and so is a step of stock vLLM; the last part checks the sum:
engines with taps on all blocks, so wide that their cost shows beside the noise. ``--write`` keeps the constants in
monitor/cost.json, which `probewatch doctor --estimate` reads; ``--points`` draws and fits again without measuring.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import curves, fit, points
from bench.points import FinishPoint, HostPoint, StepPoint, TapPoint
from bench.running import tidy_when_terminated
from bench.workload import Workload
from monitor.cost import Device, Host
from monitor.shape import Shape

PARTS = ("taps", "host", "finish", "steps")
COMMAND = "python -m bench.growth --write"
CHECKED = [Workload(8, 32, 65), Workload(32, 32, 65), Workload(128, 32, 25)]
LOADS = [Workload(1, 32, 65), *CHECKED, Workload(256, 32, 25), Workload(4, 1024, 65), Workload(1, 4096, 65)]
WIDE = (16, 512, 2048)
"""Columns of taps on all blocks."""


def measured(parts: Sequence[str], quick: bool) -> dict[str, list[Any]]:
    """Points of these parts; ``quick``: a few of each, to see that it works."""
    widths, rows, columns = [768, 2048], [1, 8, 32, 128, 512, 2048], [16, 64, 334, 1000]
    requests, probes = [1, 8, 32, 128, 256], [8, 64, 300, 1000]
    loads, rounds = {0: LOADS, **dict.fromkeys(WIDE, CHECKED)}, 3
    if quick:
        widths, rows, requests, rounds = [768], [1, 32], [8, 64], 1
        loads = {0: CHECKED[:2], 512: CHECKED[:2]}
    ways: dict[str, Iterator[Any]] = {
        "taps": points.taps(widths, rows, columns),
        "host": points.hosts(requests, probes),
        "finish": points.finishes((64, 512, 1000), probes),
        "steps": points.steps(loads, rounds),
    }
    return {name: _told(ways[name]) for name in parts}


def _told(found: Iterator[Any]) -> list[Any]:
    kept = []
    for point in found:
        print(point, flush=True)
        kept.append(point)
    return kept


def bench_shape() -> Shape:
    """Of the model whose steps are measured."""
    from bench.model import config_of

    return Shape.of(config_of("134m").to_dict())


def fitted(found: dict[str, list[Any]]) -> tuple[Device, Host]:
    """This machine's core, and the host's share."""
    blank = Device("CPU core", f"{points.processor()}; {COMMAND}", COMMAND, False, 1, 1, 1, 1, 1, 1)
    core = fit.fit_forward(fit.fit_taps(blank, found["taps"]), bench_shape(), found["steps"])
    engine, server = fit.fit_host(found["host"])
    return core, Host(f"{points.processor()}; {COMMAND}", engine, server, fit.fit_finish(found["finish"]))


def misses(found: dict[str, list[Any]], core: Device, host: Host) -> dict[str, list[float]]:
    """Prediction over finding, of every point."""
    shape = bench_shape()

    def tap(p: TapPoint) -> float:
        return core.tap_seconds(fit.tap_shape(p.d_model), p.columns, p.rows) / p.seconds

    def step(p: StepPoint) -> float:
        return curves.step_seconds(shape, core, host, p) / p.seconds

    parts: dict[str, Callable[[], Sequence[float]]] = {
        "taps": lambda: [tap(p) for p in found["taps"]],
        "host, engine": lambda: [host.engine_seconds(p.requests, p.states) / p.engine for p in found["host"]],
        "host, server": lambda: [host.server_seconds(p.requests, p.states) / p.server for p in found["host"]],
        "finish": lambda: [host.finish_seconds(p.tokens, p.states) / p.seconds for p in found["finish"]],
        "steps": lambda: [step(p) for p in found["steps"]],
    }
    return {name: sorted(make()) for name, make in parts.items()}


def loaded(path: Path) -> dict[str, list[Any]]:
    """Points that an earlier run has kept."""
    kinds = {"taps": TapPoint, "host": HostPoint, "finish": FinishPoint, "steps": StepPoint}
    found = json.loads(path.read_text())
    return {name: [kind(**one) for one in found[name]] for name, kind in kinds.items() if name in found}


def main() -> int:
    """Measures or loads, fits, prints how far the predictions are off, draws."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=Path, help="points of an earlier run, in place of measuring")
    parser.add_argument(
        "--measure", nargs="+", choices=PARTS, help="measure these; the others as in --points"
    )
    parser.add_argument("--json", type=Path, help="keep the points here")
    parser.add_argument("--picture", type=Path, help="draw the curves here (PNG or SVG)")
    parser.add_argument("--write", action="store_true", help="keep the constants in monitor/cost.json")
    parser.add_argument("--quick", action="store_true", help="a few points, to see that it works")
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--quick measures too few points for --write; leave one of them out")
    tidy_when_terminated()
    asked = args.measure or (() if args.points else PARTS)
    found = {**(loaded(args.points) if args.points else {}), **measured(asked, args.quick)}
    if missing := set(PARTS) - set(found):
        parser.error(f"no points of {', '.join(sorted(missing))}; name an earlier run with --points")
    if args.json:
        args.json.write_text(
            json.dumps({name: points.as_json(some) for name, some in found.items()}, indent=1)
        )
    core, host = fitted(found)
    print(json.dumps({"core": asdict(core), "host": asdict(host)}, indent=1))
    for name, ratios in misses(found, core, host).items():
        middle = ratios[len(ratios) // 2]
        spread = f"{middle:.2f} (median), {ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} points"
        print(f"{name}: predicted over measured {spread}")
    print(curves.check_table(bench_shape(), core, host, found["steps"]))
    if args.picture:
        curves.draw(args.picture, bench_shape(), core, host, found)
    if args.write:
        fit.keep(host, core)
    return 0


if __name__ == "__main__":
    sys.exit(main())
