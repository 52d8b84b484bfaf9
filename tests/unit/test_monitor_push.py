"""Flags pushed to receivers: what arrives, and what happens to serving when the receiver does not do its part."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
from monitor_receiver import raw_receiver, receiver, self_signed
from prometheus_client import CollectorRegistry

from monitor.config import Settings
from monitor.evidence_rows import Text
from monitor.flag_event import Origin, alert_id, flag_event, peak_span
from monitor.frontend import Arrival, Frontend, Running
from monitor.post import Letter, ReceiverError, post
from monitor.postman import Patience, Postman
from monitor.push import make_postmen, public_url
from monitor.receivers import SIGNATURE_HEADER, TIMESTAMP_HEADER, Sites, alerts_of, severity
from monitor.records import Record
from tests.unit.monitor_fakes import BENIGN, alerting, column, make_frontend, value
from tests.unit.waiting import until

URL = "https://llm.example.org"
ORIGIN = Origin(URL, "0.1.0", "0.32.0", "abc")
TEXT = Text(lambda ids: " ".join(f"word{i}" for i in ids), lambda i: f" word{i}")
QUICK = Patience(attempt=0.3, first_pause=0.01, longest_pause=0.02, lifetime=5.0)
SECRET = "hunter2"
DOCS = Path(__file__).parents[2] / "docs" / "operation.md"


def finish(frontend: Frontend, response_id: str, *scores: float, choice: int = 0) -> Record:
    """A sequence with a prompt of two tokens."""
    running = Running(response_id, None, choice, 2, (5, 6))
    states = np.repeat(column(*scores), frontend.bank.state_columns, axis=1)
    frontend.arrive([Arrival(running, tuple(range(7, 6 + len(scores))), 0, states)])
    record = frontend.finish(running, "stop")
    assert record is not None
    return record


def flagging(**changes: Any) -> tuple[Frontend, CollectorRegistry]:
    """An alerting probe and one that observes, both over 2.5."""
    acting = alerting(threshold=2.5, calibration={"nominal_fpr": 0.01, "n": 500}, **changes)
    return make_frontend(acting, alerting("hush", threshold=2.5, default_action="observe"))


class Pushing:
    """A frontend whose flags go to the receivers of some settings."""

    def __init__(self, patience: Patience = QUICK, **settings: Any) -> None:
        self.frontend, self.registry = flagging()
        self.postmen = make_postmen(Settings.model_validate(settings), ORIGIN, TEXT, patience)
        for postman in self.postmen:
            self.frontend.listeners.append(postman.listener(self.frontend))
            postman.start()

    def counts(self, sink: str = "webhook") -> tuple[float | None, ...]:
        """(delivered, dropped, failed)"""
        return tuple(
            value(self.registry, "probewatch_evidence_total", sink=sink, outcome=outcome)
            for outcome in ("delivered", "dropped", "failed")
        )

    def wait(self, *counts: float, sink: str = "webhook") -> None:
        """Until that is what has become of the flags."""
        until(lambda: self.counts(sink) == counts, shown=lambda: (self.counts(sink), counts))

    def close(self, seconds: float = 4.0) -> None:
        for postman in self.postmen:
            postman.close(seconds)


@pytest.fixture
def push() -> Iterator[Callable[..., Pushing]]:
    """Makes them, and ends them."""
    made: list[Pushing] = []

    def make(*args: Any, **settings: Any) -> Pushing:
        made.append(Pushing(*args, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close(0.1)


Push = Callable[..., Pushing]


def test_an_event_says_who_flagged_what_and_where_to_look() -> None:
    frontend, _ = flagging(benign_quantiles=BENIGN)
    record = finish(frontend, "cmpl/1 ä", 1.0, 2.0, 2.6, 3.5, 3.0, 2.0, 2.7)
    event = flag_event(record, ORIGIN, "0")
    assert (event["type"], event["request_id"], event["choice"]) == ("probewatch.flagged", "cmpl/1 ä", 0)
    assert event["model"] == {"name": "model", "revision": "abc"}
    assert event["server"] == {"url": URL, "engine": "0", "version": "0.1.0", "vllm_version": "0.32.0"}
    assert event["links"]["evidence"] == f"{URL}/probewatch/ui#id=cmpl%2F1%20%C3%A4&choice=0"
    assert event["links"]["request"].startswith(f"{URL}/v1/probewatch/requests/cmpl%2F1%20%C3%A4?")
    (probe,) = event["probes"]  # the one that observes is no reason to call anybody
    assert (probe["name"], probe["action"], probe["score"], probe["threshold"]) == ("lie", "alert", 3.5, 2.5)
    assert (probe["aggregation"], probe["nominal_fpr"], probe["layers"]) == ("max", 0.01, [1, 2])
    assert re.fullmatch("[0-9a-f]{64}", probe["sha256"])
    assert (probe["peak_token"], probe["peak_span"]) == (3, [2, 4])
    assert [token["position"] for token in probe["top_tokens"]] == [3, 4, 6, 2, 1]
    assert probe["top_tokens"][-1] == {"position": 1, "phase": "prompt", "score": 2.0}
    json.dumps(event, allow_nan=False)


def test_no_text_and_no_token_leaves_unless_the_operator_asked() -> None:
    frontend, _ = flagging()
    record = finish(frontend, "cmpl-1", 1.0, 2.0, 3.0)
    told = flag_event(record, ORIGIN, "0", TEXT)
    assert told["text"] == {"prompt": "word5 word6", "answer": "word7 word8"}
    assert told["probes"][0]["top_tokens"][0]["token"] == " word7"
    kept = json.dumps(flag_event(record, ORIGIN, "0"))
    assert "word" not in kept
    assert "token_id" not in kept


def test_what_is_not_flagged_is_no_event() -> None:
    frontend, _ = flagging()
    with pytest.raises(ValueError, match="is ok; only flagged"):
        flag_event(finish(frontend, "cmpl-1", 1.0, 2.0), ORIGIN, "0")


@pytest.mark.parametrize(
    ("scores", "peak", "expected"),
    [
        ([3, 3, 3], 1, [0, 2]),
        ([0, 3, 0], 1, [1, 1]),
        ([0, 1, 0], 1, [1, 1]),  # a mean can cross where no token does
        ([3, 0, 3, 4], 3, [2, 3]),
        ([3, np.nan, 3, 4], 3, [2, 3]),
        ([0, 0], None, None),
    ],
)
def test_the_peak_span_is_the_run_above_the_threshold(
    scores: list[float], peak: int | None, expected: list[int] | None
) -> None:
    values = np.array(scores, np.float32)
    assert peak_span(values, np.isfinite(values), 2.5, peak) == expected


def test_alert_ids_tell_flags_apart_and_not_attempts() -> None:
    frontend, _ = flagging()
    one, other = (finish(frontend, "same", 1.0, 3.0, choice=choice) for choice in (0, 1))
    again = finish(frontend, "same", 1.0, 3.0)
    assert len({alert_id(record) for record in (one, other, again)}) == 3
    assert alert_id(one) == alert_id(one)
    assert alert_id(finish(frontend, "lone \ud800 surrogate", 3.0, 3.0))


def test_the_documented_check_accepts_what_arrives_and_nothing_forged(push: Push) -> None:
    """The very code that docs/operation.md shows to whoever writes a receiver."""
    (code,) = re.findall(r"```python\n(def is_genuine.*?)```", DOCS.read_text(), re.DOTALL)
    scope: dict[str, Any] = {"hmac": hmac, "time": time}
    exec(code, scope)
    is_genuine = scope["is_genuine"]
    with receiver() as inbox:
        pushing = push(webhook_url=f"{inbox.url}/hook?team=a", webhook_secret=SECRET)
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
        (got,) = inbox.wait(1)
        pushing.wait(1, 0, 0)
    assert got.path == "/hook?team=a"
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["X-Probewatch-Alert-Id"] == json.loads(got.body)["alert_id"]
    assert is_genuine(got.headers, got.body, SECRET)
    assert not is_genuine(got.headers, got.body + b" ", SECRET)
    assert not is_genuine(got.headers, got.body, "other")
    assert not is_genuine({**got.headers, TIMESTAMP_HEADER: "1"}, got.body, SECRET)
    old = str(int(time.time()) - 3600)
    signed = "sha256=" + hmac.new(SECRET.encode(), f"{old}.".encode() + got.body, hashlib.sha256).hexdigest()
    assert not is_genuine({TIMESTAMP_HEADER: old, SIGNATURE_HEADER: signed}, got.body, SECRET)
    assert not is_genuine({}, got.body, SECRET)


def test_only_flags_are_pushed_and_unsigned_without_a_secret(push: Push) -> None:
    with receiver() as inbox:
        pushing = push(webhook_url=inbox.url)
        assert pushing.counts() == (0, 0, 0)
        finish(pushing.frontend, "cmpl-1", 1.0, 2.0)
        finish(pushing.frontend, "cmpl-2", 1.0, 3.0)
        pushing.wait(1, 0, 0)
        (got,) = inbox.posts
    assert json.loads(got.body)["request_id"] == "cmpl-2"
    assert SIGNATURE_HEADER not in got.headers


def test_alertmanager_gets_an_alert_for_each_flag_of_each_probe(push: Push) -> None:
    with receiver() as inbox:
        pushing = push(alertmanager_url=f"{inbox.url}/prefix/")
        records = [finish(pushing.frontend, "cmpl-1", 1.0, 3.0, choice=choice) for choice in (0, 1)]
        pushing.wait(2, 0, 0, sink="alertmanager")
        posts = inbox.posts
    assert {got.path for got in posts} == {"/prefix/api/v2/alerts"}
    alerts = [alert for got in posts for alert in json.loads(got.body)]
    assert [alert["labels"]["alert_id"] for alert in alerts] == [alert_id(record) for record in records]
    first = alerts[0]
    assert first["labels"] == {
        "alertname": "ProbewatchFlaggedGeneration",
        "severity": "warning",
        "model_name": "model",
        "instance": "llm.example.org",
        "engine": "0",
        "probe": "lie",
        "action": "alert",
        "request_id": "cmpl-1",
        "choice": "0",
        "alert_id": alert_id(records[0]),
    }
    assert first["generatorURL"] == f"{URL}/probewatch/ui#id=cmpl-1&choice=0"
    assert first["annotations"]["evidence_url"] == first["generatorURL"]
    assert "Score 3 over threshold 2.5" in first["annotations"]["description"]
    assert not {"runbook_url", "dashboard_url"} & first["annotations"].keys(), (
        "a relative link would lead nowhere"
    )
    assert first["endsAt"] > first["startsAt"]


@pytest.mark.parametrize(
    ("action", "fpr", "expected"),
    [
        ("stop", 0.1, "critical"),
        ("alert", 0.001, "critical"),
        ("alert", 0.01, "warning"),
        ("alert", None, "warning"),
    ],
)
def test_severity(action: str, fpr: float | None, expected: str) -> None:
    assert severity({"action": action, "nominal_fpr": fpr}) == expected


def test_links_to_runbook_and_dashboard_are_absolute_where_their_sites_are_known() -> None:
    frontend, _ = make_frontend(alerting("a.b", threshold=2.5))
    event = flag_event(finish(frontend, "cmpl-1", 1.0, 3.0), ORIGIN, "1")
    (alert,) = alerts_of(event, Sites("https://git.example.org/docs/", "https://grafana.example.org/"))
    root, runbook = alert["annotations"]["runbook_url"].split("/docs/")
    assert root == "https://git.example.org"
    assert (Path(__file__).parents[2] / "docs" / runbook).is_file()
    board, variables = alert["annotations"]["dashboard_url"].split("?")
    assert parse_qs(variables) == {"var-model_name": ["model"], "var-probe": ["a.b"]}
    shipped = json.loads((Path(__file__).parents[2] / "grafana" / "probewatch_probes.json").read_text())
    assert board == f"https://grafana.example.org/d/{shipped['uid']}"
    assert {name.removeprefix("var-") for name in parse_qs(variables)} <= {
        variable["name"] for variable in shipped["templating"]["list"]
    }


def test_a_probe_without_calibration_is_told_as_such() -> None:
    frontend, _ = make_frontend(alerting(threshold=2.5))
    (alert,) = alerts_of(flag_event(finish(frontend, "x" * 300, 1.0, 3.0), ORIGIN, "1"), Sites())
    assert "not calibrated" in alert["annotations"]["description"]
    assert len(alert["labels"]["request_id"]) == 200


def test_a_receiver_that_fails_for_a_while_gets_it_once_it_recovers(
    push: Push, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(lambda n: [503, 429, 500][n] if n < 3 else 204) as inbox:
        pushing = push(webhook_url=inbox.url)
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
        pushing.wait(1, 0, 0)
        assert len({got.body for got in inbox.posts}) == 1
        assert len(inbox.posts) == 4
    said = [record.levelno for record in caplog.records]
    assert said == [logging.WARNING, logging.WARNING]
    assert "HTTP 503" in caplog.records[0].message


def test_a_receiver_that_was_down_gets_what_waited(push: Push) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    pushing = push(webhook_url=f"http://127.0.0.1:{port}")
    for i in range(3):
        finish(pushing.frontend, f"cmpl-{i}", 1.0, 3.0)
    time.sleep(0.1)
    assert pushing.counts() == (0, 0, 0)
    with receiver(port=port) as inbox:
        pushing.wait(3, 0, 0)
        assert [json.loads(got.body)["request_id"] for got in inbox.posts] == ["cmpl-0", "cmpl-1", "cmpl-2"]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(push: Push, status: int) -> None:
    with receiver() as elsewhere:
        with receiver(lambda n: status, {"Location": f"{elsewhere.url}/internal"}) as inbox:
            pushing = push(webhook_url=inbox.url, webhook_secret=SECRET)
            finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
            pushing.wait(0, 0, 1)
            assert len(inbox.posts) == 1
        assert elsewhere.posts == []


def test_what_cannot_be_delivered_in_its_lifetime_is_given_up(push: Push) -> None:
    with receiver(lambda n: 503) as inbox:
        pushing = push(Patience(0.3, 0.02, 0.04, lifetime=0.2), webhook_url=inbox.url)
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
        pushing.wait(0, 0, 1)
        assert 2 <= len(inbox.posts) <= 20


def drip(connection: socket.socket) -> None:
    """One byte of a header at a time, for ever: no timeout between bytes ends this."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def hang(connection: socket.socket) -> None:
    connection.recv(65536)
    time.sleep(30)


