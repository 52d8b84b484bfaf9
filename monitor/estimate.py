"""``probewatch doctor --estimate MODEL``: what probes would cost on a model, before anything is started."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from monitor.attach import make_plan, quartiles
from monitor.config import Settings, load_settings
from monitor.cost import Device, Host, Load, Taps, constants, cost, forward_work, tap_work
from monitor.errors import ConfigurationError
from monitor.shape import Shape

REQUESTS = (1, 32, 256)
LEGEND = (
    "host: in the engine's process. API: in the API server's, which has a core of its own. expected: throughput "
    "beside stock vLLM's where the step waits for the host; at best: where all host work hides behind the device. "
    "A GPU's step is the shortest that its data sheet allows: of a small model it is far longer, and the monitor's "
    "share far smaller."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments beside ``--estimate``."""
    group = parser.add_argument_group("with --estimate")
    group.add_argument(
        "--probes", type=int, metavar="N", help="single-layer probes in place of the configured ones"
    )
    group.add_argument(
        "--layers", type=int, metavar="L", help="layers that they are spread over (default: 3)"
    )
    group.add_argument(
        "--requests", type=int, nargs="+", metavar="R", default=REQUESTS, help="running at once"
    )
    group.add_argument("--context", type=int, metavar="T", default=1024, help="tokens that a request holds")
    group.add_argument("--batched-tokens", type=int, default=8192, help="vLLM's --max-num-batched-tokens")


def main(args: argparse.Namespace) -> int:
    """Prints facts about the tap, then a row for each device and load."""
    for name in ("probes", "layers", "context", "batched_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; give a positive number")
    if min(args.requests) < 1:
        raise ConfigurationError(f"--requests is {min(args.requests)}; give positive numbers")
    shape = Shape.of(read_config(args.estimate))
    taps, described = attached(shape, args.probes, args.layers)
    devices, host = constants()
    console = Console()
    console.print(
        f"{args.estimate}: {shape.parameters / 1e6:,.0f} M parameters, {shape.layers} blocks of {shape.d_model}",
        markup=False,
    )
    console.print(f"{described}; {taps.columns} columns a tap, {taps.states} numbers a token", markup=False)
    console.print(_table("per token, memory", facts(shape, taps, args.context, args.batched_tokens)))
    once = host.finish_seconds(args.context, taps.states)
    console.print(
        f"verdicts on {args.context} tokens that count, once, in the API server: {once * 1e6:.0f} us",
        markup=False,
    )
    console.print(_costs(shape, taps, args.requests, args.context, devices, host))
    for device in devices:
        console.print(f"{device.name}: {device.source}; taps: {device.tap_source}", style="dim", markup=False)
    console.print(f"host: {host.source}", style="dim", markup=False)
    console.print(LEGEND, markup=False)
    return 0


def read_config(model: Path) -> dict[str, Any]:
    """Of a model's folder, or the file itself; nothing is downloaded. Raises ``ConfigurationError``."""
    path = model / "config.json" if model.is_dir() else model
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"{path} cannot be read: {reason}; name a model's folder or its config.json on this machine"
        ) from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds a {type(found).__name__}; a config.json is an object")
    return found


def attached(shape: Shape, probes: int | None, layers: int | None) -> tuple[Taps, str]:
    """What would be attached, and in words: ``probes`` single-layer ones, or those that the settings name."""
    settings = load_settings()
    if probes is None and layers is None and (files := _files(settings)):
        plan = make_plan(settings.model_copy(update={"probes": files}))
        bank = plan.bank(shape.d_model, shape.layers)
        named = ", ".join(map(str, bank.layers))
        taps = Taps(len(bank.layers), bank.capacity, bank.state_columns)
        return taps, f"{len(bank.seats)} configured probes on layers {named}"
    count, spread = probes or 8, layers or len(quartiles(shape.layers))
    if spread > shape.layers:
        raise ConfigurationError(f"--layers is {spread}, the model has {shape.layers}; give no more")
    columns = max(settings.tap_columns, -(-count // spread))
    return Taps(spread, columns, count), f"{count} single-layer probes on {spread} layers"


def _files(settings: Settings) -> tuple[Path, ...]:
    """The probes that are configured; where none is, those that lie ready to be attached."""
    if settings.probes or settings.probe_dir is None:
        return settings.probes
    return tuple(sorted(settings.probe_dir.glob("*.safetensors")))


def facts(shape: Shape, taps: Taps, context: int, rows: int) -> Iterator[tuple[str, str]]:
    """Name and value of what does not depend on a device."""
    own, one = tap_work(shape, taps.columns, 1), forward_work(shape, Load(1, context, 1))
    flops = taps.layers * own.flops
    yield (
        "operations of the taps",
        f"{_short(flops)} of the model's {_short(one.flops)} ({flops / one.flops:.1e})",
    )
    moved = taps.layers * own.bytes
    yield (
        "bytes moved by the taps, one request",
        f"{_short(moved)}B of {_short(one.bytes)}B ({moved / one.bytes:.1e})",
    )
    yield "device to host", f"{_short(taps.layers * taps.columns * 4)}B a token"
    kept = max(taps.states, taps.columns) * 4  # with room for probes that come later
    yield "score store (host)", f"{kept} B a KV slot, {kept / shape.kv_bytes:.2%} of its keys and values"
    buffers = taps.layers * taps.columns * 4 * (rows + shape.d_model)
    yield f"tap buffers and weights (device), {rows} batched tokens", f"{buffers / 2**20:.1f} MiB"
    yield (
        f"scores of a finished request of {context} tokens (host)",
        f"{context * taps.states * 4 / 2**10:.0f} KiB",
    )


def _costs(
    shape: Shape, taps: Taps, requests: tuple[int, ...], context: int, devices: list[Device], host: Host
) -> Table:
    columns = ("device", "reqs", "step ms", "taps us", "host us", "API us", "expected", "at best")
    table = Table(*columns, title=f"a decoding step, {context} tokens a request", title_justify="left")
    table.columns[0].no_wrap = True
    for device in devices:
        for count in requests:
            found = cost(shape, taps, Load.decoding(count, context), device, host)
            table.add_row(
                device.name,
                str(count),
                f"{found.forward * 1e3:.2f}",
                f"{found.taps * 1e6:.0f}",
                f"{found.engine * 1e6:.0f}",
                f"{found.server * 1e6:.0f}",
                f"{found.ratio:.4f}",
                f"{found.ratio_hidden:.4f}",
            )
    return table


def _table(title: str, rows: Iterator[tuple[str, str]]) -> Table:
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "
