"""How the evidence file is laid out and opened, and the key of its hashes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

APPLICATION_ID = 0x70776576
"""Marks the file as ours ("pwev")."""
VERSION = 1
KEY_BYTES = 32
BUSY_SECONDS = 5.0
"""How long one process waits for another's transaction."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    serial INTEGER PRIMARY KEY, event_id INTEGER,
    response_id TEXT NOT NULL, response_group TEXT, choice INTEGER NOT NULL, finished_at REAL NOT NULL,
    verdict TEXT NOT NULL, flagged INTEGER NOT NULL, summary TEXT NOT NULL, alert TEXT,
    prompt_hash TEXT, answer_hash TEXT, positions INTEGER NOT NULL, scores BLOB,
    prompt_text TEXT, answer_text TEXT, tokens BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS by_event ON records(event_id) WHERE event_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_response ON records(response_id);
CREATE INDEX IF NOT EXISTS by_age ON records(flagged, finished_at);
"""


def open_evidence(path: Path) -> tuple[sqlite3.Connection, bytes]:
    """A connection that writes, and the key. Makes folder (0700), file and key (0600) where they are missing.

    Raises ``OSError`` or ``sqlite3.Error``.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".key"), "r+b", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several API servers start at once
        key = _read_or_make_key(file)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        return _connect(path), key


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _read_or_make_key(file: Any) -> bytes:
    key: bytes = file.read(KEY_BYTES + 1)
    if not key:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
        file.flush()
    elif len(key) != KEY_BYTES:
        raise OSError(f"{file.name} holds {len(key)} bytes and no key of {KEY_BYTES}; remove it")
    return key


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (things,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if things and application != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is the database of another program")
        if version > VERSION:
            raise sqlite3.DatabaseError(f"its format is {version}, written by a later version of probewatch")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file only, before anything else
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.DatabaseError(f"its journal stays {mode!r}, a network file system perhaps")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {VERSION}")  # fails where the file cannot be written
    except sqlite3.Error:
        connection.close()
        raise
    return connection
