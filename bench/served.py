"""A server for as long as a benchmark asks it things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from monitor.demo.server import ChildServer


@contextmanager
def served(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[str]:
    """The URL of a server that listens on ``port``, ready until the block ends. Raises ``ServerError`` if it dies."""
    url = f"http://127.0.0.1:{port}"
    server = ChildServer(command, environment, url, log)
    try:
        server.wait_ready(lambda elapsed, message: None, lambda: False)
        yield url
    finally:
        server.stop()
