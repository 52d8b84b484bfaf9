"""``GET /words``: the logit-lens words at the peak of a probe, to whom the evidence is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from monitor.errors import MonitorError
from monitor.server_state import HttpState
from monitor.words import Busy

Find = Callable[[str, int | None], Awaitable[dict[str, Any]]]


def add_word_routes(
    router: APIRouter, guard: Callable[[Request], None], state: Callable[[], HttpState], find: Find
) -> None:
    """Adds the route behind ``guard``. ``find``: the body of ``GET /requests/{id}``, or an ``HTTPException``."""

    # The id stands in the query: in a path, a client's own id that ends in the route's name would hide its evidence.
    @router.get("/words", dependencies=[Depends(guard)])
    async def words(id: str, probe: str, choice: int | None = None) -> dict[str, Any]:
        current = state()
        if current.words is None:
            raise HTTPException(
                409, "this server does not know where its model's files are, so it replays nothing"
            )
        body = await find(id, choice)
        attached = [seat.probe for seat in current.engines.first.bank.seats]
        try:
            return await run_in_threadpool(current.words.of, body, probe, attached, current.token_text)
        except Busy as error:
            raise HTTPException(429, str(error), {"Retry-After": "5"}) from error
        except MonitorError as error:
            raise HTTPException(409, str(error)) from error
