"""The routes under ``/v1/probewatch``. Plain FastAPI: what it shows comes from a ``Frontend``."""

from __future__ import annotations

import functools
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from monitor import __version__
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.frontend import Frontend
from monitor.records import headline, of_response


@dataclass
class HttpState:
    """What the routes need; set once the engine is up and the taps are proven."""

    frontend: Frontend
    settings: Settings
    decode: Callable[[list[int]], str]
    facts: dict[str, Any] = field(default_factory=dict)
    """Versions, runner, and what the workers reported."""

    @functools.cached_property
    def token_text(self) -> Callable[[int], str]:
        """Text of one token with its leading space: what it adds after itself."""

        @functools.lru_cache(maxsize=65536)
        def text(token_id: int) -> str:
            once = self.decode([token_id])
            twice = self.decode([token_id, token_id])
            return twice[len(once) :] if twice.startswith(once) else once

        return text


def make_router(state: Callable[[], HttpState]) -> APIRouter:
    """All routes; ``state`` is asked at every request."""
    router = APIRouter(prefix="/v1/probewatch", tags=["probewatch"])

    def evidence_allowed(request: Request) -> None:
        settings = state().settings
        if settings.open_evidence:
            return
        key = settings.admin_key
        if key is None:
            raise HTTPException(
                403, f"no admin key is set; start the server with PROBEWATCH_ADMIN_KEY, send {ADMIN_HEADER}"
            )
        given = request.headers.get(ADMIN_HEADER, "")
        if not hmac.compare_digest(given.encode(), key.get_secret_value().encode()):
            raise HTTPException(
                403, f"header {ADMIN_HEADER} is missing or wrong; send the server's admin key"
            )

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return describe(state())

    @router.get("/probes")
    async def list_probes() -> list[dict[str, Any]]:
        return describe_probes(state().frontend)

    @router.get("/requests", dependencies=[Depends(evidence_allowed)])
    async def recent(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[dict[str, Any]]:
        return [headline(record) for record in state().frontend.recent.newest(limit)]

    @router.get("/requests/{response_id}", dependencies=[Depends(evidence_allowed)])
    async def one(response_id: str, choice: int | None = None) -> Response:
        current = state()
        records = current.frontend.recent.worst_of(response_id)
        if choice is not None:
            records = [record for record in records if record.choice == choice]
        if not records:
            raise HTTPException(
                404,
                f"no finished request {response_id!r} is remembered; the last {current.settings.recent_requests} are",
            )
        # A long sequence takes a good part of a second: not on the loop that streams everybody's tokens.
        body = await run_in_threadpool(lambda: json.dumps(of_response(records, current.token_text)))
        return Response(body, media_type="application/json")

    return router


def describe(state: HttpState) -> dict[str, Any]:
    """The body of ``GET /status``."""
    frontend = state.frontend
    return {
        "version": __version__,
        "attached": frontend.attached,
        "model": frontend.model_name,
        **{
            key: state.facts.get(key)
            for key in ("vllm_version", "runner", "tapped_layers", "score_store_mib")
        },
        "probes": describe_probes(frontend),
        "coverage": frontend.coverage(),
        "last_error": frontend.last_error or state.facts.get("last_error"),
    }


def describe_probes(frontend: Frontend) -> list[dict[str, Any]]:
    """The body of ``GET /probes``."""
    return [
        {
            "name": seat.probe.manifest.name,
            "version": seat.probe.manifest.version,
            "kind": seat.probe.manifest.kind,
            "concept": seat.probe.manifest.concept,
            "layers": list(seat.probe.manifest.layers),
            "threshold": seat.probe.manifest.threshold,
            "nominal_fpr": seat.probe.manifest.nominal_fpr,
            "action": frontend.actions[seat.probe.manifest.name],
            "sha256": seat.probe.manifest.tensors_sha256,
        }
        for seat in frontend.bank.seats
    ]
