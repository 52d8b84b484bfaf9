"""The evidence file: SQLite in WAL mode, which several API servers of one machine write and read together.

Any program may read it: ``sqlite3 FILE 'SELECT alert FROM records WHERE flagged'``.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monitor.alerts import Alert, AlertQuery, next_event_id
from monitor.errors import EvidenceError
from monitor.evidence_rows import Line, Row, show_response, worst_response
from monitor.evidence_schema import BUSY_SECONDS, open_evidence
from monitor.evidence_scores import ScoreQuery, Scores, gather

SAME_ID_AT_MOST = 2048
"""Sequences looked at for one response id; clients can choose ids, so the number has a bound."""
_TRIM_ROWS, _TRIM_STEPS = 8, 100
_COLUMNS = ", ".join(Row._fields)
_INSERT = f"INSERT INTO records (event_id, {_COLUMNS}) VALUES ({', '.join('?' * (len(Row._fields) + 1))})"


class EvidenceFile:
    """Everything that writes belongs to one thread; every read opens a connection of its own, from any thread."""

    def __init__(self, path: Path, days: float, mib: float) -> None:
        self.path = path
        self.key = b""
        """Of the keyed hashes; known once the file has been opened."""
        self._seconds = days * 86400
        self._bytes = int(mib * 2**20)
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._abandoned: list[sqlite3.Connection] = []

    def open(self) -> None:
        """Makes folder (0700), file and key (0600) where they are missing. Raises ``EvidenceError``."""
        try:
            self._connection, self.key = open_evidence(self.path)
            self._identity = _identity(self.path)
        except (OSError, sqlite3.Error) as error:
            raise EvidenceError(f"{self.path}: {error}") from error

    def write(self, rows: Sequence[Row]) -> None:
        """All rows or none, in one transaction. Raises ``EvidenceError``; the next call opens the file anew."""
        try:
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            last = int(connection.execute("SELECT max(event_id) FROM records").fetchone()[0] or 0)
            for row in rows:
                if row.alert is not None:
                    last = next_event_id(last)
                connection.execute(_INSERT, (last if row.alert is not None else None, *row))
            connection.execute("COMMIT")
        except Exception as error:
            self.close()
            raise EvidenceError(f"{self.path}: {error}") from error

    def trim(self, now: float) -> None:
        """Deletes what is too old, then, while the file holds too much, the oldest: unflagged ones first.

        Not all at once, so that other processes get their turn. ``now``: Unix time. Raises ``EvidenceError``.
        """
        old = "SELECT serial FROM records WHERE flagged IN (0, 1) AND finished_at < ?"
        try:
            connection = self._opened()
            for _ in range(_TRIM_STEPS):
                horizon = now - self._seconds
                if connection.execute(f"{old} LIMIT 1", (horizon,)).fetchone():
                    chosen, values = old, [horizon]
                elif _used(connection) > self._bytes:
                    chosen, values = "SELECT serial FROM records ORDER BY flagged, finished_at", []
                else:
                    break
                connection.execute(
                    f"DELETE FROM records WHERE serial IN ({chosen} LIMIT {_TRIM_ROWS})", values
                )
                connection.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
        except Exception as error:
            self.close()
            raise EvidenceError(f"{self.path}: {error}") from error

    def close(self) -> None:
        """Ends an unfinished transaction and lets the file go."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._moved():
            # SQLite deletes the WAL by name when the last connection closes: by now it may be another file's.
            self._abandoned.append(connection)
            return
        with contextlib.suppress(
            sqlite3.Error
        ):  # a full disk: the next one who opens the file finishes its WAL
            connection.close()

    def find(self, query: AlertQuery) -> list[Alert]:
        """Alerts of all API servers. Raises ``EvidenceError``."""
        conditions, values = ["event_id IS NOT NULL"], list[Any]()
        if query.since is not None:
            conditions.append("finished_at >= ?")
            values.append(query.since)
        if query.after is not None:
            conditions.append("event_id > ?")
            values.append(query.after)
        if query.probe is not None:
            conditions.append("? IN (SELECT json_extract(value, '$.name') FROM json_each(alert, '$.probes'))")
            values.append(query.probe)
        order = "DESC" if query.after is None else "ASC"
        wanted = (
            f"SELECT event_id, alert FROM records WHERE {' AND '.join(conditions)} "
            f"ORDER BY event_id {order} LIMIT ?"
        )
        with self._reading() as connection:
            found = connection.execute(wanted, (*values, query.limit)).fetchall()
            return [{"event_id": event_id, **json.loads(alert)} for event_id, alert in found]

    def scores(self, query: ScoreQuery) -> Scores:
        """What one statistic was on finished sequences, oldest first. Raises ``EvidenceError``."""
        wanted = (
            "SELECT response_id, choice, summary FROM records WHERE finished_at >= ? AND finished_at < ? "
            "ORDER BY finished_at, serial"
        )
        with self._reading() as connection:
            return gather(connection.execute(wanted, (query.since, query.until)), query)

    def response(self, response_id: str, choice: int | None = None) -> dict[str, Any] | None:
        """A stored response as ``/requests/{id}`` shows it; None if there is none. Raises ``EvidenceError``."""
        try:
            response_id.encode()
        except UnicodeEncodeError:  # no file can hold such an id
            return None
        with self._reading() as connection:
            lines = connection.execute(
                "SELECT serial, response_group, choice, verdict FROM records WHERE response_id = ? "
                "ORDER BY flagged DESC, serial DESC LIMIT ?",
                (response_id, SAME_ID_AT_MOST),
            ).fetchall()
            chosen = [
                line.serial
                for line in worst_response(sorted(Line(*line) for line in lines))
                if choice is None or line.choice == choice
            ]
            wanted = f"SELECT {_COLUMNS} FROM records WHERE serial = ?"
            stored = [connection.execute(wanted, (serial,)).fetchone() for serial in chosen]
            rows = [Row(*row) for row in stored if row is not None]  # retention may have been quicker
            return show_response(rows) if rows else None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._moved():
            self.close()
        if self._connection is None:
            self.open()
        assert self._connection is not None
        return self._connection

    def _moved(self) -> bool:
        """Whether the file was deleted or replaced: SQLite would go on writing to what nobody can find."""
        try:
            return _identity(self.path) != self._identity
        except OSError:
            return True

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            address = f"{self.path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, BUSY_SECONDS, uri=True)) as connection:
                yield connection
        except (sqlite3.Error, zlib.error, ValueError, KeyError) as error:
            raise EvidenceError(
                f"the evidence file {self.path} cannot be read ({error}); mend or remove it"
            ) from error


def _used(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
