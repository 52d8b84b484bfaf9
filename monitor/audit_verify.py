"""Looking for lines of an audit log that were changed, removed, swapped or cut."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monitor.audit_chain import LINE_BYTES, BrokenLine, Line, Link, is_signed, read
from monitor.audit_head import Head, head_path, read_head

FAULTS_AT_MOST = 20
"""After these many faults the rest of a log says nothing new."""


@dataclass
class Report:
    """What was found. ``faults``: one line each, naming file and line."""

    lines: int = 0
    last: Link = field(default_factory=Link)
    signed: bool = True
    """Whether every line carries a signature."""
    faults: list[str] = field(default_factory=list)


def verify(files: Sequence[Path], key: bytes | None, at_least: int = 0) -> Report:
    """Follows the chain through ``files``, oldest first; the head of the last one tells where it has to end.

    ``at_least``: a serial that is known from elsewhere to exist: a log and a head put back together from an old copy
    are consistent with each other. Raises ``OSError`` for a file that cannot be read.
    """
    report = Report()
    at_head, number = report.last.digest, 0  # what a log without a line ends with
    head, trouble, size = _settled(files[-1], key)
    for file in files:
        for number, line in enumerate(_lines(file, size if file == files[-1] else None), 1):
            _look(report, f"{file} line {number}", line, key)
            if head is not None and report.last.serial == head.link.serial:
                at_head = report.last.digest
            if len(report.faults) >= FAULTS_AT_MOST:
                return report
    where = f"{files[-1]} after line {number}"
    if trouble is not None:
        report.faults.append(f"{head_path(files[-1])} {trouble}: nothing tells where the log has to end")
    elif head is not None and at_head != head.link.digest:
        report.faults.append(_against_head(report, head, where, files[-1]))
    if report.last.serial < at_least:
        report.faults.append(
            f"{where}: the log ends with serial {report.last.serial}, {at_least} is expected"
        )
    return report


def _look(report: Report, where: str, line: bytes, key: bytes | None) -> None:
    report.lines += 1
    report.signed &= is_signed(line)
    if not line.endswith(b"\n"):
        report.faults.append(f"{where}: is cut")
    try:
        found = read(line.removesuffix(b"\n"), key)
    except BrokenLine as error:
        report.faults.append(f"{where}: {error}")
        try:
            found = read(line.removesuffix(b"\n"), None)
        except BrokenLine:
            # Its own number is lost; the line after it shall not be blamed for it.
            report.last = Link(report.last.serial + 1, "")
            return
    if found.trouble is not None:
        report.faults.append(f"{where}: tells that the log was broken: {found.trouble}")
    if fault := _broken(found, report.last, report.lines):
        report.faults.append(f"{where}: {fault}")
    report.last = Link(found.serial, found.digest)


def _broken(found: Line, before: Link, lines: int) -> str | None:
    expected = before.serial + 1
    if found.serial > expected:
        first = " (name the earlier file first, if it was rotated away)" if lines == 1 else ""
        return f"serials {expected} to {found.serial - 1} are missing before it{first}"
    if found.serial < expected and not (not before.digest and found.serial == before.serial):
        return f"serial {found.serial} stands after {before.serial}: lines were swapped, doubled or put in"
    if before.digest and found.prev != before.digest:
        return f"does not continue the line before: serial {before.serial} was changed after this line was written"
    return None


def _against_head(report: Report, head: Head, where: str, file: Path) -> str:
    if report.last.serial < head.link.serial:
        return f"{where}: serials {report.last.serial + 1} to {head.link.serial} were cut off ({head_path(file)})"
    return f"{where}: serial {head.link.serial} is not the one that was written ({head_path(file)})"


def _settled(file: Path, key: bytes | None) -> tuple[Head | None, str | None, int]:
    """The head, what is wrong with it, and the size of the log, at a moment at which nobody appends."""
    size = file.stat().st_size
    try:
        descriptor = os.open(head_path(file), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, "is missing", size
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        size = file.stat().st_size
        head = read_head(descriptor, key)
    except ValueError as error:
        return None, str(error), size
    finally:
        os.close(descriptor)
    return head, None if head is not None or size == 0 else "is empty", size


def _lines(file: Path, size: int | None) -> Iterator[bytes]:
    """At most ``size`` bytes: what is appended meanwhile may not be whole."""
    with file.open("rb") as log:
        left = size if size is not None else os.fstat(log.fileno()).st_size
        while line := log.readline(min(left, LINE_BYTES + 1)):
            left -= len(line)
            yield line
