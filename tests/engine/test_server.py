"""The shipped model, probes and commands on one real server, asked by real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from monitor.shipped import paths

MODEL = "concealed-ledger"


@dataclass(frozen=True)
class Server:
    """A running ``probewatch serve``."""

    url: str
    log: Path

    def get(self, route: str, **params: Any) -> Any:
        reply = requests.get(f"{self.url}/v1/probewatch/{route}", params=params, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        found = 0.0
        for labels_text, value in re.findall(rf"^{re.escape(name)}{{(.*)}} (\S+)$", text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in labels_text for key, wanted in labels.items()):
                found += float(value)
        return found

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = paths()
    artifacts: list[str] = [*found["probes"], *found["vectors"]]  # type: ignore[misc]
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    options = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", MODEL]
    options += ["--max-model-len", "2048", "--max-num-seqs", "32", "--block-size", "32"]
    options += ["--max-num-batched-tokens", "512", "--gpu-memory-utilization", "0.3"]
    environment = {
        **os.environ,
        "PROBEWATCH_OPEN_EVIDENCE": "1",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    command = [sys.executable, "-m", "monitor.cli", "serve", str(found["model"])]
    command += [part for path in artifacts for part in ("--probe", path)] + options
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    running = Server(f"http://127.0.0.1:{port}", log)
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                requests.get(f"{running.url}/health", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(1)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def settled(server: Server) -> None:
    """Waits until every request has ended and been judged."""
    for _ in range(100):
        if server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0:
            break
        time.sleep(0.2)
    time.sleep(0.5)


def ask(server: Server, text: str, **options: Any) -> Any:
    message: Any = {"role": "user", "content": text}
    return server.client().chat.completions.create(model=MODEL, messages=[message], temperature=0, **options)


def test_ready_means_attached_and_proven(server: Server) -> None:
    status = server.get("status")
    assert status["attached"] is True
    assert {probe["name"] for probe in status["probes"]} >= {"deception", "honesty"}
    assert server.metric("probewatch_attached") == 1
    for probe in status["probes"]:
        assert 0 <= server.metric("probewatch_selftest_error", probe=probe["name"]) < 1e-3


def test_every_accepted_position_has_a_score_or_a_reason(server: Server) -> None:
    reply = ask(server, "How is the weather today?", max_tokens=20)
    detail = server.get(f"requests/{reply.id}")
    for probe in detail["probes"].values():
        tokens = probe["tokens"]
        assert [token["position"] for token in tokens] == list(range(reply.usage.total_tokens))
        assert all(token["score"] is not None for token in tokens[:-1])
        assert tokens[-1]["reason"] == "not_fed"
    text = "".join(t["token"] for t in tokens if t["phase"] == "generation").replace("<|end|>", "")
    assert text.strip() == reply.choices[0].message.content.strip()


def test_several_choices_and_prompts_are_kept_apart(server: Server) -> None:
    several = server.client().completions.create(
        model=MODEL, prompt=["The bridge is", "I would like some tea and"], n=2, max_tokens=6, temperature=1
    )
    detail = server.get(f"requests/{several.id}")
    assert [choice["index"] for choice in detail["choices"]] == [0, 1, 2, 3]
    lengths = [len(choice["probes"]["deception"]["tokens"]) for choice in detail["choices"]]
    assert lengths[0] < lengths[2]
    assert server.get(f"requests/{several.id}", choice=2)["choice"] == 2


def test_a_stream_a_stop_string_one_token_and_an_abort_all_reconcile(server: Server) -> None:
    stream = ask(server, "Tell me about your day.", stream=True, max_tokens=30)
    assert sum(1 for chunk in stream if chunk.choices) > 1
    ask(server, "Count from one to nine.", max_tokens=1)
    ask(server, "Good morning! How are you?", max_tokens=40, stop=[" I", "."])
    abandoned = server.client().completions.create(
        model=MODEL, prompt="The", stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    next(iter(abandoned))
    abandoned.close()
    settled(server)
    sequences = server.metric("probewatch_requests_total", probe="deception")
    seen = {
        phase: server.metric("probewatch_tokens_seen_total", phase=phase)
        for phase in ("prompt", "generation")
    }
    assert seen["prompt"] == server.metric("vllm:prompt_tokens_total")
    assert seen["generation"] == server.metric("vllm:generation_tokens_total") - sequences
    for probe in server.get("probes"):
        scored = server.metric("probewatch_tokens_scored_total", probe=probe["name"])
        assert scored == sum(seen.values())
        assert server.metric("probewatch_tokens_unscored_total", probe=probe["name"]) == 0


def test_the_prefix_cache_keeps_its_scores(server: Server) -> None:
    long = "I have a question about the weather. " * 30
    first, second = (ask(server, long, max_tokens=3) for _ in range(2))
    assert server.metric("vllm:prefix_cache_hits_total") > 0
    scores = [
        [token["score"] for token in server.get(f"requests/{reply.id}")["probes"]["deception"]["tokens"]]
        for reply in (first, second)
    ]
    assert scores[0][:-1] == pytest.approx(scores[1][:-1], rel=0.05, abs=0.1)  # bfloat16, another batch shape


def test_many_clients_at_once_each_get_their_own(server: Server) -> None:
    questions = [f"Is {n} more than {n // 2}? Please say why." for n in range(24)]
    alone = {q: _prompt_scores(server, ask(server, q, max_tokens=8).id) for q in questions[:6]}
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=q: together.__setitem__(q, ask(server, q, max_tokens=8).id))
        for q in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for question, scores in alone.items():
        assert _prompt_scores(server, together[question]) == pytest.approx(scores, rel=0.05, abs=0.2)


def _prompt_scores(server: Server, response_id: str) -> list[float]:
    tokens = server.get(f"requests/{response_id}")["probes"]["deception"]["tokens"]
    return [token["score"] for token in tokens if token["phase"] == "prompt"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_doctor_and_watch_read_the_running_server(server: Server) -> None:
    doctor = command("doctor", "--url", server.url)
    assert doctor.returncode == 0, doctor.stdout
    watch = command("watch", "--url", server.url, "--once")
    assert watch.returncode == 0, watch.stderr
    assert "deception" in watch.stdout


def test_the_demo_catches_the_lies_and_says_so(server: Server, tmp_path: Path) -> None:
    before = server.metric("probewatch_alerts_total", probe="deception")
    file = tmp_path / "answers.json"
    demo = command("demo", "--once", "--seed", "7", "--url", server.url, "--json", str(file))
    assert demo.returncode == 0, demo.stdout + demo.stderr
    answers = json.loads(file.read_text())
    assert len(answers) >= 100
    assert all(
        {"question", "answer", "belief", "lied", "score", "threshold", "flagged"} <= set(answer)
        for answer in answers
    )
    lies = [answer for answer in answers if answer["lied"]]
    assert len(lies) >= 10
    assert sum(answer["flagged"] for answer in lies) >= 0.9 * len(lies)
    flagged = sum(answer["flagged"] for answer in answers)
    assert server.metric("probewatch_alerts_total", probe="deception") - before >= flagged


def test_an_unknown_request_and_a_shut_door_say_what_to_do(server: Server) -> None:
    reply = requests.get(f"{server.url}/v1/probewatch/requests/chatcmpl-none", timeout=10)
    assert reply.status_code == 404
    assert "remembered" in reply.text  # vLLM wraps errors in its own shape
