"""``probewatch attach``, ``detach``, ``set``, ``list`` and ``status``: a running server, no restart."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from monitor.client import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, Server
from monitor.errors import ConfigurationError

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_EXAMPLES: Final = {
    "attach": "probewatch attach deception.safetensors --url http://127.0.0.1:8000",
    "detach": "probewatch detach deception",
    "set": "probewatch set deception threshold=2.5 action=alert",
    "list": "probewatch list --url http://127.0.0.1:8000",
    "status": "probewatch status --json",
}


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Arguments of one command."""
    parser.epilog = f"example: {_EXAMPLES[command]}"
    if command == "attach":
        parser.add_argument(
            "files", nargs="+", metavar="FILE", help="relative to the server's PROBEWATCH_PROBE_DIR"
        )
    elif command == "detach":
        parser.add_argument("names", nargs="+", metavar="NAME")
    elif command == "set":
        parser.add_argument("name", metavar="NAME")
        parser.add_argument("changes", nargs="+", metavar="KEY=VALUE", help="threshold=NUMBER, action=ACTION")
    else:
        parser.add_argument("--json", action="store_true", help="as the server answers")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", default=None, help=f"vLLM's (default: {API_KEY_VARIABLE})")
    parser.add_argument("--admin-key", default=None, help=f"the monitor's (default: {ADMIN_KEY_VARIABLE})")


def main(args: argparse.Namespace) -> int:
    """Raises ``ServerError`` where the server cannot be asked or refuses."""
    server = Server(args.url, args.api_key, args.admin_key)
    if args.command == "attach":
        for file in args.files:
            probes = server.attach(file)
            print(f"attached {file}")
    elif args.command == "detach":
        for name in args.names:
            probes = server.detach(name)
            print(f"detached {name}")
    elif args.command == "set":
        probes = server.change(args.name, changes(args.changes))
    else:
        found = server.status()
        if args.json:
            print(json.dumps(found["probes"] if args.command == "list" else found, indent=2))
            return 0
        if args.command == "status":
            print("\n".join(summary(found)))
            return 0 if found["attached"] else 1
        probes = found["probes"]
    print("\n".join(table(probes)))
    return 0


def changes(given: Sequence[str]) -> dict[str, Any]:
    """``["threshold=2.5", "action=alert"]`` as the body of a PATCH. Raises ``ConfigurationError``."""
    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or key not in ("threshold", "action"):
            raise ConfigurationError(f"{one!r} cannot be set; give threshold=NUMBER or action=ACTION")
        found[key] = value
        if key == "threshold":
            try:
                found[key] = float(value)
            except ValueError:
                raise ConfigurationError(f"threshold={value}: give a number") from None
            if not math.isfinite(found[key]):
                raise ConfigurationError(f"threshold={value}: give a finite number")
    return found


def table(probes: Sequence[dict[str, Any]]) -> list[str]:
    """A line a probe."""
    if not probes:
        return ["no probe is attached"]
    rows = [("NAME", "ACTION", "THRESHOLD", "LAYERS", "KIND")]
    for probe in probes:
        threshold = "-" if probe["threshold"] is None else f"{probe['threshold']:.4g}"
        layers = ",".join(map(str, probe["layers"]))
        rows.append((probe["name"], probe["action"], threshold, layers, probe["kind"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def summary(status: dict[str, Any]) -> list[str]:
    """The status in a few lines."""
    covered = [value for value in status["coverage"].values() if value is not None]
    return [
        f"attached   {'yes' if status['attached'] else 'NO'}",
        f"model      {status['model']}",
        f"vLLM       {status['vllm_version']}, runner {status['runner']}, {status['engines']} engine(s)",
        f"layers     {', '.join(map(str, status['tapped_layers'] or []))} tapped",
        f"probes     {', '.join(probe['name'] for probe in status['probes']) or 'none'}",
        f"coverage   {f'{min(covered):.2%}' if covered else 'nothing seen yet'}",
        f"last error {status['last_error'] or 'none'}",
    ]
