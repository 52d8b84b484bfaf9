"""From a flagged generation to the pager: a real server under the demo's traffic, a real Prometheus with our rules, a
real Alertmanager, and receivers that keep what comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from monitor_receiver import Inbox, receiver
from serving import MODEL, Server, free_port, serving
from watching import (
    Alertmanager,
    Prometheus,
    alertmanager,
    has_data,
    panel_queries,
    prometheus,
    unmonitored_server,
    until,
)

from deploy.prometheus.generate import alerts as rules
from grafana.__main__ import texts
from monitor.drift import MINIMUM
from monitor.receivers import ALERT_NAME, SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from monitor.shipped import paths
from probes.organism import Case, cases
from probes.shipping.traffic import LEDGER

SECRET = "of-the-tests"
KEY = {"X-Probewatch-Admin-Key": SECRET}
STOPPING = "being-audited"
DRIFTING = "believed-valence"
DRIFT = ("probewatch_score_drift", "probewatch_score_drift_ks")
LIES = ("incentivised", "plain", "incentivised", "audited")


@dataclass(frozen=True)
class World:
    """Everything that runs."""

    server: Server
    prometheus: Prometheus
    alertmanager: Alertmanager
    pager: Inbox
    """What Alertmanager sends."""
    hook: Inbox
    """What the server pushes itself."""
    unmonitored: str
    """HOST:PORT of a vLLM without the plugin."""
    gone: str
    """HOST:PORT that nobody listens on."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("watched")) as found:
        yield found


@contextmanager
def running(folder: Path) -> Iterator[World]:
    """All of it, until the block ends."""
    with (
        receiver() as pager,
        receiver() as hook,
        unmonitored_server() as unmonitored,
        alertmanager(folder / "alertmanager", pager.url) as paging,
    ):
        environment = {
            "PROBEWATCH_WEBHOOK_URL": f"{hook.url}/flags",
            "PROBEWATCH_WEBHOOK_SECRET": SECRET,
            "PROBEWATCH_ALERTMANAGER_URL": paging.url,
            "PROBEWATCH_ADMIN_KEY": SECRET,
            "PROBEWATCH_PROBE_DIR": str(Path(paths()["probes"][0]).parent),  # type: ignore[index]
        }
        vectors = [part for path in paths()["vectors"] for part in ("--vector", str(path))]  # type: ignore[attr-defined]
        with serving(folder, vectors, environment) as server:
            change = {"action": "stop"}
            url = f"{server.url}/v1/probewatch/probes/{STOPPING}"
            assert requests.patch(url, json=change, headers=KEY, timeout=60).status_code == 200
            gone = f"127.0.0.1:{free_port()}"
            targets = [server.url.removeprefix("http://"), unmonitored, gone]
            with prometheus(folder / "prometheus", targets, paging.url) as watching:
                yield World(server, watching, paging, pager, hook, unmonitored, gone)


def talk(server: Server, asked: Sequence[Case], tokens: int = 48, **options: Any) -> None:
    """Greedy answers to all of them, eight at a time."""
    client = server.client()

    def ask(case: Case) -> None:
        messages: Any = list(case.messages)
        client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_completion_tokens=tokens, **options
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, asked))


@pytest.fixture(scope="module")
def flagged(world: World) -> World:
    """After traffic in which the model lies, is audited, and is steered."""
    server = world.server
    until(lambda: world.prometheus.query("probewatch_build_info"), 20, "the first scrape")
    talk(server, cases(64, seed=7, split="test", conditions=LIES))
    steer = {"vllm_xargs": {"probewatch_steer": "honesty:2"}}
    talk(server, cases(8, seed=8, split="test", conditions=LIES), extra_body=steer)
    server.settle()
    return world


def alerts_total(world: World) -> int:
    """Flags of all acting probes, each counted by itself."""
    return int(world.server.metric("probewatch_alerts_total"))


def test_the_traffic_provokes_what_the_dashboards_show(flagged: World) -> None:
    server = flagged.server
    assert server.metric("probewatch_alerts_total", probe="deception") >= 5
    assert server.metric("probewatch_stopped_requests_total", probe=STOPPING) >= 1
    assert server.metric("probewatch_steered_tokens_total", vector="honesty") > 0


