"""``/alerts``, ``/events``, and ``/requests/{id}`` once memory has forgotten."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from monitor.alert_feed import AlertFeed, as_event
from monitor.alert_routes import read_since
from monitor.alerts import AlertQuery, MemoryAlerts
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.errors import EvidenceError
from monitor.frontend import Arrival, Frontend, Running
from monitor.http import answer, make_router
from monitor.seam.endpoint import ProbewatchEndpoint, _is_closing
from monitor.server_state import HttpState
from tests.unit.monitor_fakes import alerting, alone, column, make_frontend, value
from tests.unit.waiting import until

KEY = {ADMIN_HEADER: "secret"}
ROUTES = ("/alerts", "/events")
LOOK_SECONDS = 0.02


def finish(frontend: Frontend, response_id: str, score: float = 3.0, choice: int = 0) -> None:
    """A sequence of one token in the prompt and two after it; over 2.5 it is flagged."""
    running = Running(response_id, None, choice, 1, (5,))
    frontend.arrive([Arrival(running, (6, 7), 0, column(0.0, score))])
    frontend.finish(running, "stop")


class Served:
    """Routes over one engine. ``path``: of the evidence file, or ``off``."""

    def __init__(self, path: Path | str, **changes: Any) -> None:
        self.frontend, self.registry = make_frontend(alerting(threshold=2.5))
        values: dict[str, Any] = {"admin_key": SecretStr("secret"), "evidence_path": path, **changes}
        self.state = HttpState(alone(self.frontend), Settings(**values), lambda ids: f"t{ids}")
        self.state.keep_evidence(8000)
        self.look_often()
        self.application = FastAPI()
        self.application.include_router(make_router(lambda: self.state))
        self.client = TestClient(self.application)

    def look_often(self) -> None:
        """A feed that finds what is new within milliseconds."""
        self.state.__dict__["feed"] = AlertFeed(
            self.state.alerts, lambda: self.state.closing(), poll_seconds=LOOK_SECONDS
        )

    def flush(self) -> None:
        """Writes what waits, and ends the store as a server does that stops."""
        if self.state.evidence is not None:
            self.state.evidence.close()

    def get(self, route: str, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        reply = self.client.get("/v1/probewatch" + route, headers=KEY if headers is None else headers)
        assert reply.status_code == status, reply.text
        return reply.json()

    def stream(self, rounds: int = 1, **headers: str) -> str:
        """What an event stream says until the server is about to stop, some looks later."""
        left = iter([False] * rounds)
        self.state.closing = lambda: next(left, True)
        self.look_often()
        reply = self.client.get("/v1/probewatch/events", headers={**KEY, **headers})
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        return reply.text


@pytest.fixture(params=["sqlite", "off"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Served:
    """With a file and without: three flagged responses, and one that is not."""
    found = Served("off" if request.param == "off" else tmp_path / "evidence.sqlite")
    for name in ("cmpl-1", "cmpl-2", "cmpl-3"):
        finish(found.frontend, name)
    finish(found.frontend, "fine", 1.0)
    found.flush()
    return found


def test_alerts_are_newest_first_and_hold_no_text(served: Served) -> None:
    alerts = served.get("/alerts")
    assert [alert["id"] for alert in alerts] == ["cmpl-3", "cmpl-2", "cmpl-1"]
    assert set(alerts[0]) == {
        *("event_id", "id", "choice", "model", "time", "verdict", "finish_reason"),
        *("prompt_tokens", "fed_tokens", "probes", "coverage"),
    }
    assert alerts[0]["probes"] == [
        {"name": "lie", "score": 3.0, "threshold": 2.5, "action": "alert", "peak_token": 1}
    ]


def test_alerts_by_time_probe_and_number(served: Served) -> None:
    newest = served.get("/alerts")
    assert [a["id"] for a in served.get("/alerts?limit=1")] == ["cmpl-3"]
    assert served.get(f"/alerts?since={newest[1]['time']}") == newest[:2]
    assert served.get("/alerts?since=2100-01-01T00:00:00Z") == []
    assert served.get("/alerts?probe=lie") == newest == served.get("/alerts?probe=&since=&limit=")
    assert served.get("/alerts?probe=other") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("1.5", 1.5),
        ("-1", -1.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-02", 86400.0),
    ],
)
def test_since_is_unix_seconds_or_iso(text: str, expected: float | None) -> None:
    assert read_since(text) == expected


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "ten", "1_0", "9" * 5000, "1.5", "٣"])
def test_a_limit_out_of_bounds_is_refused_in_one_line(served: Served, limit: str) -> None:
    detail = served.get(f"/alerts?limit={limit}", 422)["detail"]
    assert detail.startswith("limit=")
    assert "1 to 1000" in detail
    assert len(detail) < 200


@pytest.mark.parametrize(
    "since", ["nan", "inf", "-inf", "1e999", "yesterday", "2026-13-01", "x" * 5000, "%00"]
)
def test_a_since_that_is_no_time_is_refused_in_one_line(served: Served, since: str) -> None:
    detail = served.get(f"/alerts?since={since}", 422)["detail"]
    assert detail.startswith("since=")
    assert "ISO 8601" in detail
    assert len(detail.splitlines()) == 1


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 19, "1 OR 1"])
def test_a_last_event_id_of_no_event_is_refused(served: Served, last: str) -> None:
    assert "Last-Event-ID" in served.get("/events", 422, {**KEY, "Last-Event-ID": last})["detail"]


@pytest.mark.parametrize("route", ROUTES)
def test_evidence_is_guarded(tmp_path: Path, route: str) -> None:
    shut = Served("off", admin_key=None)
    assert "PROBEWATCH_ADMIN_KEY" in shut.get(route, 403, KEY)["detail"]
    for headers in ({}, {ADMIN_HEADER: "wrong"}):
        assert ADMIN_HEADER in Served("off").get(route, 403, headers)["detail"]
    opened = Served("off", admin_key=None, open_evidence=True)
    opened.state.closing = lambda: True
    assert opened.client.get("/v1/probewatch" + route).status_code == 200


def events(text: str) -> list[tuple[str, str]]:
    """(event id, response id) of a stream's alerts."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields.get("event") == "alert":
            data = json.loads(fields["data"])
            assert str(data["event_id"]) == fields["id"]
            found.append((fields["id"], data["id"]))
    return found


