"""The lines of an audit log: each holds the SHA-256 of the line before, so that none can be changed unseen.

A line is one JSON object in ASCII: ``serial`` (from 1), ``time`` (Unix, seconds), ``event``, what belongs to it,
``prev`` (SHA-256 of the bytes of the line before, without its newline; 64 zeros before the first), and, where the log
has a key, ``mac``: HMAC-SHA256 of the same line without ``mac``. Hash chaining as in Schneier and Kelsey, Secure audit
logs to support computer forensics, ACM TISSEC 2(2), 1999.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BROKEN = "log_broken"
"""The event by which a log tells of damage that its writer found, with the ``reason``."""
FIRST = "0" * 64
"""``prev`` of the first line."""
LINE_BYTES = 2**20
"""No line is longer."""
LARGEST_SERIAL = 2**53
"""The writer goes on behind a foreign line: its number may not be one that no head has room for."""
_MAC = re.compile(rb',"mac":"([0-9a-f]{64})"}$')


@dataclass(frozen=True)
class Link:
    """Where a chain stands: its last line."""

    serial: int = 0
    digest: str = FIRST


@dataclass(frozen=True)
class Line:
    """One line that was read."""

    serial: int
    prev: str
    digest: str
    """SHA-256 of its bytes."""
    trouble: str | None
    """What the writer found wrong with the log when it wrote this line."""


class BrokenLine(ValueError):
    """A line that is none of a log; the message says why."""


def seal(event: Mapping[str, Any], after: Link, key: bytes | None) -> tuple[bytes, Link]:
    """The line, newline included, that records ``event`` after ``after``, and the link it makes.

    Raises ``ValueError`` for what JSON cannot hold, a number that is not finite among it, and for a line too long.
    """
    content = {"serial": after.serial + 1, **event, "prev": after.digest}
    line = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if key is not None:
        line = line[:-1] + b',"mac":"' + _mac(line, key) + b'"}'
    if len(line) >= LINE_BYTES:
        raise ValueError(f"an event of {len(line)} bytes; a line of the audit log holds {LINE_BYTES}")
    return line + b"\n", Link(after.serial + 1, hashlib.sha256(line).hexdigest())


def read(line: bytes, key: bytes | None) -> Line:
    """A line without its newline. Raises ``BrokenLine``, with a key also for a signature that is missing or wrong."""
    try:
        content = json.loads(line)
        serial, prev = content["serial"], content["prev"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BrokenLine("is no line of an audit log") from None
    if not isinstance(serial, int) or isinstance(serial, bool) or not isinstance(prev, str):
        raise BrokenLine("is no line of an audit log")
    if not 0 < serial <= LARGEST_SERIAL:
        raise BrokenLine("has a serial that no log reaches")
    if key is not None:
        _check(line, key)
    trouble = str(content.get("reason")) if content.get("event") == BROKEN else None
    return Line(serial, prev, hashlib.sha256(line).hexdigest(), trouble)


def is_signed(line: bytes) -> bool:
    """Whether a line carries a signature."""
    return _MAC.search(line) is not None


def _check(line: bytes, key: bytes) -> None:
    found = _MAC.search(line)
    if found is None:
        raise BrokenLine("has no signature")
    if not hmac.compare_digest(found[1], _mac(line[: found.start()] + b"}", key)):
        raise BrokenLine("was changed, or signed with another key")


def _mac(body: bytes, key: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).hexdigest().encode()
