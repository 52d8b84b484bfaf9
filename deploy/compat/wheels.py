"""Single modules out of the wheels of a package index. A wheel of hundreds of MiB costs a few MiB of it."""

from __future__ import annotations

import functools
import http.client
import io
import re
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

BLOCK = 1 << 18
"""Bytes fetched at a time. Modules that are read together lie together in a wheel."""
TIMEOUT = 60
"""Seconds without an answer."""

# A final or post release; of several builds the one for x86-64, since modules are the same in all.
_WHEEL = re.compile(r"vllm-(\d+\.\d+\.\d+(?:\.post\d+)?)-.*x86_64\.whl")


class UnreadableIndex(Exception):
    """The package index cannot be used: what, the value found, the remedy."""


@dataclass(frozen=True)
class Wheel:
    """One release on the index."""

    version: str
    url: str

    def open(self) -> zipfile.ZipFile:
        """The wheel's table of contents; its members are fetched when they are read."""
        return zipfile.ZipFile(io.BufferedReader(_RemoteFile(self.url), BLOCK))


def source(wheel: zipfile.ZipFile, module: str) -> str | None:
    """Source text of a module by its dotted name, None where the wheel has no such module."""
    path = module.replace(".", "/")
    for name in (f"{path}.py", f"{path}/__init__.py"):
        if name in wheel.NameToInfo:
            return wheel.read(name).decode()
    return None


def releases(index: str) -> Mapping[str, Wheel]:
    """Wheels on the index page, by version, oldest first; what was withdrawn is left out."""
    links = _Links()
    links.feed(_fetch(index).decode())
    found = {}
    for link in links.found:
        url = urldefrag(urljoin(index, link)).url
        match = _WHEEL.fullmatch(unquote(url.rpartition("/")[2]))
        if match:
            found[match[1]] = Wheel(match[1], url)
    if not found:
        raise UnreadableIndex(f"no wheels of vllm at {index}; give the project's page with --index")
    return {version: found[version] for version in sorted(found, key=number)}


def number(version: str) -> tuple[int, ...]:
    """``0.27.1`` as ``(0, 27, 1)``, to sort by."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a" and given.get("href") and "data-yanked" not in given:
            self.found.append(str(given["href"]))


class _RemoteFile(io.RawIOBase):
    """A file behind a URL, read by ranges; each block is fetched once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._at = 0
        self._size = _size(url)
        self._block = functools.cache(self._fetch_block)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        block, skip = divmod(self._at, BLOCK)
        data = self._block(block)[skip : skip + len(buffer)] if self._at < self._size else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch_block(self, block: int) -> bytes:
        first = block * BLOCK
        return _fetch(self._url, f"bytes={first}-{min(first + BLOCK, self._size) - 1}")


def _size(url: str) -> int:
    return int(_answer(url, "bytes=0-0")[1].rpartition("/")[2])


def _fetch(url: str, span: str | None = None) -> bytes:
    return _answer(url, span)[0]


def _answer(url: str, span: str | None) -> tuple[bytes, str]:
    """The bytes, and the Content-Range they came with."""
    try:
        request = urllib.request.Request(url, headers={"Range": span} if span else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if span and answer.status != 206:
                raise UnreadableIndex(f"{url} cannot be read in parts; give an --index that serves ranges")
            return answer.read(), answer.headers.get("Content-Range", "")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreadableIndex(
            f"cannot read {url}: {error}; check the network, or give another --index"
        ) from error