def test_a_stream_resumes_where_it_was_told(served: Served) -> None:
    alerts = served.get("/alerts")
    said = served.stream(**{"Last-Event-ID": str(alerts[2]["event_id"])})
    assert events(said) == [(str(a["event_id"]), a["id"]) for a in (alerts[1], alerts[0])]
    assert served.get("/alerts")[0] == json.loads(said.split("data: ")[-1].split("\n")[0])
    assert [name for _, name in events(served.stream(**{"Last-Event-ID": "0"}))] == [
        "cmpl-1",
        "cmpl-2",
        "cmpl-3",
    ]


def test_a_stream_without_a_place_begins_now(served: Served) -> None:
    said = served.stream()
    assert events(said) == []
    assert said.startswith("retry: 2000\n\n")


def test_a_stream_gives_more_alerts_than_one_page(tmp_path: Path) -> None:
    found = Served(tmp_path / "evidence.sqlite")
    for i in range(250):
        finish(found.frontend, f"cmpl-{i}")
    found.flush()
    said = events(found.stream(rounds=4, **{"Last-Event-ID": "0"}))
    assert [name for _, name in said] == [f"cmpl-{i}" for i in range(250)]


def test_a_hostile_id_forges_no_event() -> None:
    alert = {"event_id": 1, "id": "x\n\nid: 9\nevent: alert\ndata: {}\r\n\u2028"}
    assert as_event(alert).count("\n") == 4
    assert as_event(alert).isascii()
    assert events(as_event(alert)) == [("1", alert["id"])]


