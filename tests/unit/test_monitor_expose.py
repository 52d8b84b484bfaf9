"""The layer around the OpenAI routes, driven message by message: what it adds, and what it must leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from monitor.config import Settings
from monitor.errors import RequestError
from monitor.expose import Exposure, wished_level, without_scores
from monitor.frontend import Arrival, Running
from monitor.records import RecentRecords
from tests.unit.monitor_fakes import alerting, column, make_frontend

Message = dict[str, Any]


def recent() -> RecentRecords:
    """One flagged response, ``chatcmpl-x``."""
    frontend, _ = make_frontend(alerting(threshold=2.5))
    running = Running("chatcmpl-x", "g", 0, 2, [1, 2])
    frontend.arrive([Arrival(running, (3,), 0, column(1.0, 5.0))])
    frontend.finish(running, "stop")
    return frontend.recent


async def exchange(
    answer: list[bytes],
    *,
    kind: bytes = b"application/json",
    body: bytes = b"{}",
    expose: str = "scores",
    path: str = "/v1/chat/completions",
    root: str = "",
    headers: list[tuple[bytes, bytes]] | None = None,
    status: int = 200,
) -> tuple[list[Message], Message]:
    """What a client gets from an application that answers in these parts, and the scope the application saw."""
    seen: Message = {}

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        seen.update(scope, body=(await receive()).get("body"))
        length = (b"content-length", str(sum(map(len, answer))).encode())
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind), length]}
        )
        for i, part in enumerate(answer):
            await send({"type": "http.response.body", "body": part, "more_body": i + 1 < len(answer)})

    sent: list[Message] = []
    pending = [
        {"type": "http.request", "body": body[:3], "more_body": True},
        {"type": "http.request", "body": body[3:]},
    ]

    async def receive() -> Message:
        return pending.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    settings = Settings.model_validate({"expose": expose})
    known = recent()
    scope = {
        "type": "http",
        "method": "POST",
        "path": root + path,
        "root_path": root,
        "headers": headers or [],
    }
    await Exposure(app, lambda: (settings, known))(scope, receive, send)
    return sent, seen


def body_of(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize("root", ["", "/api"])
async def test_a_whole_reply_gets_one_more_key_and_the_right_length(root: str) -> None:
    sent, seen = await exchange(
        [b'{"id": "chatcmpl-x",', b' "choices": []}'], root=root, body=b'{"model": "m"}'
    )
    found = json.loads(body_of(sent))
    assert found["probewatch"]["verdict"] == "flagged"
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(body_of(sent))).encode()
    assert seen["body"] == b'{"model": "m"}'


async def test_a_stream_gets_one_more_chunk_before_its_end() -> None:
    head = b'data: {"id": "chatcmpl-x", "model": "m", "choices": [{}]}\n\n'
    sent, _ = await exchange([head, b"data: [DONE]\n\n"], kind=b"text/event-stream; charset=utf-8")
    first, added, end = body_of(sent).strip().split(b"\n\n")
    assert (first + b"\n\n", end) == (head, b"data: [DONE]")
    chunk = json.loads(added.removeprefix(b"data: "))
    assert (chunk["id"], chunk["model"], chunk["choices"]) == ("chatcmpl-x", "m", [])
    assert chunk["probewatch"]["verdict"] == "flagged"


async def test_text_that_speaks_of_the_end_of_a_stream_is_no_end() -> None:
    part = b'data: {"id": "chatcmpl-x", "choices": [{"text": "data: [DONE]"}]}\n\n'
    sent, _ = await exchange([part], kind=b"text/event-stream")
    assert body_of(sent) == part


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (b'{"id": "chatcmpl-x"}', {"expose": "none"}),
        (b'{"id": "chatcmpl-x"}', {"path": "/v1/embeddings"}),
        (b'{"id": "chatcmpl-x"}', {"status": 400}),
        (b'{"id": "unknown"}', {}),
        (b"not JSON", {}),
        (b"[1, 2]", {}),
        (b'{"id": "chatcmpl-x"}', {"kind": b"text/plain"}),
    ],
)
async def test_everything_else_passes_unchanged(answer: bytes, options: dict[str, Any]) -> None:
    sent, _ = await exchange([answer], **options)
    assert body_of(sent) == answer


async def test_an_id_that_a_client_chose_is_made_its_own() -> None:
    ids = []
    for _ in range(2):
        _, seen = await exchange([b"{}"], headers=[(b"x-request-id", b"trace-7")])
        ids.append(dict(seen["headers"])[b"x-request-id"])
    assert all(found.startswith(b"trace-7-") for found in ids)
    assert ids[0] != ids[1]


async def test_a_client_that_goes_away_while_it_uploads_sends_nothing_on() -> None:
    heard: list[Message] = []

    async def app(scope: Any, receive: Callable[[], Any], send: Any) -> None:
        heard.append(await receive())

    pending = [{"type": "http.request", "body": b'{"mo', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return pending.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    known = recent()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await Exposure(app, lambda: (Settings.model_validate({"expose": "verdict"}), known))(scope, receive, send)
    assert [message["type"] for message in heard] == ["http.disconnect"]


def test_a_wish_is_at_most_what_the_server_allows() -> None:
    wish = b'{"vllm_xargs": {"probewatch_expose": "scores"}}'
    assert [wished_level(wish, ceiling) for ceiling in ("none", "verdict", "scores")] == [
        "none",
        "verdict",
        "scores",
    ]
    assert wished_level(b'{"vllm_xargs": {"probewatch_expose": "none"}}', "scores") == "none"
    assert wished_level(b"{}", "verdict") == "verdict"


@pytest.mark.parametrize(
    "wrong", ['{"probewatch_expose": 7}', '{"probewatch_skp": 1}', '{"probewatch_": "x"}']
)
def test_what_does_not_exist_is_refused_with_what_does(wrong: str) -> None:
    with pytest.raises(RequestError, match="probewatch_expose"):
        wished_level(f'{{"vllm_xargs": {wrong}}}'.encode(), "scores")


@pytest.mark.parametrize(
    "hostile", [b"[" * 100_000 + b"probewatch_", b'"probewatch_"', b'{"vllm_xargs": "probewatch_"}']
)
def test_nonsense_is_left_to_vllm(hostile: bytes) -> None:
    assert wished_level(hostile, "verdict") == "verdict"


def test_a_verdict_alone_shows_no_number() -> None:
    probes = {"lie": {"score": 3.0, "threshold": 1.0, "flagged": True, "peak_token": 4, "tokens_scored": 9}}
    one = {"verdict": "flagged", "probes": probes, "coverage": {"prompt": 1.0, "generated": 1.0}}
    shown = without_scores({**one, "choices": [{"index": 0, **one}]})
    assert shown["probes"] == shown["choices"][0]["probes"] == {"lie": {"flagged": True}}


@pytest.mark.parametrize("wish", ['"probewatch_steer": "up:1"', '"probewatch_skip": 0'])
def test_a_beam_search_cannot_be_told_what_its_steps_never_hear(wish: str) -> None:
    with pytest.raises(RequestError, match="beam search"):
        wished_level(f'{{"use_beam_search": true, "vllm_xargs": {{{wish}}}}}'.encode(), "none")
