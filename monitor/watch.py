"""``probewatch watch``: the newest requests of a running server and what the probes said. No text, no token."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from monitor.client import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, Server, ServerAway
from monitor.errors import ConfigurationError, printable

DEFAULT_URL: Final = "http://127.0.0.1:8000"
MAX_LIMIT: Final = 1000
_PIPE_WIDTH: Final = 160
_LINES_AROUND: Final = 9
_STYLES: Final = {"flagged": "bold red", "unscored": "bold magenta", "ok": "green"}

Headline = Mapping[str, Any]
"""An entry of ``GET /v1/probewatch/requests``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``probewatch watch``."""
    parser.epilog = "example: probewatch watch --url http://127.0.0.1:8000"
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)"
    )
    parser.add_argument(
        "--limit", type=int, default=50, metavar="N", help="newest requests to show (default: 50)"
    )
    parser.add_argument("--api-key", default=None, help=f"vLLM's (default: {API_KEY_VARIABLE})")
    parser.add_argument("--admin-key", default=None, help=f"the monitor's (default: {ADMIN_KEY_VARIABLE})")


def main(args: argparse.Namespace) -> int:
    """Ends with ``--once`` or on Ctrl-C. Raises ``ServerError`` if the server cannot be watched."""
    if not (math.isfinite(args.interval) and args.interval > 0):
        raise ConfigurationError(f"--interval {args.interval}: give seconds above 0")
    if not 1 <= args.limit <= MAX_LIMIT:
        raise ConfigurationError(f"--limit {args.limit}: give 1 to {MAX_LIMIT}")
    server = Server(args.url, args.api_key, args.admin_key)
    status, newest = server.status(), server.requests(args.limit)
    screen = sys.stdout.isatty()
    if args.once:
        console = Console() if screen else Console(width=_PIPE_WIDTH, force_terminal=False)
        console.print(*_heading(status), table(newest, status), sep="\n")
        return 0
    try:
        if screen:
            _watch_live(server, args.limit, args.interval, Console())
        else:
            _watch_lines(server, args.limit, args.interval)
    except KeyboardInterrupt:
        return 0
    return 0


class Connection:
    """Polls a server that may go away and come back; anything but that is raised."""

    def __init__(self, server: Server, limit: int) -> None:
        self._server = server
        self._limit = limit
        self.away_since: float | None = None
        self.trouble: str | None = None
        self.status: dict[str, Any] = {}
        self.newest: list[dict[str, Any]] = []

    def look(self) -> None:
        """Takes in what the server shows now, or notes since when it shows nothing."""
        try:
            self.status, self.newest = self._server.status(), self._server.requests(self._limit)
            self.away_since = self.trouble = None
        except ServerAway as error:
            self.away_since = self.away_since or time.time()
            self.trouble = f"no answer since {clock(self.away_since)}, trying on: {error}"


def _watch_live(server: Server, limit: int, interval: float, console: Console) -> None:
    connection = Connection(server, limit)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            connection.look()
            rows = max(1, console.height - _LINES_AROUND)
            shown: list[RenderableType] = [
                *_heading(connection.status),
                table(connection.newest[:rows], connection.status, fill=True),
            ]
            if connection.trouble:
                shown.append(Text(connection.trouble, style="bold yellow"))
            shown.append(Text("Ctrl-C stops", style="dim"))  # short: the terminal writes ^C behind it
            live.update(Group(*shown), refresh=True)
            time.sleep(interval)


def _watch_lines(server: Server, limit: int, interval: float) -> None:
    """One line for each request that finishes, oldest first."""
    connection, seen, away = Connection(server, limit), set[tuple[str, int]](), False
    while True:
        connection.look()
        if connection.trouble and not away:
            print(connection.trouble, flush=True)
        if away and not connection.trouble:
            print(f"the server is back ({clock(time.time())})", flush=True)
        away = connection.trouble is not None
        current = {(str(line["id"]), int(line["choice"])): line for line in reversed(connection.newest)}
        for key, line in current.items():
            if key not in seen:
                print("  ".join(cells(line, acting(connection.status))), flush=True)
        seen = set(current) if not away else seen
        time.sleep(interval)


def acting(status: Mapping[str, Any]) -> list[str]:
    """Names of the probes whose verdict counts, in the server's order."""
    return [str(probe["name"]) for probe in status.get("probes", ()) if probe["action"] != "observe"]


