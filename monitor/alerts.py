"""Flagged generations as ``/alerts`` and ``/events`` show them, and the part of them that lives in memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from monitor.records import Record, summary
from monitor.verdict import FLAGGED

Alert = dict[str, Any]
AskPeers = Callable[[dict[str, Any]], Awaitable[list[Any]]]

KEPT_IN_MEMORY = 4096
"""Alerts that a server without an evidence file remembers, in each process."""
SETTLED_MICROSECONDS = 500_000
"""After that long no API server can still be about to show an alert with a smaller id."""


@dataclass(frozen=True)
class AlertQuery:
    """Which alerts are wanted: newest first, or, with ``after``, oldest first."""

    since: float | None = None
    """Unix time, seconds; that moment included."""
    probe: str | None = None
    """Only alerts in which this probe flagged."""
    after: int | None = None
    """Only alerts with a larger event id."""
    limit: int = 100


class AlertSource(Protocol):
    """Where alerts are read from."""

    async def find(self, query: AlertQuery) -> list[Alert]:
        """What the query asks for. Raises ``EvidenceError`` if it cannot be read."""
        ...


def alert_of(record: Record) -> Alert | None:
    """A flagged sequence without its event id, text or tokens; None if no acting probe flagged it."""
    if record.verdict != FLAGGED:
        return None
    actions, shown = record.bank.actions, summary(record)["probes"]
    return {
        "id": record.response_id,
        "choice": record.choice,
        "model": record.model,
        "time": record.finished_at,
        "verdict": record.verdict,
        "finish_reason": record.finish_reason,
        "prompt_tokens": record.prompt_tokens,
        "fed_tokens": len(record.states),
        "probes": [
            {
                "name": name,
                "score": shown[name]["score"],
                "threshold": shown[name]["threshold"],
                "action": actions[name],
                "peak_token": verdict.peak_token,
            }
            for name, verdict in record.verdicts.items()
            if verdict.flagged and actions[name] != "observe"
        ],
        "coverage": record.coverage,
    }


def next_event_id(last: int) -> int:
    """An id larger than ``last``: the time in microseconds, so that ids go on where a lost file ended."""
    return max(last + 1, time.time_ns() // 1000)


class MemoryAlerts:
    """Alerts of a server that keeps nothing on disk: the last ones of this process, and of its peers if it has any."""

    def __init__(self, ask_peers: AskPeers | None = None) -> None:
        self._ask_peers = ask_peers
        self._alerts: deque[Alert] = deque(maxlen=KEPT_IN_MEMORY)
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        """Remembers a finished sequence if it was flagged."""
        alert = alert_of(record)
        if alert is not None:
            with self._lock:
                last = self._alerts[-1]["event_id"] if self._alerts else 0
                self._alerts.append({"event_id": next_event_id(last), **alert})

    def own(self, query: AlertQuery) -> list[Alert]:
        """What the query asks for, of this process alone."""
        with self._lock:
            known = list(self._alerts)
        return _chosen(known, query)

    async def find(self, query: AlertQuery) -> list[Alert]:
        """What the query asks for, of this process and its peers."""
        if self._ask_peers is None:
            return self.own(query)
        ceiling = time.time_ns() // 1000 - SETTLED_MICROSECONDS
        answers = [self.own(query), *await self._ask_peers({"alerts": asdict(query)})]
        known = [alert for found in answers for alert in found]
        if (
            query.after is not None
        ):  # who reads on must not step over an alert that another process is yet to show
            known = [alert for alert in known if alert["event_id"] <= ceiling]
        return _chosen(sorted(known, key=lambda alert: int(alert["event_id"])), query)


def _chosen(oldest_first: Iterable[Alert], query: AlertQuery) -> list[Alert]:
    found = [
        alert
        for alert in oldest_first
        if (query.since is None or alert["time"] >= query.since)
        and (query.after is None or alert["event_id"] > query.after)
        and (query.probe is None or query.probe in [probe["name"] for probe in alert["probes"]])
    ]
    return found[: query.limit] if query.after is not None else found[::-1][: query.limit]