def test_a_quiet_stream_beats() -> None:
    async def listen() -> list[str]:
        left = iter([False] * 2)
        feed = AlertFeed(MemoryAlerts(), lambda: next(left, True), heartbeat_seconds=0.0, poll_seconds=0.0)
        return [said async for said in feed.events(0)]

    assert asyncio.run(listen()) == ["retry: 2000\n\n", ": nothing new\n\n", ": nothing new\n\n"]


def test_streams_share_one_look_and_survive_a_source_in_trouble(caplog: pytest.LogCaptureFixture) -> None:
    class Trouble:
        asked = 0

        async def find(self, query: AlertQuery) -> list[dict[str, Any]]:
            self.asked += 1
            raise EvidenceError("the file is gone")

    async def listen(source: Trouble) -> None:
        ends = time.monotonic() + 2.4 * LOOK_SECONDS
        feed = AlertFeed(source, lambda: time.monotonic() > ends, poll_seconds=LOOK_SECONDS)

        async def one() -> list[str]:
            return [said async for said in feed.events(0)]

        for said in await asyncio.gather(*(one() for _ in range(20))):
            assert said == ["retry: 2000\n\n"]

    source = Trouble()
    asyncio.run(listen(source))
    assert 1 <= source.asked <= 4
    assert len([record for record in caplog.records if "the file is gone" in record.message]) == 1


def test_too_many_streams_are_turned_away_with_the_remedy() -> None:
    found = Served("off")
    found.state.__dict__["feed"] = AlertFeed(found.state.alerts, lambda: False, streams_at_most=0)
    reply = found.client.get("/v1/probewatch/events", headers=KEY)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "15")
    assert "/alerts" in reply.json()["detail"]


def test_without_a_file_any_process_shows_the_alerts_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    frontends = [make_frontend(alerting(threshold=2.5))[0] for _ in range(2)]
    states = [HttpState(alone(frontend), Settings(), str) for frontend in frontends]

    async def ask(question: dict[str, Any]) -> list[Any]:
        return [json.loads(json.dumps(await answer(states[1], json.loads(json.dumps(question)))))]

    both = MemoryAlerts(ask)
    states[1].alerts = other = MemoryAlerts()
    frontends[0].listeners.append(both.add)
    frontends[1].listeners.append(other.add)
    for i in range(4):
        finish(frontends[i % 2], f"cmpl-{i}")
        time.sleep(0.001)
    assert [a["id"] for a in asyncio.run(both.find(AlertQuery(limit=3)))] == ["cmpl-3", "cmpl-2", "cmpl-1"]
    assert asyncio.run(both.find(AlertQuery(after=0))) == [], "another process may yet show an earlier one"
    monkeypatch.setattr("monitor.alerts.SETTLED_MICROSECONDS", 0)
    assert [a["id"] for a in asyncio.run(both.find(AlertQuery(after=0)))] == [f"cmpl-{i}" for i in range(4)]


def test_a_process_that_writes_to_disk_answers_its_peers_with_nothing(tmp_path: Path) -> None:
    found = Served(tmp_path / "evidence.sqlite")
    finish(found.frontend, "cmpl-1")
    found.flush()
    assert asyncio.run(answer(found.state, {"alerts": {"limit": 10}})) == []


def forgotten(path: Path, **changes: Any) -> Served:
    """A server that has just started over the evidence of an earlier one."""
    before = Served(path, **changes)
    finish(before.frontend, "bad")
    finish(before.frontend, "fine", 1.0)
    finish(before.frontend, "several", 1.0)
    finish(before.frontend, "several", 3.0, choice=1)
    before.flush()
    assert value(before.registry, "probewatch_evidence_total", sink="sqlite", outcome="stored") == 4
    return Served(path, **changes)


