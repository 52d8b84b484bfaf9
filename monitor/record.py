"""``probewatch record``: the scores of a probe on a server's traffic, as a file to calibrate with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from monitor.client import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, Server
from monitor.errors import ServerError
from probes import recorded
from probes.recorded import Finished, Header

DEFAULT_URL: Final = "http://127.0.0.1:8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``probewatch record``."""
    parser.epilog = (
        "example: probewatch record deception --since 2026-01-05 --until 2026-01-06 -o monday.scores.jsonl"
    )
    parser.add_argument("probe", help="name of an attached probe")
    parser.add_argument("--since", default="", metavar="TIME", help="ISO 8601 or Unix seconds (default: all)")
    parser.add_argument("--until", default="", metavar="TIME", help="that moment excluded (default: now)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSONL to write; it holds no text")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", default=None, help=f"vLLM's (default: {API_KEY_VARIABLE})")
    parser.add_argument("--admin-key", default=None, help=f"the monitor's (default: {ADMIN_KEY_VARIABLE})")


def main(args: argparse.Namespace) -> int:
    """Raises ``ServerError`` where the server refuses or nothing was recorded."""
    server = Server(args.url, args.api_key, args.admin_key)
    _check_untouched(server.status()["probes"])
    told = server.scores(args.probe, args.since, args.until)
    header, sequences = read(told)
    if not sequences:
        raise ServerError(
            f"0 sequences are recorded for {args.probe!r} ({left_out(told)}); send traffic first"
        )
    recorded.write(args.out, header, sequences)
    print(f"{len(sequences)} scores of {args.probe} in {args.out}; {left_out(told)}")
    print("calibrate takes all of them for benign: remove the lines of those that are not")
    return 0


def read(told: dict[str, Any]) -> tuple[Header, list[Finished]]:
    """What the server told, as a recording. Raises ``ServerError`` where it is not of that form."""
    try:
        header = Header(probe=told["probe"], statistic_digest=told["statistic_digest"], model=told["model"])
        return header, [Finished.model_validate(row) for row in told["sequences"]]
    except (ValidationError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ServerError(f"the server's scores cannot be read ({reason}); is it of this version?") from None


def left_out(told: dict[str, Any]) -> str:
    """How many sequences do not count, and why."""
    counts = told.get("left_out", {})
    return (
        f"left out: {counts.get('other_statistic', 0)} judged without this version of the probe, "
        f"{counts.get('not_fully_scored', 0)} with tokens that have no score"
    )


def _check_untouched(probes: list[dict[str, Any]]) -> None:
    """What a probe stopped or steered no longer shows what traffic scores by itself."""
    acting = [p["name"] for p in probes if str(p["action"]).partition(":")[0] in ("stop", "steer")]
    if acting:
        raise ServerError(
            f"probe {acting[0]!r} acts on running answers, so scores are cut short; record while every action is "
            f"alert or observe: probewatch set {acting[0]} action=alert"
        )
