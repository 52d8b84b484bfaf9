"""The evidence store: a thread that writes what was judged to disk, while serving goes on."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitor.alerts import Alert, AlertQuery
from monitor.backlog import Backlog
from monitor.config import Settings
from monitor.courier import Waiting
from monitor.errors import EvidenceError
from monitor.evidence_file import EvidenceFile
from monitor.evidence_rows import Row, Text, make_row
from monitor.evidence_scores import ScoreQuery, Scores
from monitor.frontend import Frontend, Listener
from monitor.records import Record, weight

logger = logging.getLogger("probewatch")

METRIC, SINK = "probewatch_evidence_total", "sqlite"
STORED, DROPPED, FAILED = "stored", "dropped", "failed"
QUEUE_RECORDS, QUEUE_MIB = 4096, 256
"""What may wait for a slow disk; beyond it records are dropped, and counted."""
BATCH_RECORDS = 256
TRIM_SECONDS = 30.0
CLOSE_SECONDS = 4.0
"""vLLM kills API servers that take longer than five seconds to end."""


class EvidenceStore:
    """One file and the thread that writes it. ``text``: how ids become text, None unless it may be stored."""

    def __init__(
        self, file: EvidenceFile, text: Text | None = None, queue_records: int = QUEUE_RECORDS
    ) -> None:
        self._file = file
        self._text = text
        self._backlog: Backlog[Waiting[Record]] = Backlog(queue_records, QUEUE_MIB * 2**20)
        self._under_way: Sequence[Waiting[Record]] = ()
        self._thread = threading.Thread(target=self._run, name="probewatch-evidence", daemon=True)
        self._failing = False
        self._met_a_strange_one = False

    def start(self) -> None:
        """Opens the file and starts writing. Raises ``EvidenceError``."""
        self._file.open()
        self._thread.start()
        atexit.register(self.close)

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        for outcome in (STORED, DROPPED, FAILED):
            metrics.child(METRIC, SINK, outcome)

        def add(record: Record) -> None:
            waiting = Waiting(record, metrics)
            if not self._backlog.offer(waiting, weight(record)):
                _count(waiting, DROPPED)

        return add

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Writes what waits, for at most ``patience`` seconds; what is not written then counts as dropped."""
        atexit.unregister(self.close)
        self._backlog.close()
        if self._thread.ident is not None:
            self._thread.join(patience)
        for waiting in (*self._backlog.take(QUEUE_RECORDS, 0), *self._under_way):
            _count(waiting, DROPPED)

    async def find(self, query: AlertQuery) -> list[Alert]:
        """See ``AlertSource``."""
        return await asyncio.to_thread(self._file.find, query)

    async def response(self, response_id: str, choice: int | None) -> dict[str, Any] | None:
        """See ``EvidenceFile.response``."""
        return await asyncio.to_thread(self._file.response, response_id, choice)

    async def scores(self, query: ScoreQuery) -> Scores:
        """See ``EvidenceFile.scores``."""
        return await asyncio.to_thread(self._file.scores, query)

    def _run(self) -> None:
        trimmed_at = float("-inf")
        while not self._backlog.finished:
            self._under_way = batch = self._backlog.take(BATCH_RECORDS, TRIM_SECONDS)
            if batch:
                self._write(batch)
            if batch or time.monotonic() - trimmed_at > TRIM_SECONDS:
                self._trim()
                trimmed_at = time.monotonic()
        self._file.close()

    def _write(self, batch: Sequence[Waiting[Record]]) -> None:
        rows: list[Row] = []
        told: list[Waiting[Record]] = []
        for waiting in batch:
            try:
                rows.append(make_row(waiting.item, self._file.key, self._text))
                told.append(waiting)
            except Exception:  # one strange record shall not cost the others
                if not self._met_a_strange_one:
                    logger.exception(
                        "probewatch: a record cannot be kept; probewatch_evidence_total counts them"
                    )
                self._met_a_strange_one = True
                _count(waiting, FAILED)
        outcome = STORED
        try:
            self._file.write(rows)
            self._recovered()
        except Exception as error:  # whatever it is, the next batch gets its chance
            self._complain(error)
            outcome = FAILED
        for waiting in told:
            _count(waiting, outcome)

    def _trim(self) -> None:
        try:
            self._file.trim(time.time())
        except EvidenceError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            logger.error(
                "probewatch: evidence cannot be kept (%s: %s); probewatch_evidence_total counts what is lost",
                type(error).__name__,
                error,
            )
        self._failing = True

    def _recovered(self) -> None:
        if self._failing:
            logger.warning("probewatch: evidence is kept again in %s", self._file.path)
        self._failing = False


def _count(waiting: Waiting[Record], outcome: str) -> None:
    if waiting.decide():
        waiting.metrics.inc(METRIC, SINK, outcome)


def open_store(settings: Settings, model: str, port: int, text: Text) -> EvidenceStore | None:
    """The store that the settings ask for, writing; None for ``off``. Raises ``EvidenceError`` in one line."""
    if settings.evidence_path == "off":
        return None
    path = settings.evidence_path or default_path(model, port)
    file = EvidenceFile(path, settings.evidence_days, settings.evidence_mib)
    store = EvidenceStore(file, text if settings.store_text else None)
    try:
        store.start()
    except EvidenceError as error:
        raise EvidenceError(
            f"PROBEWATCH_EVIDENCE_PATH={path} cannot be opened ({error.__cause__ or error}); name a file that this "
            "user can write, or `off` to keep nothing on disk"
        ) from error
    return store


def default_path(model: str, port: int) -> Path:
    """Below $XDG_STATE_HOME; one file for each model and port. Raises ``EvidenceError`` where there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise EvidenceError(
            f"PROBEWATCH_EVIDENCE_PATH is unset and this user has no home ({error}); set it to a file or to `off`"
        ) from error
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[-80:].strip("-.") or "model"
    return folder / "probewatch" / f"evidence-{slug}-{port}.sqlite"