def flood(connection: socket.socket) -> None:
    """A reply without end behind a polite head."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def long_line(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000 + b"\r\n\r\n")


def nonsense(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"\x00\xff\x00 220 smtp\r\n")


def reset(connection: socket.socket) -> None:
    connection.close()


def continue_for_ever(connection: socket.socket) -> None:
    connection.recv(65536)
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


HOSTILE = [drip, hang, flood, long_line, nonsense, reset, continue_for_ever]


@pytest.mark.parametrize("behave", HOSTILE, ids=lambda behave: behave.__name__)
def test_a_hostile_receiver_costs_an_attempt_and_no_more(behave: Callable[[socket.socket], None]) -> None:
    with raw_receiver(behave) as url:
        started = time.monotonic()
        if behave is flood:
            assert post(Letter(url, b"{}", {}), 0.3) == 500
        else:
            with pytest.raises(ReceiverError) as caught:
                post(Letter(url, b"{}", {}), 0.3)
            assert len(str(caught.value)) < 300
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("behave", [drip, hang, nonsense], ids=lambda behave: behave.__name__)
def test_serving_neither_waits_nor_fails_and_every_loss_is_counted(
    behave: Callable[[socket.socket], None],
) -> None:
    with raw_receiver(behave) as url:
        frontend, registry = flagging()
        postman = Postman(
            "webhook", lambda r, e: flag_event(r, ORIGIN, e), lambda e: Letter(url, b"", {}), QUICK, 5
        )
        frontend.listeners.append(postman.listener(frontend))
        postman.start()
        started = time.monotonic()
        for i in range(50):
            finish(frontend, f"cmpl-{i}", 1.0, 3.0)
        assert time.monotonic() - started < 2
        assert value(registry, "probewatch_alerts_total", probe="lie", action="alert") == 50
        started = time.monotonic()
        postman.close(0.2)
        assert time.monotonic() - started < 1
        outcomes = [
            value(registry, "probewatch_evidence_total", sink="webhook", outcome=outcome) or 0
            for outcome in ("delivered", "dropped", "failed")
        ]
        assert outcomes[0] == 0
        assert outcomes[1] >= 43
        assert sum(outcomes) == 50, "each flag is counted, and once"
        time.sleep(0.4)  # the attempt that was under way comes to its end, and counts no more
        assert value(registry, "probewatch_evidence_total", sink="webhook", outcome="failed") == outcomes[2]
    postman.close()
    finish(frontend, "late", 1.0, 3.0)
    assert value(registry, "probewatch_evidence_total", sink="webhook", outcome="dropped") == outcomes[1] + 1


def test_at_the_end_what_waits_is_delivered(push: Push) -> None:
    with receiver() as inbox:
        pushing = push(webhook_url=inbox.url)
        for i in range(20):
            finish(pushing.frontend, f"cmpl-{i}", 1.0, 3.0)
        pushing.close()
        assert pushing.counts() == (20, 0, 0)
        assert len(inbox.posts) == 20


def test_the_end_does_not_wait_for_a_pause(push: Push) -> None:
    with receiver(lambda n: 503) as inbox:
        pushing = push(Patience(first_pause=60, longest_pause=60), webhook_url=inbox.url)
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
        inbox.wait(1)
        started = time.monotonic()
        pushing.close()
        assert time.monotonic() - started < 2
        assert pushing.counts() == (0, 0, 1)


def test_a_strange_record_costs_no_other(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as inbox:
        pushing = push(webhook_url=inbox.url)
        (postman,) = pushing.postmen
        tell = postman._tell
        monkeypatch.setattr(
            postman, "_tell", lambda record, engine: tell(record, engine) if record.choice else 1 / 0
        )
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0)
        finish(pushing.frontend, "cmpl-1", 1.0, 3.0, choice=1)
        pushing.wait(1, 0, 1)
        assert json.loads(inbox.posts[0].body)["choice"] == 1


def test_a_hostile_id_stays_data(push: Push) -> None:
    with receiver() as inbox:
        pushing = push(webhook_url=inbox.url, alertmanager_url=inbox.url)
        for response_id in ("a\r\nX-Evil: 1", "lone \ud800 surrogate", "\0", "../../x?y#z", "é" * 3000):
            finish(pushing.frontend, response_id, 1.0, 3.0)
        pushing.wait(5, 0, 0)
        pushing.wait(5, 0, 0, sink="alertmanager")
        assert all("X-Evil" not in got.headers for got in inbox.posts)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed, for localhost."""
    return self_signed(tmp_path_factory.mktemp("tls") / "both.pem")


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with receiver(certificate=certificate) as inbox:
        with pytest.raises(ReceiverError, match="CERTIFICATE_VERIFY_FAILED"):
            post(Letter(inbox.url, b"{}", {}), 2.0)
        assert inbox.posts == []


