"""What an audit log records of a server, and the thread that writes it.

Events: ``start`` and ``end`` of a server process, ``verdict`` of a sequence, ``change`` of the probes (who, what,
outcome, what was attached afterwards), ``lost`` (how many could not be written). No text, no token.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.audit_file import AuditFile
from monitor.config import Settings
from monitor.courier import CLOSE_SECONDS, METRIC, Courier
from monitor.engines import Engines
from monitor.errors import AuditError
from monitor.frontend import Frontend, Listener
from monitor.metrics import Metrics
from monitor.records import Record, headline, weight

logger = logging.getLogger("probewatch")

SINK, WRITTEN = "audit", "stored"
BROKEN = "broken"
"""Outcome that counts how often the log was found touched; the alert for lost evidence fires on it."""
EVENT_BYTES = 4096
"""About what a change takes while it waits."""
_ROUNDS = 200_000
_DIGEST_CHARS = 16

Event = dict[str, Any]
Waiting = Record | Event


@dataclass(frozen=True)
class Deed:
    """A change of the probes that somebody with the admin key asked for."""

    what: str
    """attach, set or detach"""
    asked: Mapping[str, Any]
    """Of whom, or of which file, and what for."""
    peer: str
    """The client's address."""


class AuditLog:
    """One log and its thread."""

    def __init__(self, file: AuditFile, engines: Engines, admin_key: str | None) -> None:
        self._file = file
        self._engines = engines
        self._key_print = None if admin_key is None else fingerprint(admin_key)
        self._courier: Courier[Waiting, Event] = Courier(SINK, WRITTEN, event_of, self._write)
        self._told_lost = 0

    def start(self, facts: Mapping[str, Any]) -> None:
        """Opens the log, and records that this process serves with ``facts``. Raises ``AuditError``."""
        self._file.open()
        self._courier.announce(self._metrics)
        self._metrics.child(METRIC, SINK, BROKEN)
        self._courier.start()
        self._tell({"event": "start", **facts, "probes": attached(self._engines)})

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        self._courier.announce(metrics)
        return lambda record: self._courier.offer(record, metrics, weight(record))

    def change(self, deed: Deed, outcome: str) -> None:
        """Records a deed. ``outcome``: ``done``, or why not."""
        who = {"key": self._key_print, "peer": deed.peer}
        asked = {name: _as_json(value) for name, value in deed.asked.items()}
        event = {"event": "change", "what": deed.what, "asked": asked, "who": who}
        self._tell({**event, "outcome": outcome, "probes": attached(self._engines)})

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Records the end, and writes what waits for at most ``patience`` seconds."""
        self._tell({"event": "end"})
        self._courier.close(patience)

    @property
    def _metrics(self) -> Metrics:
        return self._engines.first.metrics

    def _tell(self, event: Event) -> None:
        self._courier.offer({"time": time.time(), "pid": os.getpid(), **event}, self._metrics, EVENT_BYTES)

    def _write(self, events: Sequence[Event]) -> int:
        lost = self._courier.lost
        if lost > self._told_lost:
            missing = {
                "time": time.time(),
                "pid": os.getpid(),
                "event": "lost",
                "events": lost - self._told_lost,
            }
            events = [missing, *events]
        refused, trouble = self._append(events)
        self._told_lost = lost
        if trouble is not None:
            self._metrics.inc(METRIC, SINK, BROKEN)
            logger.error(
                "probewatch: somebody touched the audit log %s: %s; see `probewatch audit verify`",
                self._file.path,
                trouble,
            )
        return refused

    def _append(self, events: Sequence[Event]) -> tuple[int, str | None]:
        """How many no line can hold, and what is wrong with the log. Raises ``AuditError``."""
        try:
            return 0, self._file.append(events)
        except AuditError as error:
            if not isinstance(error.__cause__, ValueError) or len(events) == 1:
                raise
        refused, trouble = 0, None  # a strange one shall cost no other
        for event in events:
            try:
                trouble = self._file.append([event]) or trouble
            except AuditError as error:
                if not isinstance(error.__cause__, ValueError):
                    raise
                logger.error("probewatch: an event does not fit into the audit log: %s", error)
                refused += 1
        return refused, trouble


def open_audit(settings: Settings, engines: Engines, facts: Mapping[str, Any]) -> AuditLog | None:
    """The log that the settings ask for, writing; None without any. Raises ``AuditError`` in one line."""
    if settings.audit_path is None:
        return None
    key, admin = settings.audit_key, settings.admin_key
    file = AuditFile(settings.audit_path, None if key is None else key.get_secret_value().encode())
    log = AuditLog(file, engines, None if admin is None else admin.get_secret_value())
    try:
        log.start(facts)
    except AuditError as error:
        raise AuditError(
            f"PROBEWATCH_AUDIT_PATH={settings.audit_path} cannot be opened ({error.__cause__ or error}); name a file "
            "that this user can write, or unset it"
        ) from error
    return log


def event_of(waiting: Waiting) -> Event:
    """The event that a finished sequence is; others are events already."""
    if isinstance(waiting, dict):
        return waiting
    shown = headline(waiting)
    probes = {
        seat.probe.manifest.name: {
            **_finite(shown["probes"][seat.probe.manifest.name], ("score", "threshold", "flagged")),
            "action": waiting.bank.actions[seat.probe.manifest.name],
            "sha256": seat.probe.manifest.tensors_sha256[:_DIGEST_CHARS],
        }
        for seat in waiting.bank.seats
    }
    kept = ("id", "choice", "model", "verdict", "finish_reason", "prompt_tokens", "fed_tokens", "coverage")
    told = {"time": waiting.finished_at, "pid": os.getpid(), "event": "verdict"}
    return {**told, **{key: shown[key] for key in kept}, "probes": probes}


def attached(engines: Engines) -> list[Event]:
    """The probes in force, each with its digest."""
    bank = engines.first.bank
    return [
        {
            "name": seat.probe.manifest.name,
            "sha256": seat.probe.manifest.tensors_sha256,
            "threshold": seat.probe.manifest.threshold,
            "action": bank.actions[seat.probe.manifest.name],
        }
        for seat in bank.seats
    ]


def fingerprint(key: str) -> str:
    """Twelve hexadecimal digits by which a key can be recognised; slow to compute, so that few keys can be guessed.

    PBKDF2 (RFC 8018) with HMAC-SHA256 and a fixed salt: the same key has the same fingerprint in every log.
    """
    return hashlib.pbkdf2_hmac("sha256", key.encode(), b"probewatch audit", _ROUNDS)[:6].hex()


def _as_json(value: Any) -> Any:
    """Somebody may ask for a threshold that is no number, and shall not stay unrecorded by it."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(shown: Mapping[str, Any], keys: Sequence[str]) -> Event:
    return {
        key: None if isinstance(shown[key], float) and not math.isfinite(shown[key]) else shown[key]
        for key in keys
    }
