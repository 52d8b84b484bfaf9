"""The routes under ``/v1/probewatch``. Plain FastAPI: what it shows comes from ``Engines``."""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from monitor import __version__
from monitor.alert_routes import add_alert_routes
from monitor.alerts import AlertQuery, MemoryAlerts
from monitor.audit_log import Deed
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.control import Control, UnknownProbe
from monitor.engines import Engines
from monitor.errors import AttachError, ConfigurationError, EvidenceError, MonitorError, ServerError
from monitor.records import headline, of_response
from monitor.response_ids import known_as
from monitor.score_routes import add_score_routes
from monitor.server_state import HttpState
from monitor.verdict import FLAGGED, worst
from monitor.word_routes import add_word_routes


def make_router(state: Callable[[], HttpState], lifespan: Any = None) -> APIRouter:
    """All routes; ``state`` is asked at every request. ``lifespan``: what begins and ends with the server."""
    router = APIRouter(prefix="/v1/probewatch", tags=["probewatch"], lifespan=lifespan)

    def evidence_allowed(request: Request) -> None:
        if state().settings.open_evidence:
            check_open(state().settings, request)
        else:
            check_admin(state().settings, request)

    def admin_only(request: Request) -> None:
        check_admin(state().settings, request)

    @router.get("/status")
    def status() -> dict[str, Any]:  # in a thread: with several API servers it reads the files of all of them
        return describe(state())

    @router.get("/probes")
    async def list_probes() -> list[dict[str, Any]]:
        return describe_probes(state().engines)

    @router.post("/probes", dependencies=[Depends(admin_only)])
    async def attach(body: Attach, request: Request) -> list[dict[str, Any]]:
        deed = Deed("attach", body.model_dump(), peer_of(request))
        return await change(state(), deed, lambda control: control.attach(body.path))

    @router.patch("/probes/{name}", dependencies=[Depends(admin_only)])
    async def set_probe(name: str, body: Change, request: Request) -> list[dict[str, Any]]:
        deed = Deed("set", {"name": name, **body.model_dump(exclude_none=True)}, peer_of(request))
        return await change(state(), deed, lambda control: control.change(name, body.threshold, body.action))

    @router.delete("/probes/{name}", dependencies=[Depends(admin_only)])
    async def detach(name: str, request: Request) -> list[dict[str, Any]]:
        deed = Deed("detach", {"name": name}, peer_of(request))
        return await change(state(), deed, lambda control: control.detach(name))

    @router.get("/requests", dependencies=[Depends(evidence_allowed)])
    async def recent(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[dict[str, Any]]:
        answers = await everywhere(state(), {"newest": limit})
        lines = [line for answer in answers for line in answer]
        return sorted(lines, key=lambda line: float(line["finished_at"]), reverse=True)[:limit]

    # `:path`, because a client that chooses its id may put a slash into it, and must not hide its evidence so.
    @router.get("/requests/{response_id:path}", dependencies=[Depends(evidence_allowed)])
    async def one(response_id: str, choice: int | None = None) -> Response:
        found = await finished(state(), response_id, choice)
        return Response(json.dumps(found), media_type="application/json")

    add_alert_routes(router, evidence_allowed, lambda: state().alerts, lambda: state().feed)
    add_word_routes(router, evidence_allowed, state, lambda name, i: finished(state(), name, i))
    add_score_routes(router, admin_only, lambda: state().engines, lambda: state().evidence)
    return router


class Attach(BaseModel):
    """Body of ``POST /probes``."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=1024)
    """Relative to PROBE_DIR."""


class Change(BaseModel):
    """Body of ``PATCH /probes/{name}``; what is left out stays."""

    model_config = ConfigDict(extra="forbid")
    threshold: float | None = None
    action: str | None = Field(default=None, max_length=128)


def check_admin(settings: Settings, request: Request) -> None:
    """Raises 403 unless the request carries the admin key."""
    key = settings.admin_key
    if key is None:
        raise HTTPException(
            403, f"no admin key is set; start the server with PROBEWATCH_ADMIN_KEY, send {ADMIN_HEADER}"
        )
    given = request.headers.get(ADMIN_HEADER, "")
    if not hmac.compare_digest(given.encode(), key.get_secret_value().encode()):
        raise HTTPException(403, f"header {ADMIN_HEADER} is missing or wrong; send the server's admin key")


def check_open(settings: Settings, request: Request) -> None:
    """Evidence that needs no key is for programs and for the server's own page. Raises 403 for another web page in the
    browser of this machine: vLLM may be told to allow every origin, and anybody's name can point to loopback."""
    host = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if _is_dotted_name(host) or (origin is not None and urlsplit(origin).netloc != host):
        if settings.admin_key is not None and ADMIN_HEADER in request.headers:
            check_admin(settings, request)
            return
        raise HTTPException(
            403,
            f"PROBEWATCH_OPEN_EVIDENCE opens evidence to this machine, not to {(origin or host)[:100]!r}; ask "
            f"127.0.0.1 or localhost, or send {ADMIN_HEADER}",
        )


def _is_dotted_name(host: str) -> bool:
    """Whether ``HOST[:PORT]`` is a name that somebody's name server may answer for: neither an address nor bare."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        ipaddress.ip_address(name)
    except ValueError:
        return "." in host
    return False


def peer_of(request: Request) -> str:
    """The address a request came from; behind a proxy, the proxy's."""
    return request.client.host if request.client is not None else ""


async def change(
    state: HttpState, deed: Deed, apply: Callable[[Control], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Applies a change and tells what is attached then; 404, 409 or 422 with one line where it cannot be made."""
    outcome = "interrupted"
    try:
        if state.control is None:
            raise AttachError("this server serves unmonitored; mend what /status names and restart it")
        await apply(state.control)
        outcome = "done"
    except MonitorError as error:
        outcome = str(error)
        raise HTTPException(_status_of(error), outcome) from error
    finally:  # also of a request that is cancelled
        if state.audit is not None:
            state.audit.change(deed, outcome)
    return describe_probes(state.engines)


def _status_of(error: MonitorError) -> int:
    if isinstance(error, UnknownProbe):
        return 404
    return 422 if isinstance(error, ConfigurationError) else 409


async def everywhere(state: HttpState, question: dict[str, Any]) -> list[Any]:
    """The answers of this API server and of its peers."""
    own = await answer(state, question)
    return [own, *(await state.peers.ask(question) if state.peers is not None else [])]


async def finished(state: HttpState, response_id: str, choice: int | None) -> dict[str, Any]:
    """The response with that id, wherever it is known; the worst where it came several times. Raises 404 or 503."""
    response_id = known_as(response_id)
    found = [a for a in await everywhere(state, {"request": response_id, "choice": choice}) if a]
    if worst([answer["verdict"] for answer in found]) != FLAGGED:  # else nothing on disk is worse
        found += await on_disk(state, response_id, choice, needed=not found)
    if not found:
        kept = f"the last {state.settings.recent_requests} are"
        if state.evidence is not None:
            kept += f", and on disk those of {state.settings.evidence_days} days"
        raise HTTPException(404, f"no finished request {response_id!r} is remembered; {kept}")
    severest = worst([answer["verdict"] for answer in found])
    return dict(next(answer for answer in found if answer["verdict"] == severest))


async def on_disk(
    state: HttpState, response_id: str, choice: int | None, needed: bool
) -> list[dict[str, Any]]:
    """The response as the evidence file has it, if it has it. Raises 503 if it is ``needed`` and cannot be read."""
    if state.evidence is None:
        return []
    try:
        found = await state.evidence.response(response_id, choice)
    except EvidenceError as error:
        if needed:
            raise HTTPException(503, str(error)) from error
        return []
    return [] if found is None else [found]


async def answer(state: HttpState, question: dict[str, Any]) -> Any:
    """What this API server knows: ``{"newest": n}`` or ``{"request": id, "choice": i or null}`` (None: unknown).

    Or ``{"alerts": AlertQuery}``, where they are kept in memory. Or its part of a change, see ``Control.answer``.
    """
    if question.keys() & {"become", "undo", "trouble"}:
        if state.control is None:
            raise ServerError("it serves unmonitored; restart the server")
        return await state.control.answer(question)
    if "alerts" in question:
        memory = state.alerts
        return memory.own(AlertQuery(**question["alerts"])) if isinstance(memory, MemoryAlerts) else []
    recent = state.engines.recent
    if "newest" in question:
        return [headline(record) for record in recent.newest(int(question["newest"]))]
    records = recent.worst_of(str(question["request"]))
    if question.get("choice") is not None:
        records = [record for record in records if record.choice == question["choice"]]
    # A long sequence takes a good part of a second: not on the loop that streams everybody's tokens.
    return await run_in_threadpool(of_response, records, state.token_text) if records else None


def describe(state: HttpState) -> dict[str, Any]:
    """The body of ``GET /status``."""
    engines = state.engines
    return {
        "version": __version__,
        "attached": engines.attached,
        "model": engines.first.model_name,
        "engines": len(engines.all),
        **{
            key: state.facts.get(key)
            for key in ("vllm_version", "runner", "tapped_layers", "score_store_mib")
        },
        "probes": describe_probes(engines),
        "coverage": engines.coverage(),
        "last_error": (state.control.trouble if state.control is not None else None)
        or engines.last_error
        or state.facts.get("last_error"),
    }


def describe_probes(engines: Engines) -> list[dict[str, Any]]:
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
            "benign_iqr": None if (benign := seat.probe.manifest.benign_quantiles) is None else benign.iqr,
            "action": seat.probe.manifest.default_action,
            "sha256": seat.probe.manifest.tensors_sha256,
        }
        for seat in engines.first.bank.seats
    ]
