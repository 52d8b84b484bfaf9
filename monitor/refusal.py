"""The reason for a refusal as the last line a user sees.

vLLM's processes die with long tracebacks of their own. The process that refuses files its reason; the API
server prints it when everything else has been printed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from pathlib import Path

REFUSAL_FILE = "PROBEWATCH_REFUSAL_FILE"
REQUIRE_ENDPOINT = "PROBEWATCH_REQUIRE_ENDPOINT"
"""Set by ``probewatch serve``: an API server without our routes must not come up."""


def file_reason(reason: str) -> None:
    """Called by whatever process refuses to go on."""
    if path := os.environ.get(REFUSAL_FILE):
        Path(path).write_text(" ".join(reason.split()))


def print_at_exit() -> None:
    """Called once in the process that the user started; its children must not print a second time."""
    if path := os.environ.get(REFUSAL_FILE):
        atexit.register(_print, Path(path), os.getpid())


def _print(path: Path, owner: int) -> None:
    if os.getpid() != owner:
        return
    with contextlib.suppress(FileNotFoundError):
        if reason := path.read_text():
            print(f"probewatch: refused to start: {reason}", file=sys.stderr, flush=True)
        path.unlink()