def test_what_memory_forgot_is_read_from_disk(tmp_path: Path) -> None:
    found = forgotten(tmp_path / "evidence.sqlite")
    bad = found.get("/requests/bad")
    assert (bad["id"], bad["verdict"]) == ("bad", "flagged")
    tokens = bad["probes"]["lie"]["tokens"]
    assert [(t["position"], t["token_id"], t["token"], t["score"], t["reason"]) for t in tokens] == [
        (0, None, None, 0.0, None),
        (1, None, None, 3.0, None),
        (2, None, None, None, "not_fed"),
    ]
    assert found.get("/requests/fine")["probes"]["lie"]["tokens"] == []
    assert [c["verdict"] for c in found.get("/requests/several")["choices"]] == ["ok", "flagged"]
    assert found.get("/requests/several?choice=0")["verdict"] == "ok"
    for path in ("/requests/none", "/requests/several?choice=7", "/requests/%00"):
        assert "30 days" in found.get(path, 404)["detail"]
    found.flush()


def test_stored_text_is_shown(tmp_path: Path) -> None:
    found = forgotten(tmp_path / "evidence.sqlite", store_text=True)
    tokens = found.get("/requests/bad")["probes"]["lie"]["tokens"]
    assert [(t["token_id"], t["token"]) for t in tokens] == [(5, "t[5]"), (6, "t[6]"), (7, "t[7]")]
    found.flush()


def test_a_harmless_answer_under_the_same_id_does_not_hide_what_is_on_disk(tmp_path: Path) -> None:
    found = forgotten(tmp_path / "evidence.sqlite")
    finish(found.frontend, "bad", 1.0)
    assert found.get("/requests/bad")["verdict"] == "flagged"
    found.flush()


def test_a_file_that_cannot_be_read_costs_only_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "evidence.sqlite"
    found = forgotten(path)
    finish(found.frontend, "young", 1.0)
    found.flush()
    path.write_bytes(b"broken " * 1000)
    assert found.get("/requests/young")["verdict"] == "ok"
    for route in ("/requests/bad", "/alerts"):
        assert "mend or remove" in found.get(route, 503)["detail"]


class Uvicorn:
    """The routes behind a real uvicorn, in a thread."""

    def __init__(self, served: Served) -> None:
        self.server = uvicorn.Server(uvicorn.Config(served.application, port=0, log_level="warning"))
        served.application.state.server = self.server
        served.state.closing = lambda: _is_closing(served.application.state)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/probewatch"


def test_a_real_stream_ends_with_its_client_and_with_its_server(tmp_path: Path) -> None:
    served = Served(tmp_path / "evidence.sqlite")
    running = Uvicorn(served)
    first = requests.get(f"{running.url}/events", headers=KEY, stream=True, timeout=10)
    second = requests.get(f"{running.url}/events", headers=KEY, stream=True, timeout=10)
    finish(served.frontend, "cmpl-1")
    heard = [stream.iter_lines(decode_unicode=True) for stream in (first, second)]
    for lines in heard:
        assert json.loads(next(line for line in lines if line.startswith("data: "))[6:])["id"] == "cmpl-1"
    feed = served.state.feed
    assert feed._streams == 2
    first.close()
    until(lambda: feed._streams == 1, 5)
    running.server.should_exit = True
    running.thread.join(5)
    assert not running.thread.is_alive(), "an open stream keeps the server from stopping"
    assert feed._streams == 0
    second.close()
    served.flush()


def test_the_store_is_closed_with_the_server(tmp_path: Path) -> None:
    served = Served(tmp_path / "evidence.sqlite")
    endpoint = ProbewatchEndpoint(True)
    endpoint._state = served.state
    application = FastAPI()
    endpoint.attach_router(application)
    with TestClient(application):
        for i in range(50):
            finish(served.frontend, f"cmpl-{i}")
    assert value(served.registry, "probewatch_evidence_total", sink="sqlite", outcome="stored") == 50
    finish(served.frontend, "late")
    assert value(served.registry, "probewatch_evidence_total", sink="sqlite", outcome="dropped") == 1


def test_a_server_that_never_came_up_stops_all_the_same() -> None:
    application = FastAPI()
    ProbewatchEndpoint(True).attach_router(application)
    with TestClient(application):
        pass