def _heading(status: Mapping[str, Any]) -> list[Text]:
    if not status:
        return []
    attached = (
        Text("attached", style="green") if status["attached"] else Text("NOT ATTACHED", style="bold red")
    )
    layers = ", ".join(map(str, status.get("tapped_layers") or ())) or "none"
    first = Text.assemble(
        f"{status['model']} on vLLM {status['vllm_version']}: ", attached, f", layers {layers} tapped"
    )
    probes = Text(
        "   ".join(describe(probe, status["coverage"]) for probe in status["probes"]) or "no probes",
        style="dim",
    )
    error = status.get("last_error")
    return [first, probes, *([Text(f"last error: {error}", style="bold yellow")] if error else [])]


def describe(probe: Mapping[str, Any], coverage: Mapping[str, float | None]) -> str:
    """A probe in a few words: its threshold, action and coverage."""
    share = coverage.get(probe["name"])
    seen = "no tokens yet" if share is None else f"coverage {math.floor(share * 100)}%"
    threshold = "no threshold" if probe["threshold"] is None else f"threshold {probe['threshold']:+.3g}"
    return f"{probe['name']} ({probe['action']}, {threshold}, {seen})"


def table(newest: Sequence[Headline], status: Mapping[str, Any], *, fill: bool = False) -> Table:
    """The requests as rows, newest first, with a column for each probe whose verdict counts."""
    probes = acting(status)
    found = Table(expand=fill, pad_edge=False)
    for name in ("time", "verdict", *probes, "also crossed", "tokens", "coverage", "end"):
        found.add_column(name, no_wrap=True)
    found.add_column("request", no_wrap=True, overflow="ellipsis", ratio=1 if fill else None)
    for line in newest:
        when, verdict, *rest = cells(line, probes)
        found.add_row(when, Text(verdict, style=_STYLES.get(line["verdict"], "")), *map(Text, rest))
    return found


def cells(line: Headline, probes: Sequence[str]) -> list[str]:
    """One request as text; the scores of ``probes`` against their thresholds, others only by name."""
    verdict = str(line["verdict"])
    scores = [against_threshold(line["probes"].get(name)) for name in probes]
    crossed = [name for name, said in line["probes"].items() if said["flagged"] and name not in probes]
    answer = line["fed_tokens"] - line["prompt_tokens"] + 1
    return [
        clock(line["finished_at"]),
        "ok" if verdict == "ok" else verdict.upper(),
        *scores,
        ", ".join(crossed) or "-",
        f"{line['prompt_tokens']}+{max(answer, 0)}",
        coverage(line["coverage"]),
        str(line["finish_reason"]),
        printable(str(line["id"])) + (f" [{line['choice']}]" if line["choice"] else ""),
    ]


def against_threshold(said: Mapping[str, Any] | None) -> str:
    """For example ``+3.21 > +0.45``; above its threshold a probe flags."""
    if said is None or said["score"] is None:
        return "-"
    if said["threshold"] is None:
        return f"{said['score']:+.3g}"
    return f"{said['score']:+.3g} {'>' if said['flagged'] else '<='} {said['threshold']:+.3g}"


def coverage(shares: Mapping[str, float | None]) -> str:
    """The worse of both phases, in percent; rounded down, so that 100% means all."""
    known = [share for share in shares.values() if share is not None]
    return f"{math.floor(min(known) * 100)}%" if known else "-"


def clock(seconds: float) -> str:
    """Local time of day."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