def test_a_known_certificate_is_accepted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    with receiver(certificate=certificate) as inbox:
        assert post(Letter(f"{inbox.url}/a", b"{}", {}), 2.0) == 200
        assert inbox.posts[0].body == b"{}"
        wrong_name = inbox.url.replace("localhost", "127.0.0.1")
        with pytest.raises(ReceiverError, match="CERTIFICATE_VERIFY_FAILED"):
            post(Letter(wrong_name, b"{}", {}), 2.0)


def test_a_handshake_that_never_ends_is_cut() -> None:
    with raw_receiver(hang) as url:
        started = time.monotonic()
        with pytest.raises(ReceiverError):
            post(Letter(url.replace("http:", "https:"), b"{}", {}), 0.3)
        assert time.monotonic() - started < 2


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as inbox, receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert post(Letter(inbox.url, b"{}", {}), 2.0) == 200
        assert (len(inbox.posts), len(proxy.posts)) == (1, 0)


def test_pauses_double_within_bounds_and_spread() -> None:
    patience = Patience(first_pause=0.5, longest_pause=30)
    assert [patience.pause(n, 1.0) for n in (1, 2, 3, 10, 10_000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert patience.pause(3, 0.0) == 1.0


def test_links_lead_where_people_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-7")
    nothing = Settings()
    assert public_url(nothing, None, 8000, False) == "http://gpu-7:8000"
    assert public_url(nothing, "0.0.0.0", 443, True) == "https://gpu-7:443"
    assert public_url(nothing, "::1", 8000, False) == "http://[::1]:8000"
    assert (
        public_url(Settings(public_url="https://llm.example.org/a/"), None, 1, False)
        == "https://llm.example.org/a"
    )


def test_nothing_is_pushed_unless_asked_for() -> None:
    before = threading.active_count()
    assert make_postmen(Settings(), ORIGIN, TEXT) == []
    assert threading.active_count() == before
