"""Two engines (data parallel) behind two API servers: one true picture, whichever process answers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from serving import Server, serving

from monitor.shipped import paths

KEY = "a-key-of-the-tests"
OPTIONS = ["--data-parallel-size", "2", "--api-server-count", "2", "--tap-layers", "0,1,2,3,4"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fleet")
    shipped = [Path(shutil.copy(str(path), folder)) for path in paths()["probes"]]  # type: ignore[union-attr]
    later = next(path for path in shipped if path.stem == "believed-valence")
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        "PROBEWATCH_PROBE_DIR": str(later.parent),
        "PROBEWATCH_ADMIN_KEY": KEY,
    }
    first = [path for path in shipped if path != later]
    with serving(folder, OPTIONS, environment, artifacts=first) as running:
        yield running


def test_both_engines_work_and_every_token_is_counted_once(server: Server) -> None:
    questions = [f"Is {n} more than {n // 2}? Please say why." for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda question: server.ask(question, max_tokens=12), questions))
    assert set(server.check_reconciled().values()) == {0.0}
    fed = sum(reply.usage.total_tokens - 1 for reply in replies)
    by_engine = [server.metric("probewatch_tokens_seen_total", engine=engine) for engine in "01"]
    assert all(by_engine)
    assert sum(by_engine) == fed


def test_any_api_server_answers_for_all(server: Server) -> None:
    replies = [server.ask(f"Please count to {n}.", max_tokens=6) for n in range(6)]
    for reply in replies:
        for _ in range(4):  # a new connection each time: either process may take it
            detail = requests.get(f"{server.url}/v1/probewatch/requests/{reply.id}", timeout=30)
            assert detail.status_code == 200
            assert len(detail.json()["probes"]["deception"]["tokens"]) == reply.usage.total_tokens
    listed = {line["id"] for line in server.get("requests", limit=50)}
    assert {reply.id for reply in replies} <= listed
    assert {server.get("status")["coverage"]["deception"] for _ in range(6)} == {1.0}


def test_one_metrics_page_whoever_is_scraped(server: Server) -> None:
    server.settle()

    def counters() -> list[str]:
        return sorted(re.findall(r"^probewatch_\w+_total{.*", server.metrics(), re.MULTILINE))

    pages = [counters() for _ in range(6)]
    assert all(page == pages[0] for page in pages)
    assert (
        server.metric("probewatch_attached", engine="0")
        == server.metric("probewatch_attached", engine="1")
        == 1
    )


def test_a_probe_comes_to_all_engines_and_servers_or_to_none(server: Server) -> None:
    def change(method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, str]:
        url = f"{server.url}/v1/probewatch/probes{path}"
        headers = {"X-Probewatch-Admin-Key": KEY}
        reply = requests.request(method, url, json=body, headers=headers, timeout=60)
        return reply.status_code, "" if reply.ok else reply.json()["error"]["message"]

    status, said = change("POST", "", {"path": "believed-valence.safetensors"})
    assert status == 200, said
    names = [{probe["name"] for probe in server.get("probes")} for _ in range(8)]
    assert all("believed-valence" in found for found in names)
    questions = [f"Is {n} less than {2 * n}? Please say why." for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda question: server.ask(question, max_tokens=8), questions))
    for reply in replies:
        tokens = server.get(f"requests/{reply.id}")["probes"]["believed-valence"]["tokens"]
        assert {token["reason"] for token in tokens[:-1]} <= {None, "before_attach"}
        assert tokens[-2]["score"] is not None
    scored = [
        server.metric("probewatch_tokens_scored_total", probe="believed-valence", engine=engine)
        for engine in "01"
    ]
    assert all(scored)
    status, said = change("POST", "", {"path": "believed-valence.safetensors"})
    assert (status, "must differ" in said) == (409, True)
    assert change("DELETE", "/believed-valence") == (200, "")
    names = [{probe["name"] for probe in server.get("probes")} for _ in range(8)]
    assert not any("believed-valence" in found for found in names)
