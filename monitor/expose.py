"""The verdict in the reply: what a client is told about its own request, and which wishes it may have.

A plain ASGI layer around the OpenAI routes. It touches a reply only where the operator (EXPOSE) allows it, and adds one
key to a JSON body or one chunk without choices before the end of a stream.
"""

from __future__ import annotations

import hmac
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from monitor.arguments import EXPOSE, PREFIX, SKIP, STEER, may_skip, ours
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.errors import RequestError
from monitor.records import RecentRecords, reply
from monitor.response_ids import known_as

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

logger = logging.getLogger("probewatch")

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
LEVELS = ("none", "verdict", "scores")
_END = b"data: [DONE]"


def wished_level(body: bytes, ceiling: str) -> str:
    """What the reply may tell: the request's ``probewatch_expose``, at most ``ceiling``; ``ceiling`` if it has no wish.

    Raises ``RequestError`` for an unknown argument or value of ours.
    """
    if PREFIX.encode() not in body:
        return ceiling
    try:
        request = json.loads(body)
        arguments = dict(request.get("vllm_xargs") or {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ceiling  # no JSON object: vLLM will say so itself
    asked = ours(arguments)
    if request.get("use_beam_search") and asked.keys() & {STEER, SKIP}:
        raise RequestError(
            f"vllm_xargs: {STEER} and {SKIP} do not reach the steps of a beam search; leave one out"
        )
    wish = asked.get(EXPOSE, ceiling)
    if wish not in LEVELS:
        raise RequestError(f"vllm_xargs: {EXPOSE}={str(wish)[:40]!r} is not known; use {', '.join(LEVELS)}")
    return str(min(wish, ceiling, key=LEVELS.index))


def told(recent: RecentRecords, response_id: str, level: str) -> dict[str, Any] | None:
    """The ``probewatch`` object of a reply; None if nothing is known of the response. Never raises."""
    try:
        records = recent.of(known_as(response_id))
        found = reply(records) if records else None
        return found if found is None or level == "scores" else without_scores(found)
    except Exception:  # the reply itself must not fail for it
        logger.exception("probewatch: the verdict of %s could not be told", known_as(response_id))
        return None


def without_scores(found: dict[str, Any]) -> dict[str, Any]:
    """Verdicts alone. A score shown to an end user is an oracle for evading the probe."""
    kept = {
        **found,
        "probes": {name: {"flagged": probe["flagged"]} for name, probe in found["probes"].items()},
    }
    if "choices" in found:
        kept["choices"] = [without_scores(choice) for choice in found["choices"]]
    return kept


class Exposure:
    """The layer. ``known`` gives settings and records once the engine is up."""

    def __init__(self, app: App, known: Callable[[], tuple[Settings, RecentRecords]]) -> None:
        self._app = app
        self._known = known

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in PATHS:
            await self._app(scope, receive, send)
            return
        settings, recent = self._known()
        body, again = await _whole(receive)
        may_skip.set(_has_admin_key(scope, settings))
        try:
            level = wished_level(body, settings.expose)
        except RequestError as error:
            await _reject(send, str(error))
            return
        if level == "none":
            await self._app(scope, again, send)
        else:
            await self._app(_with_own_id(scope), again, _Reply(send, recent, level))


def _has_admin_key(scope: MutableMapping[str, Any], settings: Settings) -> bool:
    wanted = ADMIN_HEADER.lower().encode()
    given = next((value for name, value in scope["headers"] if name.lower() == wanted), b"")
    key = settings.admin_key
    return key is not None and hmac.compare_digest(given, key.get_secret_value().encode())


def _path(scope: MutableMapping[str, Any]) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path") or "")


def _with_own_id(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """vLLM makes the response id of X-Request-Id. Ids that come twice would mix up two clients' verdicts, so this one
    is made unique: what the client gave, and a random part."""
    headers = [
        (name, value + b"-" + uuid.uuid4().hex.encode()) if name.lower() == b"x-request-id" else (name, value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}


async def _whole(receive: Receive) -> tuple[bytes, Receive]:
    """The body of a request, and a ``receive`` that gives it once more and then goes on as before."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return b"", _always(message)  # the client went away meanwhile: the application shall hear of it
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return body, again


def _always(message: Message) -> Receive:
    async def receive() -> Message:
        return message

    return receive


async def _reject(send: Send, message: str) -> None:
    error = {"message": message, "type": "BadRequestError", "param": "vllm_xargs", "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Reply:
    """``send`` for one reply: passes a stream on as it comes, holds a JSON body back until it is whole."""

    def __init__(self, send: Send, recent: RecentRecords, level: str) -> None:
        self._send = send
        self._recent = recent
        self._level = level
        self._start: Message = {}
        self._kind = b""
        self._body = b""
        self._head: dict[str, Any] | None = None
        """The first chunk of a stream: who it belongs to."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            headers = {name.lower(): value for name, value in message["headers"]}
            self._kind = headers.get(b"content-type", b"") if message["status"] == 200 else b""
            if not self._kind.startswith(b"application/json"):
                await self._send(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._kind.startswith(b"application/json"):
            await self._hold(message)
        elif self._kind.startswith(b"text/event-stream"):
            await self._send({**message, "body": self._with_verdict(message.get("body", b""))})
        else:
            await self._send(message)

    async def _hold(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = self._completed(self._body)
        length = (b"content-length", str(len(body)).encode())
        others = [
            (name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"
        ]
        await self._send({**self._start, "headers": [*others, length]})
        await self._send({"type": "http.response.body", "body": body})

    def _completed(self, body: bytes) -> bytes:
        try:
            found = json.loads(body)
            verdict = told(self._recent, found["id"], self._level)
        except (ValueError, KeyError, TypeError):
            return body
        return body if verdict is None else json.dumps({**found, "probewatch": verdict}).encode()

    def _with_verdict(self, part: bytes) -> bytes:
        if self._head is None and part.startswith(b"data: {"):
            try:
                self._head = json.loads(part[len(b"data: ") :].split(b"\n\n")[0])
            except ValueError:
                self._head = {}
        at = 0 if part.startswith(_END) else part.find(b"\n\n" + _END) + 2
        if not self._head or (at < 2 and not part.startswith(_END)):
            return part
        verdict = told(self._recent, str(self._head.get("id")), self._level)
        if verdict is None:
            return part
        kept = {key: self._head[key] for key in ("id", "object", "created", "model") if key in self._head}
        chunk = b"data: " + json.dumps({**kept, "choices": [], "probewatch": verdict}).encode() + b"\n\n"
        return part[:at] + chunk + part[at:]
