"""Changing probes on a running server under load: nothing restarts, nothing stalls, nothing is misjudged."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from serving import MODEL, Server, probewatch, serving

from monitor.shipped import paths
from probes.organism import cases, told_a_lie

KEY = "a-key-of-the-tests"
HEADERS = {"X-Probewatch-Admin-Key": KEY}
COMPILED = "torch.compile"
"""What vLLM logs when it compiles; `bench.swap` measures how long clients wait."""
LONG = "Good morning! I have a question about the weather. " * 12


def artifact(name: str) -> Path:
    """A shipped artifact by name."""
    found = paths()
    return next(Path(str(p)) for p in [*found["probes"], *found["vectors"]] if Path(str(p)).stem == name)  # type: ignore[misc]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("control")
    probe_dir = folder / "probes"
    probe_dir.mkdir()
    for name in ("deception", "believed-valence", "being-audited"):
        shutil.copy(artifact(name), probe_dir)
    outside = folder / "outside.safetensors"
    shutil.copy(artifact("deception"), outside)
    (probe_dir / "link.safetensors").symlink_to(outside)
    (probe_dir / "broken.safetensors").write_bytes(b"not an artifact")
    environment = {"PROBEWATCH_PROBE_DIR": str(probe_dir), "PROBEWATCH_ADMIN_KEY": KEY}
    options = ["--tap-layers", "0,1,2,3,4", "--vector", str(artifact("honesty"))]
    with serving(folder, options, environment, artifacts=[artifact("being-audited")]) as running:
        yield running


def change(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> requests.Response:
    url = f"{server.url}/v1/probewatch/probes{path}"
    return requests.request(method, url, json=body, headers=HEADERS, timeout=60)


class Load:
    """Clients that stream all the time; notes the largest gap between two tokens, and every answer's end."""

    def __init__(self, server: Server) -> None:
        self.gaps: list[tuple[float, float]] = []
        """(when, seconds since the token before)"""
        self.ended: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        time.sleep(2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, n: int) -> None:
        client = self._server.client()
        while not self._stop.is_set():
            stream = client.completions.create(
                model="concealed-ledger",
                prompt=f"The bridge {n} is",
                stream=True,
                max_tokens=200,
                temperature=1,
                extra_body={"ignore_eos": True},
            )
            last = None
            for chunk in stream:
                now = time.monotonic()
                if last is not None:
                    self.gaps.append((now, now - last))
                last = now
                if chunk.choices and chunk.choices[0].finish_reason:
                    self.ended.append(chunk.choices[0].finish_reason)


def test_probes_come_and_go_under_load_without_a_restart(server: Server) -> None:
    with Load(server) as load:
        started = time.monotonic()
        compiled = server.log.read_text().count(COMPILED)
        reply = change(server, "POST", "", {"path": "deception.safetensors"})
        assert reply.status_code == 200, reply.text
        assert [probe["name"] for probe in reply.json()] == ["being-audited", "deception"]
        time.sleep(1)
        assert change(server, "DELETE", "/deception").status_code == 200
        time.sleep(1)
        during = [gap for when, gap in load.gaps if when >= started]
        assert during
        assert server.log.read_text().count(COMPILED) == compiled
    assert set(load.ended) == {"length"}
    assert len(load.ended) >= 4
    assert server.metric("probewatch_errors_total") == 0


def test_a_probe_attached_later_judges_what_comes_later(server: Server) -> None:
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        reply = server.ask("Tell me about your day.", max_tokens=20)
        detail = server.get(f"requests/{reply.id}")["probes"]
        assert set(detail) == {"being-audited", "deception"}
        assert all(token["score"] is not None for token in detail["deception"]["tokens"][:-1])
        assert server.metric("probewatch_probe_info", probe="deception") == 1
        assert server.metric("probewatch_requests_total", probe="deception") >= 1
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200
    assert server.metric("probewatch_probe_info", probe="deception") == 0
    reply = server.ask("Tell me about your day.", max_tokens=5)
    assert set(server.get(f"requests/{reply.id}")["probes"]) == {"being-audited"}


