"""The client's errors and the table of `probewatch watch`, against a fake server; no vLLM."""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from monitor import watch
from monitor.client import Server, ServerAway, UnknownRequest, base_url, is_loopback
from monitor.demo.fake import FakeServer, Planted
from monitor.errors import ConfigurationError, ServerError


def say(fake: FakeServer, *answers: Planted) -> None:
    """Has the fake answer that many requests."""
    planted = itertools.chain(answers)
    fake.respond = lambda messages: next(planted)
    for _ in answers:
        body = json.dumps(
            {"model": "m", "messages": [{"role": "user", "content": "a secret question"}]}
        ).encode()
        urllib.request.urlopen(urllib.request.Request(f"{fake.url}/v1/chat/completions", body)).read()


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    watch.add_arguments(parser)
    return parser.parse_args(options)


# --- the client -------------------------------------------------------------------------------------------


def test_the_routes_of_a_server() -> None:
    with FakeServer() as fake:
        say(fake, Planted("one", 0.1), Planted("two", 2.0))
        server = Server(fake.url + "/v1/")
        assert server.status()["attached"]
        assert [line["id"] for line in server.requests(10)] == ["chatcmpl-1", "chatcmpl-0"]
        assert [line["id"] for line in server.requests(1)] == ["chatcmpl-1"]
        assert server.request("chatcmpl-1")["probes"]["deception"]["flagged"]
        assert "probewatch_requests_total" in server.metrics()
        assert server.models()[0]["id"] == "concealed-ledger"
        assert server.answers("/health")
        assert not server.answers("/nowhere")
        with pytest.raises(UnknownRequest):
            server.request("chatcmpl-9")


def fault(server: Server) -> str:
    with pytest.raises(ServerError) as caught:
        _ = server.status(), server.requests()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nobody_there() -> None:
    with FakeServer() as fake:
        url = fake.url
    message = fault(Server(url))
    assert url in message
    assert "connection refused" in message
    assert "is the server up" in message


def test_a_server_without_the_plugin_gets_the_command_that_starts_it_with() -> None:
    with FakeServer(plugin=False) as fake:
        message = fault(Server(fake.url))
    assert f"probewatch serve /models/ledger --probe FILE --port {fake.port}" in message
    assert "vLLM 0.32.0 without probewatch" in message


def test_something_that_is_no_vllm_at_all() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        assert "no vLLM server" in fault(Server(f"http://127.0.0.1:{other.server_address[1]}"))
        other.shutdown()


def test_the_two_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with FakeServer(admin_key="admin", api_key="api") as fake:
        assert "--api-key or set VLLM_API_KEY" in fault(Server(fake.url))
        assert "--admin-key or PROBEWATCH_ADMIN_KEY" in fault(Server(fake.url, "api"))
        assert Server(fake.url, "api", "admin").requests() == []
        monkeypatch.setenv("VLLM_API_KEY", "api")
        monkeypatch.setenv("PROBEWATCH_ADMIN_KEY", "admin")
        assert Server(fake.url).requests() == []


def test_a_broken_server_may_come_back() -> None:
    with FakeServer(broken=503) as fake, pytest.raises(ServerAway, match="answered 503: broken on purpose"):
        Server(fake.url).status()


def test_the_address() -> None:
    assert base_url("http://h:1/v1/") == "http://h:1"
    assert base_url("https://h/prefix") == "https://h/prefix"
    for bad in ("localhost:8000", "h", "ftp://h", "http://", "http://h:port", ""):
        with pytest.raises(ConfigurationError, match="give it like http://"):
            base_url(bad)
    assert is_loopback("http://localhost:1")
    assert is_loopback("http://[::1]:1")
    assert not is_loopback("http://example.org")


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with FakeServer() as fake:
        assert Server(fake.url).status()["attached"]


# --- the table --------------------------------------------------------------------------------------------


def test_once_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer() as fake:
        say(fake, Planted("a secret answer", 0.1), Planted("b", 2.0), Planted("c", None, lost_tokens=3))
        assert watch.main(arguments("--once", "--url", fake.url)) == 0
    shown = capsys.readouterr().out
    assert "concealed-ledger on vLLM 0.32.0: attached, layers 3 tapped" in shown
    assert "deception (alert, threshold +0.5, coverage 100%)" in shown
    assert "honesty (observe, no threshold, no tokens yet)" in shown
    rows = [line for line in shown.splitlines() if "chatcmpl-" in line]
    assert ["UNSCORED" in rows[0], "FLAGGED" in rows[1], " ok " in rows[2]] == [True, True, True]
    assert "+2 > +0.5" in rows[1]
    assert "20+11" in rows[1]
    assert "50%" in rows[0]
    assert "secret" not in shown
    assert "\x1b" not in shown


def test_an_unreachable_server_ends_it() -> None:
    with FakeServer() as fake:
        url = fake.url
    with pytest.raises(ServerError):
        watch.main(arguments("--url", url))


@pytest.mark.parametrize(
    "options", [["--interval", "0"], ["--interval", "nan"], ["--limit", "0"], ["--limit", "1001"]]
)
def test_wrong_use(options: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=options[0]):
        watch.main(arguments(*options))


def test_it_survives_a_server_that_goes_and_comes_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe: one line a request, none twice, and what happened between."""
    with FakeServer() as fake:

        def first() -> None:
            say(fake, Planted("b", 2.0))

        def away() -> None:
            fake.broken = 503

        def back() -> None:
            fake.broken = 0
            say(fake, Planted("c", 0.2))

        def end() -> None:
            raise KeyboardInterrupt

        steps = iter([first, away, away, back, end])
        clock = SimpleNamespace(sleep=lambda seconds: next(steps)(), time=time.time)
        monkeypatch.setattr("monitor.watch.time", clock)
        say(fake, Planted("a", 0.1))
        assert watch.main(arguments("--url", fake.url)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown if "chatcmpl" in line] == [f"chatcmpl-{n}" for n in range(3)]
    assert shown[2].startswith("no answer since")
    assert shown[3].startswith("the server is back")


def test_headlines_in_cells() -> None:
    line = {
        "id": "chatcmpl-1",
        "choice": 2,
        "finished_at": 0.0,
        "finish_reason": "stop",
        "verdict": "ok",
        "prompt_tokens": 10,
        "fed_tokens": 10,
        "coverage": {"prompt": 0.999, "generated": None},
        "probes": {
            "deception": {"score": -1.25, "threshold": None, "flagged": False},
            "audited": {"score": 3.0, "threshold": 1.0, "flagged": True},
        },
    }
    _, verdict, score, missing, crossed, tokens, coverage, end, request = watch.cells(
        line, ["deception", "gone"]
    )
    assert (verdict, score, missing, crossed) == ("ok", "-1.25", "-", "audited")
    assert (tokens, coverage, end, request) == ("10+1", "99%", "stop", "chatcmpl-1 [2]")


def test_an_id_that_a_client_chose_cannot_drive_the_terminal() -> None:
    line = {
        "id": "chatcmpl-\x1b[2J\x9b1m\n",
        "choice": 0,
        "finished_at": 0.0,
        "verdict": "flagged",
        "finish_reason": "stop",
        "probes": {},
        "prompt_tokens": 1,
        "fed_tokens": 2,
        "coverage": {"prompt": 1.0, "generated": 1.0},
    }
    assert watch.cells(line, [])[-1] == r"chatcmpl-\x1b[2J\x9b1m\n"
