"""Alerts as they come: one look at the source for all open streams, and each stream's place in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi.responses import StreamingResponse

from monitor.alerts import Alert, AlertQuery, AlertSource
from monitor.errors import EvidenceError

logger = logging.getLogger("probewatch")

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
"""Proxies close connections on which nothing is said."""
STREAMS_AT_MOST = 32
_PAGE = 100


class AlertFeed:
    """What the streams of one process share. ``closing`` tells whether the server is about to stop."""

    def __init__(
        self,
        source: AlertSource,
        closing: Callable[[], bool],
        streams_at_most: int = STREAMS_AT_MOST,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._source = source
        self._closing = closing
        self._streams_at_most = streams_at_most
        self._heartbeat_seconds = heartbeat_seconds
        self._poll_seconds = poll_seconds
        self._streams = 0
        self._newest = 0
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._troubled = False

    @property
    def full(self) -> bool:
        """Whether no further stream may be opened."""
        return self._streams >= self._streams_at_most

    @contextlib.contextmanager
    def seat(self) -> Iterator[None]:
        """Counts a stream while it is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def newest(self) -> int:
        """Event id of the newest alert, as it was at the last look; 0 before any."""
        async with self._looking:  # streams that wake together share one look
            now = asyncio.get_running_loop().time()
            if now - self._looked_at >= self._poll_seconds * 0.9:
                self._looked_at = now
                found = await self._find(AlertQuery(limit=1))
                self._newest = max([self._newest, *(int(alert["event_id"]) for alert in found)])
        return self._newest

    async def events(self, after: int) -> AsyncIterator[str]:
        """Server-sent events of every alert with a larger id than ``after``, until the server stops."""
        clock = asyncio.get_running_loop().time
        yield f"retry: {round(POLL_SECONDS * 4000)}\n\n"
        said_at = clock()
        while not self._closing():
            found = []
            if await self.newest() > after:
                found = await self._find(AlertQuery(after=after, limit=_PAGE))
            for alert in found:
                after = int(alert["event_id"])
                yield as_event(alert)
                said_at = clock()
            if len(found) == _PAGE:
                continue
            if clock() - said_at >= self._heartbeat_seconds:
                yield ": nothing new\n\n"
                said_at = clock()
            await asyncio.sleep(self._poll_seconds)

    async def _find(self, query: AlertQuery) -> list[Alert]:
        """Nothing where the source cannot be read: the streams stay, and go on when it can be."""
        try:
            found = await self._source.find(query)
        except EvidenceError as error:
            if not self._troubled:
                logger.warning("probewatch: the event streams wait: %s", error)
            self._troubled = True
            return []
        self._troubled = False
        return found


class EventStream(StreamingResponse):
    """One client's stream. Starlette ends it when the client goes; ``AlertFeed.events`` when the server does."""

    def __init__(self, feed: AlertFeed, after: int) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(feed.events(after), headers=headers, media_type="text/event-stream")
        self._feed = feed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        with self._feed.seat():
            await super().__call__(scope, receive, send)


def as_event(alert: Alert) -> str:
    """``json.dumps`` leaves no line break, so nobody's response id can forge a field."""
    return f"id: {alert['event_id']}\nevent: alert\ndata: {json.dumps(alert)}\n\n"
