"""The files of the page, read once; plain HTML, CSS and JavaScript modules, no build step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final, NamedTuple

TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER = Path(__file__).resolve().parent / "static"


class Asset(NamedTuple):
    """One file as it is sent."""

    text: str
    media_type: str


@functools.cache
def assets() -> dict[str, Asset]:
    """By file name. Whatever a client asks for is looked up here, never on disk."""
    found = sorted(path for path in _FOLDER.iterdir() if path.suffix in TYPES)
    return {path.name: Asset(path.read_text(encoding="utf-8"), TYPES[path.suffix]) for path in found}
