"""Appending to an audit log, from several processes at once, and noticing what happened to it in between."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monitor.audit_chain import BROKEN, LINE_BYTES, BrokenLine, Link, read, seal
from monitor.audit_head import Head, locked, read_head, write_head
from monitor.errors import AuditError

ROTATED = "log_rotated"
"""The event by which a log tells that it goes on after one that was moved away."""


class _End(NamedTuple):
    """Where the next line goes."""

    after: Link
    note: dict[str, Any] | None
    """What the log has to say about itself first."""
    torn: bool = False
    """Whether the last line lacks its newline."""


class AuditFile:
    """One log. ``key``: of the signatures, None for a chain of plain hashes."""

    def __init__(self, path: Path, key: bytes | None) -> None:
        self.path = path
        self._key = key
        self._seen = Link()
        """The furthest that this process has seen the log: it never gets shorter."""

    def open(self) -> None:
        """Makes folder (0700) and files (0600) where they are missing. Raises ``AuditError``.

        A head that says that nothing is there yet takes its room now: a disk may be full at the first line, and lines
        without a head look as if somebody had touched them.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.path) as head_file, self._log() as log:
                if not os.fstat(log).st_size and not os.fstat(head_file).st_size:
                    write_head(head_file, Head(Link(), 0), self._key)
        except OSError as error:
            raise AuditError(f"{self.path}: {error}") from error

    def append(self, events: Sequence[Mapping[str, Any]]) -> str | None:
        """Writes all events or none, and waits until the disk has them.

        Returns what is wrong with the log since the last append, None if nothing. Raises ``AuditError``.
        """
        try:
            with locked(self.path) as head_file, self._log() as log:
                size = os.fstat(log).st_size
                end = self._end(head_file, log, size)
                notes = [] if end.note is None else [{"time": time.time(), **end.note}]
                data, link = b"\n" if end.torn else b"", end.after
                for event in [*notes, *events]:
                    line, link = seal(event, link, self._key)
                    data += line
                _write(log, data, size)
                write_head(head_file, Head(link, size + len(data)), self._key)
                self._seen = link
        except (OSError, ValueError) as error:
            raise AuditError(f"{self.path}: {error}") from error
        return str(end.note["reason"]) if end.note is not None and end.note["event"] == BROKEN else None

    @contextlib.contextmanager
    def _log(self) -> Iterator[int]:
        # By name each time: whoever rotates logs moves them away under us.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _end(self, head_file: int, log: int, size: int) -> _End:
        try:
            head = read_head(head_file, self._key)
        except ValueError as error:
            return self._after_damage(log, size, None, f"its head {error}")
        if head is None:
            if size == 0 and self._seen.serial == 0:
                return _End(Link(), None)
            return self._after_damage(log, size, None, "its head is missing")
        if head.link.serial < self._seen.serial:
            return self._after_damage(log, size, head, "an older copy was put back")
        if size == head.size:
            return _End(head.link, None)
        if size == 0:
            return _End(head.link, {"event": ROTATED, "after": head.link.serial})
        if size < head.size:
            return self._after_damage(log, size, head, f"it was cut from {head.size} to {size} bytes")
        return self._beyond(log, size, head)

    def _beyond(self, log: int, size: int, head: Head) -> _End:
        """A process that died after its lines and before its head leaves lines that continue the chain."""
        link, *lines = head.link, *os.pread(log, size - head.size, head.size).split(b"\n")
        for line in lines[:-1]:
            try:
                found = read(line, self._key)
            except BrokenLine as error:
                return self._after_damage(log, size, head, f"a foreign line {error}")
            if (found.serial, found.prev) != (link.serial + 1, link.digest):
                return self._after_damage(log, size, head, "a foreign line does not continue it")
            link = Link(found.serial, found.digest)
        if lines[-1]:
            return self._after_damage(log, size, head, "its last line is cut")
        return _End(link, None)

    def _after_damage(self, log: int, size: int, head: Head | None, reason: str) -> _End:
        """Goes on behind whatever is there, with a serial that leaves the gap to be seen."""
        start = max(0, size - 2 * LINE_BYTES)
        *lines, rest = os.pread(log, size - start, start).split(b"\n")
        last = rest or (lines[-1] if lines else b"")
        try:
            serial = read(last, None).serial
        except BrokenLine:
            serial = 0
        known = head.link.serial if head is not None else 0
        link = Link(max(serial, known, self._seen.serial), hashlib.sha256(last).hexdigest())
        return _End(link, {"event": BROKEN, "reason": reason}, torn=bool(rest))


def _write(log: int, data: bytes, size: int) -> None:
    """All of it or nothing: what a full disk took of a batch is taken back."""
    done = 0
    try:
        while done < len(data):
            done += os.write(log, data[done:])
        os.fdatasync(log)
    except OSError:
        os.ftruncate(log, size)
        raise
