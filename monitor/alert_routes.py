"""``GET /alerts`` and ``GET /events``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from monitor.alert_feed import AlertFeed, EventStream
from monitor.alerts import AlertQuery, AlertSource
from monitor.errors import EvidenceError

DEFAULT_LIMIT, LARGEST_LIMIT = 100, 1000


def add_alert_routes(
    router: APIRouter,
    guard: Callable[[Request], None],
    source: Callable[[], AlertSource],
    feed: Callable[[], AlertFeed],
) -> None:
    """Adds both routes behind ``guard``."""

    @router.get("/alerts", dependencies=[Depends(guard)])
    async def alerts(since: str = "", probe: str = "", limit: str = "") -> list[dict[str, Any]]:
        query = AlertQuery(read_since(since), probe or None, limit=read_limit(limit))
        try:
            return await source().find(query)
        except EvidenceError as error:
            raise HTTPException(503, str(error)) from error

    @router.get("/events", dependencies=[Depends(guard)])
    async def events(request: Request) -> EventStream:
        last = read_event_id(request.headers.get("Last-Event-ID", ""))
        if feed().full:
            raise HTTPException(
                503,
                "as many event streams as allowed are open; close one, or ask /v1/probewatch/alerts?since= instead",
                {"Retry-After": "15"},
            )
        # Known before the first byte goes out: an alert that a client provokes after that is not missed.
        return EventStream(feed(), await feed().newest() if last is None else last)


def read_since(text: str) -> float | None:
    """Unix seconds, or ISO 8601 (UTC where it names no zone). Raises 422."""
    if not text:
        return None
    try:
        moment = float(text)
    except ValueError:
        moment = _iso(text)
    if not math.isfinite(moment):
        raise HTTPException(
            422,
            f"since={text[:60]!r} is no time; give Unix seconds, or ISO 8601: 2026-01-31T12:00:00Z (write + as %2B)",
        )
    return moment


def _iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def read_limit(text: str) -> int:
    """Raises 422 unless it is a whole number within bounds."""
    if not text:
        return DEFAULT_LIMIT
    found = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not 1 <= found <= LARGEST_LIMIT:
        raise HTTPException(422, f"limit={text[:60]!r}: give a whole number from 1 to {LARGEST_LIMIT}")
    return found


def read_event_id(text: str) -> int | None:
    """Raises 422 unless it is one of our ids or nothing at all."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise HTTPException(
            422,
            f"Last-Event-ID {text[:60]!r} is no event id; send the id of an event, or leave the header out",
        )
    return int(text)
