"""The small file beside an audit log that tells where the log ends: without it, a log cut at its end would look whole.

It is also what processes lock while they append, because the log itself may be moved away by a rotation.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monitor.audit_chain import Link

_SIZE = 512
"""Bytes of the file: always the same, so that one write replaces all of it."""


@dataclass(frozen=True)
class Head:
    """The end of a log: its last line and its size in bytes."""

    link: Link
    size: int


def head_path(log: Path) -> Path:
    """Where the head of ``log`` lies."""
    return log.with_name(log.name + ".head")


@contextlib.contextmanager
def locked(log: Path) -> Iterator[int]:
    """The open head of ``log``, made where it is missing, while no other process appends. Raises ``OSError``."""
    descriptor = os.open(head_path(log), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)  # lets the lock go as well


def read_head(descriptor: int, key: bytes | None) -> Head | None:
    """None for an empty file. Raises ``ValueError`` for one that was damaged, changed or signed with another key."""
    text = os.pread(descriptor, _SIZE, 0)
    if not text.strip():
        return None
    try:
        content = json.loads(text)
        signature = content.pop("mac", None)
        head = Head(Link(int(content["serial"]), str(content["digest"])), int(content["size"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("is damaged") from None
    if key is not None and not hmac.compare_digest(str(signature), _mac(head, key)):
        raise ValueError("was changed, or signed with another key")
    return head


def write_head(descriptor: int, head: Head, key: bytes | None) -> None:
    """Replaces the head. Raises ``OSError``."""
    content: dict[str, object] = _content(head)
    if key is not None:
        content["mac"] = _mac(head, key)
    os.pwrite(descriptor, json.dumps(content).encode().ljust(_SIZE - 1) + b"\n", 0)
    os.fdatasync(descriptor)


def _content(head: Head) -> dict[str, object]:
    return {"serial": head.link.serial, "digest": head.link.digest, "size": head.size}


def _mac(head: Head, key: bytes) -> str:
    # The prefix keeps a signed head from ever passing as a signed line.
    return hmac.new(key, b"head:" + json.dumps(_content(head)).encode(), hashlib.sha256).hexdigest()