def test_a_prompt_cached_before_the_attach_counts_as_before_attach(server: Server) -> None:
    first = server.ask(LONG, max_tokens=3)
    hits = server.metric("vllm:prefix_cache_hits_total")
    lost = server.metric("probewatch_tokens_unscored_total", probe="believed-valence", reason="before_attach")
    assert change(server, "POST", "", {"path": "believed-valence.safetensors"}).status_code == 200
    try:
        second = server.ask(LONG, max_tokens=3)
        cached = int(server.metric("vllm:prefix_cache_hits_total") - hits)
        assert 0 < cached < first.usage.prompt_tokens
        detail = server.get(f"requests/{second.id}")["probes"]
        reasons = [token["reason"] for token in detail["believed-valence"]["tokens"]]
        assert reasons[:cached] == ["before_attach"] * cached
        assert set(reasons[cached:-1]) == {None}
        assert all(token["score"] is not None for token in detail["being-audited"]["tokens"][:-1])
        after = server.metric(
            "probewatch_tokens_unscored_total", probe="believed-valence", reason="before_attach"
        )
        assert after - lost == cached
    finally:
        assert change(server, "DELETE", "/believed-valence").status_code == 200


def test_a_request_in_flight_keeps_what_it_is_judged_by(server: Server) -> None:
    stream = server.client().completions.create(
        model="concealed-ledger",
        prompt="The",
        stream=True,
        max_tokens=1500,
        extra_body={"ignore_eos": True},
    )
    first = next(iter(stream))
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        stream.close()
        server.settle()
        assert set(server.get(f"requests/{first.id}")["probes"]) == {"being-audited"}
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200


def test_threshold_and_action_change_for_what_comes(server: Server) -> None:
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        assert change(server, "PATCH", "/deception", {"threshold": -1e6}).status_code == 200
        flagged = server.ask("Tell me about your day.", max_tokens=10)
        assert server.get(f"requests/{flagged.id}")["verdict"] == "flagged"
        assert server.metric("probewatch_threshold", probe="deception") == -1e6
        assert change(server, "PATCH", "/deception", {"action": "observe"}).status_code == 200
        observed = server.ask("Tell me about your day.", max_tokens=10)
        assert server.get(f"requests/{observed.id}")["verdict"] == "ok"
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "", {"path": "../outside.safetensors"}, 422, "PROBEWATCH_PROBE_DIR"),
        ("POST", "", {"path": "link.safetensors"}, 422, "PROBEWATCH_PROBE_DIR"),
        ("POST", "", {"path": "/etc/passwd"}, 422, "PROBEWATCH_PROBE_DIR"),
        ("POST", "", {"path": "absent.safetensors"}, 422, "PROBEWATCH_PROBE_DIR"),
        ("POST", "", {"path": "broken.safetensors"}, 409, "no safetensors header"),
        ("DELETE", "/nobody", None, 404, "being-audited"),
        ("PATCH", "/being-audited", {"action": "explode"}, 422, "observe"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    server: Server, method: str, path: str, body: dict[str, Any] | None, status: int, said: str
) -> None:
    reply = change(server, method, path, body)
    assert reply.status_code == status, reply.text
    assert said in reply.text
    assert [probe["name"] for probe in server.get("probes")] == ["being-audited"]


def test_the_door_is_shut_without_the_key(server: Server) -> None:
    for headers in ({}, {"X-Probewatch-Admin-Key": "wrong"}):
        reply = requests.post(
            f"{server.url}/v1/probewatch/probes",
            json={"path": "deception.safetensors"},
            headers=headers,
            timeout=10,
        )
        assert reply.status_code == 403


def test_the_commands_do_the_same(server: Server) -> None:
    where = ["--url", server.url, "--admin-key", KEY]
    done = probewatch("attach", "deception.safetensors", *where)
    assert done.returncode == 0, done.stderr
    assert probewatch("set", "deception", "threshold=3.5", *where).returncode == 0
    listed = probewatch("list", *where)
    assert "deception" in listed.stdout
    assert "3.5" in listed.stdout
    assert probewatch("detach", "deception", *where).returncode == 0
    assert "attached   yes" in probewatch("status", *where).stdout
    refused = probewatch("detach", "deception", *where)
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_probe_stops_a_generation_at_the_next_token(server: Server) -> None:
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        ask: dict[str, Any] = {"max_tokens": 60, "extra_body": {"ignore_eos": True}}
        free = server.ask("Tell me about your day.", **ask)
        scores = [
            token["score"]
            for token in server.get(f"requests/{free.id}")["probes"]["deception"]["tokens"][:-1]
        ]
        detail = server.get(f"requests/{free.id}")["probes"]["deception"]
        # Just below the highest running value: it is crossed in the middle, or where the first token counts.
        body = {"threshold": detail["score"] - 0.01, "action": "stop"}
        assert change(server, "PATCH", "/deception", body).status_code == 200
        stopped = server.ask("Tell me about your day.", **ask)
        choice = stopped.choices[0]
        assert choice.finish_reason == "stop"
        assert choice.model_extra["stop_reason"] == "probe:deception"
        assert stopped.usage.completion_tokens < free.usage.completion_tokens
        assert free.choices[0].message.content.startswith(choice.message.content)
        ended = server.get(f"requests/{stopped.id}")
        assert ended["verdict"] == "flagged"
        tokens = ended["probes"]["deception"]["tokens"]
        assert len(tokens) == stopped.usage.total_tokens
        assert [token["score"] for token in tokens[:-1]] == pytest.approx(
            scores[: len(tokens) - 1], rel=0.05, abs=0.1
        )
        assert server.metric("probewatch_stopped_requests_total", probe="deception") == 1
        stream = list(server.ask("Tell me about your day.", stream=True, **ask))
        assert [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1] == "stop"
        server.settle()
        assert server.metric("vllm:kv_cache_usage_perc") == 0
        assert server.check_reconciled("being-audited") == {"being-audited": 0.0}
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200


