"""The routes, over a plain FastAPI application."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.errors import ServerError
from monitor.frontend import Arrival, Frontend, Running
from monitor.http import answer, describe, make_router
from monitor.response_ids import known_as
from monitor.server_state import HttpState
from monitor.unscored import Reason, nan_for
from tests.unit.monitor_fakes import alerting, alone, column, make_frontend, make_probe

KEY = {ADMIN_HEADER: "secret"}
EVIDENCE = ("/requests", "/requests/cmpl-1")


def finish(frontend: Frontend, response_id: str, *scores: float | np.float32, choice: int = 0) -> None:
    """A sequence with a prompt of two tokens."""
    running = Running(response_id, None, choice, 2, (5, 6))
    frontend.arrive([Arrival(running, tuple(range(7, 6 + len(scores))), 0, column(*scores))])
    frontend.finish(running, "stop")


def client_of(frontend: Frontend, *, key: str | None = "secret", open_evidence: bool = False) -> TestClient:
    settings = Settings(admin_key=None if key is None else SecretStr(key), open_evidence=open_evidence)
    facts = {"attached": True, "vllm_version": "0.32.0", "runner": "v1", "tapped_layers": [1, 2]}
    state = HttpState(alone(frontend), settings, lambda ids: " ".join(f"t{i}" for i in ids), facts)
    application = FastAPI()
    application.include_router(make_router(lambda: state))
    return TestClient(application)


@pytest.fixture
def watched() -> Frontend:
    """One probe; cmpl-1 was flagged, cmpl-2 has two choices of which the second lost a score."""
    found, _ = make_frontend(alerting(threshold=2.5))
    finish(found, "cmpl-1", 1.0, 2.0, 3.0)
    finish(found, "cmpl-2", 1.0, 2.0, 0.0)
    finish(found, "cmpl-2", 1.0, nan_for(Reason.NON_FINITE), 0.0, choice=1)
    return found


def get(client: TestClient, path: str, headers: dict[str, str] | None = None, status: int = 200) -> Any:
    answer = client.get("/v1/probewatch" + path, headers=headers or {})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "https://elsewhere.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9999"}, 403),
        ({"Host": "localhost:8000", "Origin": "null"}, 403),
        ({"Host": "rebound.example:8000"}, 403),
        ({"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000"}, 403),
        ({"Host": "llm.example", **KEY}, 200),
    ],
)
def test_open_evidence_is_not_for_other_pages_in_the_browser(
    watched: Frontend, headers: dict[str, str], status: int
) -> None:
    for path in EVIDENCE:
        get(client_of(watched, open_evidence=True), path, headers, status)


def test_status_needs_no_key_and_tells_what_is_attached(watched: Frontend) -> None:
    found = get(client_of(watched, key=None), "/status")
    assert found["attached"] is False, "nothing has proven the taps yet"
    watched.confirm()
    assert get(client_of(watched, key=None), "/status")["attached"] is True
    assert (found["vllm_version"], found["runner"], found["tapped_layers"]) == ("0.32.0", "v1", [1, 2])
    assert found["model"] == "model"
    assert found["engines"] == 1
    assert [probe["name"] for probe in found["probes"]] == ["lie"]
    assert found["coverage"] == {"lie": pytest.approx(8 / 9)}
    assert found["last_error"] is None


def test_status_shows_the_last_error(watched: Frontend) -> None:
    watched.error("frontend", ValueError("broken"))
    assert get(client_of(watched), "/status")["last_error"] == "frontend: ValueError: broken"


def test_status_tells_first_that_a_change_could_not_be_undone(watched: Frontend) -> None:
    watched.error("frontend", ValueError("broken"))
    control: Any = SimpleNamespace(trouble="half done; restart the server")
    state = HttpState(alone(watched), Settings(), str, control=control)
    assert describe(state)["last_error"] == "half done; restart the server"
    control.trouble = None
    assert describe(state)["last_error"] == "frontend: ValueError: broken"


async def test_a_change_is_refused_by_an_api_server_that_takes_no_part(watched: Frontend) -> None:
    with pytest.raises(ServerError, match="unmonitored; restart"):
        await answer(HttpState(alone(watched), Settings(), str), {"become": [], "epoch": 1})


def test_probes_need_no_key_and_tell_action_and_threshold() -> None:
    found, _ = make_frontend(alerting(threshold=2.5, layers=(1, 3)), make_probe("fresh"))
    probes = get(client_of(found, key=None), "/probes")
    assert [(p["name"], p["action"], p["threshold"], p["layers"]) for p in probes] == [
        ("lie", "alert", 2.5, [1, 3]),
        ("fresh", "observe", None, [1, 2]),
    ]
    assert all(p["sha256"] and p["kind"] == "logistic" and p["concept"] == "deception" for p in probes)


def test_open_routes_hold_no_evidence(watched: Frontend) -> None:
    client = client_of(watched, key=None)
    for path in ("/status", "/probes"):
        assert "cmpl-1" not in client.get("/v1/probewatch" + path).text


@pytest.mark.parametrize("path", EVIDENCE)
def test_evidence_without_any_key_names_the_remedy(watched: Frontend, path: str) -> None:
    detail = get(client_of(watched, key=None), path, KEY, status=403)["detail"]
    assert "PROBEWATCH_ADMIN_KEY" in detail
    assert ADMIN_HEADER in detail


@pytest.mark.parametrize("path", EVIDENCE)
@pytest.mark.parametrize(
    "headers", [{}, {ADMIN_HEADER: "wrong"}, {ADMIN_HEADER: ""}, {"Authorization": "secret"}]
)
def test_evidence_with_a_wrong_key_is_refused(watched: Frontend, path: str, headers: dict[str, str]) -> None:
    detail = get(client_of(watched), path, headers, status=403)["detail"]
    assert ADMIN_HEADER in detail
    assert "secret" not in detail


def test_an_empty_admin_key_is_no_key(watched: Frontend) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        client_of(watched, key="")


@pytest.mark.parametrize("path", EVIDENCE)
def test_evidence_opens_with_the_key_or_when_it_is_declared_open(watched: Frontend, path: str) -> None:
    assert get(client_of(watched), path, KEY)
    assert get(client_of(watched, key=None, open_evidence=True), path)


def test_a_response_with_a_very_long_id_is_found_by_it(watched: Frontend) -> None:
    asked = "cmpl-" + "x" * 5000
    finish(watched, known_as(asked), 1.0, 2.0, 3.0)
    assert get(client_of(watched), f"/requests/{asked}", KEY)["id"] == known_as(asked)


def test_a_refusal_does_not_tell_whether_the_request_exists(watched: Frontend) -> None:
    client = client_of(watched)
    known = client.get("/v1/probewatch/requests/cmpl-1")
    unknown = client.get("/v1/probewatch/requests/cmpl-9")
    assert (known.status_code, known.json()) == (unknown.status_code, unknown.json())


def test_one_request_shows_verdict_and_every_token(watched: Frontend) -> None:
    found = get(client_of(watched), "/requests/cmpl-1", KEY)
    assert (found["id"], found["model"], found["verdict"]) == ("cmpl-1", "model", "flagged")
    tokens = found["probes"]["lie"]["tokens"]
    assert [(t["position"], t["token_id"], t["token"], t["score"], t["reason"]) for t in tokens] == [
        (0, 5, " t5", 1.0, None),
        (1, 6, " t6", 2.0, None),
        (2, 7, " t7", 3.0, None),
        (3, 8, " t8", None, "not_fed"),
    ]


def test_several_choices_are_listed_and_one_can_be_asked_for(watched: Frontend) -> None:
    client = client_of(watched)
    both = get(client, "/requests/cmpl-2", KEY)
    assert [(c["index"], c["verdict"]) for c in both["choices"]] == [(0, "ok"), (1, "unscored")]
    assert both["verdict"] == "unscored"
    assert get(client, "/requests/cmpl-2?choice=0", KEY)["verdict"] == "ok"
    second = get(client, "/requests/cmpl-2?choice=1", KEY)
    assert second["probes"]["lie"]["tokens"][1]["reason"] == "non_finite"
    assert "choices" not in second


def test_a_slash_in_an_id_hides_nothing() -> None:
    found, _ = make_frontend(alerting(threshold=2.5))
    finish(found, "cmpl-a/../b?c#d", 1.0, 2.0, 3.0)
    assert get(client_of(found), "/requests/cmpl-a%2F..%2Fb%3Fc%23d", KEY)["verdict"] == "flagged"
    assert [line["id"] for line in get(client_of(found), "/requests", KEY)] == ["cmpl-a/../b?c#d"]


@pytest.mark.parametrize(
    "path", ["/requests/cmpl-9", "/requests/cmpl-2?choice=2", "/requests/cmpl-2?choice=-1"]
)
def test_what_is_not_remembered_is_404_with_how_much_is(watched: Frontend, path: str) -> None:
    detail = get(client_of(watched), path, KEY, status=404)["detail"]
    assert path.split("/")[-1].split("?")[0] in detail
    assert "4096" in detail


def test_the_list_is_newest_first_and_within_its_limit(watched: Frontend) -> None:
    client = client_of(watched)
    assert [found["id"] for found in get(client, "/requests", KEY)] == ["cmpl-2", "cmpl-2", "cmpl-1"]
    newest = get(client, "/requests?limit=1", KEY)
    assert [found["id"] for found in newest] == ["cmpl-2"]
    assert get(client, "/requests", KEY)[2]["flagged_by"] == ["lie"]
    assert "token" not in newest[0]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "ten"])
def test_a_limit_out_of_bounds_is_refused(watched: Frontend, limit: str) -> None:
    get(client_of(watched), f"/requests?limit={limit}", KEY, status=422)


def test_an_uncalibrated_probe_and_missing_scores_are_valid_json() -> None:
    found, _ = make_frontend(make_probe("fresh"))
    running = Running("r", None, 0, 2, None)
    found.arrive([Arrival(running, (1, 2), 0, None)])
    found.finish(running, "stop")
    answer = get(client_of(found), "/requests/r", KEY)
    assert answer["probes"]["fresh"]["threshold"] is None
    assert [token["reason"] for token in answer["probes"]["fresh"]["tokens"]] == ["not_delivered"] * 3 + [
        "not_fed"
    ]


def test_a_token_is_shown_with_its_leading_space_and_decoded_once() -> None:
    found, _ = make_frontend(alerting())
    asked: list[list[int]] = []

    def decode(ids: list[int]) -> str:
        asked.append(ids)
        return " ".join("ab"[i] for i in ids)

    state = HttpState(alone(found), Settings(), decode)
    assert [state.token_text(i) for i in (0, 1, 0, 0)] == [" a", " b", " a", " a"]
    assert len(asked) == 4