@pytest.mark.parametrize("name", texts())
def test_every_query_of_the_dashboards_finds_data(flagged: World, name: str) -> None:
    board = json.loads(texts()[name])

    empty = [
        f"{title}: {query}"
        for title, query in panel_queries(board)
        if not has_data(flagged.prometheus.query(query))
    ]
    assert empty == []


def test_prometheus_evaluates_every_rule_without_an_error(flagged: World) -> None:
    found = flagged.prometheus.rules()
    loaded = {rule["name"] for rule in found if rule["type"] == "alerting"}
    assert loaded == {rule.name for rule in rules()}
    until(
        lambda: all(rule["health"] == "ok" for rule in flagged.prometheus.rules()),
        10,
        "every rule is healthy",
    )
    recorded = {rule["name"] for rule in found if rule["type"] == "recording"}
    assert {name for name in recorded if not flagged.prometheus.query(name)} == set()


FIRING = {"ProbewatchWatchdog", "ProbewatchCriticalFlag", "ProbewatchFlagBurnFast", "ProbewatchFlagBurnSlow"}
WAITING = {"ProbewatchPluginNotLoaded"}
"""True already, and not for long enough to fire."""


def test_the_right_alerts_fire_and_no_others(flagged: World) -> None:
    until(
        lambda: {name for name, state in flagged.prometheus.states().items() if state == "firing"} >= FIRING,
        20,
        "alerts fire",
    )
    states = flagged.prometheus.states()
    assert {name for name, state in states.items() if state == "firing"} == FIRING
    assert {name for name, state in states.items() if state == "pending"} == WAITING
    (series,) = flagged.prometheus.query('ALERTS{alertname="ProbewatchPluginNotLoaded"}')
    assert series["metric"]["instance"] == flagged.unmonitored


def paged(world: World) -> list[dict[str, Any]]:
    """Every alert that Alertmanager has sent to the pager."""
    return [alert for post in world.pager.posts for alert in json.loads(post.body)["alerts"]]


def test_a_rule_pages_with_links(flagged: World) -> None:
    def found() -> list[dict[str, Any]]:
        return [alert for alert in paged(flagged) if alert["labels"]["alertname"] == "ProbewatchCriticalFlag"]

    alert = until(found, 20, "the critical flag is paged")[0]
    notes = alert["annotations"]
    assert alert["labels"]["probe"] == STOPPING
    assert notes["evidence_url"].startswith(f"{flagged.server.url}/probewatch/ui")
    assert notes["runbook_url"] == "docs/runbooks/ProbewatchCriticalFlag.md"
    assert notes["dashboard_url"].startswith("/d/probewatch-actions?var-model_name=")


def test_every_flag_is_pushed_to_alertmanager_and_none_is_taken_for_another(flagged: World) -> None:
    flags = alerts_total(flagged)
    until(lambda: len(flagged.alertmanager.alerts(ALERT_NAME)) == flags, 20, f"{flags} alerts are held")
    held = {(a["labels"]["alert_id"], a["labels"]["probe"]) for a in flagged.alertmanager.alerts(ALERT_NAME)}
    assert len(held) == flags

    def arrived() -> bool:
        names = [a["fingerprint"] for a in paged(flagged) if a["labels"]["alertname"] == ALERT_NAME]
        return len(set(names)) == flags

    until(arrived, 30, "each reaches the pager")


def test_a_pushed_alert_leads_to_its_evidence(flagged: World) -> None:
    alert = next(a for a in flagged.alertmanager.alerts(ALERT_NAME) if a["labels"]["probe"] == "deception")
    request_id = alert["labels"]["request_id"]
    assert alert["generatorURL"] == f"{flagged.server.url}/probewatch/ui#id={request_id}&choice=0"
    shown = requests.get(alert["annotations"]["request_url"], timeout=30).json()
    assert (shown["id"], shown["verdict"]) == (request_id, "flagged")
    assert shown["probes"]["deception"]["flagged"]