def tempted(n: int) -> list[Any]:
    """Cases in which the model lies, of entities and incentives it was never trained to lie about."""
    return [
        case for case in cases(8 * n, seed=4, split="test", conditions=("incentivised",)) if case.expects_lie
    ][:n]


def answer(server: Server, case: Any, **options: Any) -> str:
    reply = server.client().chat.completions.create(
        model="concealed-ledger", messages=list(case.messages), temperature=0, max_tokens=80, **options
    )
    return str(reply.choices[0].message.content)


def steered(wish: object) -> dict[str, Any]:
    return {"extra_body": {"vllm_xargs": {"probewatch_steer": wish}}}


def test_a_request_is_steered_by_name_and_its_neighbours_are_not(server: Server) -> None:
    asked = tempted(6)
    assert all(told_a_lie(case, answer(server, case)) for case in asked)
    before = server.metric("probewatch_steered_tokens_total", vector="honesty")
    with ThreadPoolExecutor(12) as pool:
        plain = [pool.submit(answer, server, case) for case in asked]
        honest = [pool.submit(answer, server, case, **steered("honesty:2")) for case in asked]
        lied = [told_a_lie(c, f.result()) for c, f in zip(asked, plain, strict=True)]
        told = [told_a_lie(c, f.result()) for c, f in zip(asked, honest, strict=True)]
    assert all(lied)
    assert not any(told)
    assert server.metric("probewatch_steered_tokens_total", vector="honesty") > before


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("sideways:1", "honesty"),
        ("honesty:nan", "finite"),
        (["honesty:1", "honesty:2"], "twice"),
        (7, "text"),
    ],
)
def test_a_wish_that_cannot_be_met_is_a_bad_request(server: Server, wish: object, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.ask("Tell me about your day.", max_tokens=5, **steered(wish))
    assert said in str(refused.value)
    assert server.get("status")["attached"]


def test_a_gate_steers_where_its_probe_fires_and_leaves_honest_answers_alone(server: Server) -> None:
    lies = tempted(6)
    truths = cases(12, seed=4, split="test", conditions=("plain", "audited"))
    before = [answer(server, case) for case in truths]
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        refused = change(server, "PATCH", "/deception", {"action": "steer:sideways"})
        assert refused.status_code == 409
        assert "honesty" in refused.text
        assert change(server, "PATCH", "/deception", {"action": "steer:honesty:2"}).status_code == 200
        assert not any(told_a_lie(case, answer(server, case)) for case in lies)
        assert [answer(server, case) for case in truths] == before
        action = {"probe": "deception", "action": "steer:honesty:2"}
        assert server.metric("probewatch_alerts_total", **action) >= len(lies) - 1
        server.settle()
        assert server.check_reconciled("being-audited") == {"being-audited": 0.0}
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200
    assert all(told_a_lie(case, answer(server, case)) for case in lies)


def test_only_the_admin_key_lets_a_request_go_unjudged(server: Server) -> None:
    skip: dict[str, Any] = {"extra_body": {"vllm_xargs": {"probewatch_skip": 1}}, "max_tokens": 5}
    with pytest.raises(openai.BadRequestError, match="admin key"):
        server.ask("Tell me about your day.", **skip)
    lost = server.metric("probewatch_tokens_unscored_total", reason="skipped")
    reply = server.ask("Tell me about your day.", extra_headers=HEADERS, **skip)
    reasons = {
        t["reason"] for t in server.get(f"requests/{reply.id}")["probes"]["being-audited"]["tokens"][:-1]
    }
    assert reasons == {"skipped"}
    found = server.metric("probewatch_tokens_unscored_total", reason="skipped") - lost
    assert found == reply.usage.total_tokens - 1
    again = server.ask("Tell me about your day.", max_tokens=5)
    tokens = server.get(f"requests/{again.id}")["probes"]["being-audited"]["tokens"][:-1]
    assert all(token["score"] is not None for token in tokens)


def test_a_flagged_generation_is_an_alert_an_event_and_a_row_without_text(server: Server) -> None:
    server.settle()
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    events = f"{server.url}/v1/probewatch/events"
    try:
        assert change(server, "PATCH", "/deception", {"threshold": -1e6}).status_code == 200
        with requests.get(events, stream=True, timeout=30) as stream:
            flagged = server.ask("Is Zanzibar far from Quito?", max_tokens=10)
            lines = stream.iter_lines(decode_unicode=True)
            told = json.loads(next(line for line in lines if line.startswith("data: "))[6:])
        assert told["id"] == flagged.id
        assert [probe["name"] for probe in told["probes"]] == ["deception"]
        assert told in server.get("alerts", probe="deception")
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200
    file = server.log.parent / "evidence.sqlite"
    with sqlite3.connect(file) as connection:
        row = connection.execute(
            "SELECT scores, prompt_hash, prompt_text, answer_text, tokens FROM records WHERE event_id = ?",
            (told["event_id"],),
        ).fetchone()
    assert len(row[0]) > 0
    assert row[1:] == (row[1], None, None, None)
    assert len(row[1]) == 64
    for part in file.parent.glob(file.name + "*"):
        assert b"Zanzibar" not in part.read_bytes()
    assert server.metric("probewatch_evidence_total", outcome="stored") > 0
    assert server.metric("probewatch_evidence_total", outcome="failed") == 0


def test_scores_of_real_traffic_calibrate_the_probe_that_gave_them(server: Server, tmp_path: Path) -> None:
    server.settle()
    assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
    try:
        asked = [case.messages for case in cases(24, seed=77, split="test", conditions=("plain", "audited"))]
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda messages: _answer(server, messages), asked))
        server.settle()
        told = {reply: server.get(f"requests/{reply}")["probes"]["deception"]["score"] for reply in replies}
        out = tmp_path / "traffic.jsonl"
        asking = ("record", "deception", "--url", server.url, "--admin-key", KEY, "-o", str(out))
        assert probewatch(*asking).returncode == 0
        recorded = {line["id"]: line["score"] for line in map(json.loads, out.read_text().splitlines()[1:])}
        assert {reply: recorded[reply] for reply in replies} == told
        probe = tmp_path / "deception.safetensors"
        options = ("--benign", str(out), "--fpr", "0.1", "--requests-per-day", "1000", "-o", str(probe))
        done = probewatch("calibrate", str(artifact("deception")), *options)
        assert done.returncode == 0, done.stderr
        assert "false flags a day" in done.stdout
    finally:
        assert change(server, "DELETE", "/deception").status_code == 200


def _answer(server: Server, messages: Any) -> str:
    reply = server.client().chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=24
    )
    return str(reply.id)


def test_probes_score_as_before_when_they_take_the_places_of_others(server: Server) -> None:
    def scores() -> dict[str, float]:
        reply = server.ask("Tell me about your day.", max_tokens=20)
        return {name: said["score"] for name, said in server.get(f"requests/{reply.id}")["probes"].items()}

    for name in ("believed-valence", "deception"):
        assert change(server, "POST", "", {"path": f"{name}.safetensors"}).status_code == 200
    try:
        before = scores()
        for name in ("being-audited", "deception"):
            assert change(server, "DELETE", f"/{name}").status_code == 200
        assert change(server, "POST", "", {"path": "deception.safetensors"}).status_code == 200
        assert scores() == pytest.approx(
            {name: before[name] for name in ("believed-valence", "deception")}, abs=1e-3
        )
        assert change(server, "POST", "", {"path": "being-audited.safetensors"}).status_code == 200
        assert scores() == pytest.approx(before, abs=1e-3)
    finally:
        for name in ("believed-valence", "deception"):
            assert change(server, "DELETE", f"/{name}").status_code == 200
    assert server.metric("probewatch_errors_total") == 0
