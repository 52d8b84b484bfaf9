"""The evidence store: a thread that writes what was judged to disk, while serving goes on."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitor.alerts import Alert, AlertQuery
from monitor.config import Settings
from monitor.courier import CLOSE_SECONDS, Courier
from monitor.errors import EvidenceError
from monitor.evidence_file import EvidenceFile
from monitor.evidence_rows import Row, Text, make_row
from monitor.evidence_scores import ScoreQuery, Scores
from monitor.frontend import Frontend, Listener
from monitor.records import Record, weight

SINK, STORED = "sqlite", "stored"
QUEUE_RECORDS, QUEUE_MIB = 4096, 256
"""What may wait for a slow disk; beyond it records are dropped, and counted."""


class EvidenceStore:
    """One file and the thread that writes it. ``text``: how ids become text, None unless it may be stored."""

    def __init__(
        self, file: EvidenceFile, text: Text | None = None, queue_records: int = QUEUE_RECORDS
    ) -> None:
        self._file = file
        self._courier: Courier[Record, Row] = Courier(
            SINK,
            STORED,
            lambda record: make_row(record, file.key, text),
            self._write,
            queue_records,
            queue_mib=QUEUE_MIB,
            upkeep=self._trim,
            end=file.close,
        )

    def start(self) -> None:
        """Opens the file and starts writing. Raises ``EvidenceError``."""
        self._file.open()
        self._courier.start()

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        self._courier.announce(metrics)
        return lambda record: self._courier.offer(record, metrics, weight(record))

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Writes what waits, for at most ``patience`` seconds; what is not written then counts as dropped."""
        self._courier.close(patience)

    async def find(self, query: AlertQuery) -> list[Alert]:
        """See ``AlertSource``."""
        return await asyncio.to_thread(self._file.find, query)

    async def response(self, response_id: str, choice: int | None) -> dict[str, Any] | None:
        """See ``EvidenceFile.response``."""
        return await asyncio.to_thread(self._file.response, response_id, choice)

    async def scores(self, query: ScoreQuery) -> Scores:
        """See ``EvidenceFile.scores``."""
        return await asyncio.to_thread(self._file.scores, query)

    def _write(self, rows: Sequence[Row]) -> int:
        self._file.write(rows)
        return 0

    def _trim(self) -> None:
        self._file.trim(time.time())


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