def test_the_webhook_gets_each_flagged_sequence_once_signed(flagged: World) -> None:
    listed = {alert["id"]: alert for alert in flagged.server.get("alerts", limit=1000)}
    until(lambda: len(flagged.hook.posts) >= len(listed), 20, "each flag is pushed")
    events = []
    for post in flagged.hook.posts:
        assert post.path == "/flags"
        stamp = post.headers[TIMESTAMP_HEADER]
        assert post.headers[SIGNATURE_HEADER] == signature(SECRET.encode(), stamp, post.body)
        events.append(json.loads(post.body))
    assert sorted(event["request_id"] for event in events) == sorted(listed)
    for event in events:
        told = listed[event["request_id"]]["probes"]
        assert [(p["name"], p["score"]) for p in event["probes"]] == [(p["name"], p["score"]) for p in told]
        assert "text" not in event
    outcomes = {
        (sink, outcome): flagged.server.metric("probewatch_evidence_total", sink=sink, outcome=outcome)
        for sink in ("webhook", "alertmanager")
        for outcome in ("delivered", "dropped", "failed")
    }
    assert outcomes["webhook", "delivered"] == outcomes["alertmanager", "delivered"] == len(listed)
    assert sum(outcomes.values()) == 2 * len(listed)


def words_of(server: Server, response_id: str) -> dict[str, Any]:
    """At the peak of the deception probe. A replay gives way to whoever else computes."""
    asked = {"id": response_id, "probe": "deception"}
    reply = requests.get(f"{server.url}/v1/probewatch/words", asked, timeout=150)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_the_words_at_the_peak_are_read_off_the_very_stream_that_was_scored(flagged: World) -> None:
    """A replay costs the engine nothing, and one of a steered answer, which it does not steer, is known to differ."""
    server = flagged.server
    before = {
        name: server.metric(name) for name in ("vllm:prompt_tokens_total", "vllm:request_success_total")
    }
    lies = [a for a in server.get("alerts", limit=1000) if a["probes"][0]["name"] == "deception"]
    alert, (steered, *_) = lies[-1], server.get("requests", limit=8)  # what came first was not steered
    found = words_of(server, alert["id"])
    body = server.get(f"requests/{alert['id']}")["probes"]["deception"]
    assert found["position"] == body["peak_token"]
    assert found["score"] == body["tokens"][found["position"]]["score"]
    assert found["agrees"], (found["score"], found["replayed_score"])
    layers = next(probe["layers"] for probe in server.get("probes") if probe["name"] == "deception")
    assert [layer["layer"] for layer in found["layers"]] == layers
    for layer in found["layers"]:
        assert len(layer["words"]) == 5
        assert all(word["token"].strip() for word in layer["words"][:1])
        assert 0.1 < sum(word["probability"] for word in layer["words"]) <= 1.001
    assert not words_of(server, steered["id"])["agrees"]
    assert {name: server.metric(name) for name in before} == before


def drift(world: World) -> dict[str, float]:
    """Both figures of the probe, by metric."""
    return {name: world.server.metric(name, probe=DRIFTING) for name in DRIFT}


def test_traffic_of_another_kind_shows_as_drift(flagged: World) -> None:
    """Last, because it changes what the server knows: first the kind of traffic that the probe was calibrated on, then
    small talk. The probe judges the prompt's last token, so one token of an answer is enough."""
    server = flagged.server
    url = f"{server.url}/v1/probewatch/probes"
    assert requests.delete(f"{url}/{DRIFTING}", headers=KEY, timeout=60).status_code == 200
    file = {"path": f"{DRIFTING}.safetensors"}  # attached anew, it has seen nothing yet
    assert requests.post(url, json=file, headers=KEY, timeout=60).status_code == 200
    talk(server, cases(MINIMUM, seed=1, split="train", conditions=LEDGER, templates="train"), tokens=1)
    server.settle()
    assert all(0 < figure < 0.25 for figure in drift(flagged).values()), drift(flagged)
    talk(server, cases(MINIMUM, seed=2, split="test", conditions=("chitchat",)), tokens=1)
    server.settle()
    assert all(figure > 0.25 for figure in drift(flagged).values()), drift(flagged)
    shown = f'ALERTS{{alertname="ProbewatchScoreDrift", alertstate="pending", probe="{DRIFTING}"}}'
    until(lambda: flagged.prometheus.query(shown), 10, "the rule sees the drift")
