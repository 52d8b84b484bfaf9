"""``probewatch export``: one case of a running server as a single HTML file."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from monitor.client import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, Server, ServerBusy
from monitor.errors import ConfigurationError, ServerError
from monitor.remote import DEFAULT_URL
from monitor.ui.case_file import case_html

PAUSES = (5.0, 5.0, 10.0, 20.0)
"""Seconds before a server that replays for somebody else is asked again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``probewatch export``."""
    parser.epilog = "example: probewatch export chatcmpl-9b2f61c0 -o case.html --url http://127.0.0.1:8000"
    parser.add_argument("id", metavar="ID", help="of the OpenAI response")
    parser.add_argument(
        "-o", "--output", type=Path, default=None, help="file to write (default: case-ID.html)"
    )
    parser.add_argument(
        "--words",
        action="store_true",
        help="with the logit-lens words at the peak of every probe that flagged",
    )
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the server (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", default=None, help=f"vLLM's (default: {API_KEY_VARIABLE})")
    parser.add_argument("--admin-key", default=None, help=f"the monitor's (default: {ADMIN_KEY_VARIABLE})")


def main(args: argparse.Namespace) -> int:
    """Raises ``ServerError`` where the server cannot be asked, refuses, or does not remember the response."""
    output = args.output or Path(f"case-{re.sub(r'[^A-Za-z0-9._-]+', '_', args.id)[:80]}.html")
    print(export(args.url, args.id, output, args.api_key, args.admin_key, args.words))
    return 0


def export(
    url: str,
    response_id: str,
    output: Path,
    api_key: str | None,
    admin_key: str | None,
    with_words: bool = False,
) -> Path:
    """Writes the file and returns its path. It holds prompt and answer where the server still knows them.

    Raises ``ServerError`` or, where the file cannot be written, ``ConfigurationError``.
    """
    server = Server(url, api_key, admin_key)
    probes = server.status()["probes"]
    case = server.request(response_id)
    if with_words:
        case["words"] = words_of(server, case)
    page = case_html(case, probes, server.url, time.time())
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--output {output} cannot be written: {error}") from error
    return output


def words_of(server: Server, case: dict[str, Any]) -> dict[str, Any]:
    """As the page keeps them: by ``CHOICE/PROBE``, for every probe that flagged and has any.

    Why one has none goes to stderr in a line: the case is worth writing without its words.
    """
    sequences = case.get("choices", [{**case, "index": case.get("choice", 0)}])
    flagged = [
        (one["index"], name) for one in sequences for name, said in one["probes"].items() if said["flagged"]
    ]
    found = {}
    for choice, name in flagged:
        try:
            found[f"{choice}/{name}"] = _patiently(server, case["id"], choice, name)
        except ServerError as error:
            print(f"no words of {name}, choice {choice}: {error}", file=sys.stderr)
    return found


def _patiently(server: Server, response_id: str, choice: int, probe: str) -> dict[str, Any]:
    for pause in PAUSES:
        try:
            return server.words(response_id, choice, probe)
        except ServerBusy:
            time.sleep(pause)
    return server.words(response_id, choice, probe)
