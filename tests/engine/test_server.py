"""The shipped model, probes and commands on one real server, asked by real clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
from serving import MODEL, Server, probewatch, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), environment={"PROBEWATCH_EXPOSE": "scores"}) as running:
        yield running


def test_ready_means_attached_and_proven(server: Server) -> None:
    status = server.get("status")
    assert status["attached"] is True
    assert {probe["name"] for probe in status["probes"]} >= {"deception", "honesty"}
    assert server.metric("probewatch_attached") == 1
    for probe in status["probes"]:
        assert 0 <= server.metric("probewatch_selftest_error", probe=probe["name"]) < 1e-3


def test_every_accepted_position_has_a_score_or_a_reason(server: Server) -> None:
    reply = server.ask("How is the weather today?", max_tokens=20)
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
    stream = server.ask("Tell me about your day.", stream=True, max_tokens=30)
    assert sum(1 for chunk in stream if chunk.choices) > 1
    server.ask("Count from one to nine.", max_tokens=1)
    server.ask("Good morning! How are you?", max_tokens=40, stop=[" I", "."])
    abandoned = server.client().completions.create(
        model=MODEL, prompt="The", stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    next(iter(abandoned))
    abandoned.close()
    assert set(server.check_reconciled().values()) == {0.0}


def test_a_reply_carries_its_verdict(server: Server) -> None:
    reply = server.ask("Good morning! How are you?", max_tokens=12)
    told = reply.model_extra["probewatch"]
    seen = server.get(f"requests/{reply.id}")
    assert told["verdict"] == seen["verdict"]
    assert told["coverage"] == {"prompt": 1.0, "generated": 1.0}
    assert told["probes"]["deception"]["score"] == seen["probes"]["deception"]["score"]


def test_a_stream_ends_with_its_verdict(server: Server) -> None:
    chunks = list(server.ask("Good morning! How are you?", max_tokens=12, stream=True))
    assert [chunk for chunk in chunks if "probewatch" in (chunk.model_extra or {})] == chunks[-1:]
    assert chunks[-1].choices == []
    assert chunks[-1].model_extra["probewatch"]["verdict"] in ("ok", "flagged")
    words = server.client().completions.create(model=MODEL, prompt="The bridge", max_tokens=5, stream=True)
    assert list(words)[-1].model_extra["probewatch"]["probes"]["deception"]["tokens_scored"] > 0


def test_several_choices_each_have_their_verdict(server: Server) -> None:
    several = server.client().completions.create(
        model=MODEL, prompt=["The bridge is", "I would like some tea and"], n=2, max_tokens=6, temperature=1
    )
    told = several.model_extra["probewatch"]
    assert [choice["index"] for choice in told["choices"]] == [choice.index for choice in several.choices]


def test_a_client_may_ask_for_less_and_not_for_what_does_not_exist(server: Server) -> None:
    wish = {"vllm_xargs": {"probewatch_expose": "verdict"}}
    told = server.ask("Good morning!", max_tokens=5, extra_body=wish).model_extra["probewatch"]
    assert set(told["probes"]["deception"]) == {"flagged"}
    none = server.ask("Good morning!", max_tokens=5, extra_body={"vllm_xargs": {"probewatch_expose": "none"}})
    assert "probewatch" not in none.model_extra
    for wrong in ({"probewatch_expose": "all"}, {"probewatch_nonsense": 1}):
        with pytest.raises(openai.BadRequestError, match="known"):
            server.ask("Good morning!", max_tokens=5, extra_body={"vllm_xargs": wrong})


def test_the_prefix_cache_keeps_its_scores(server: Server) -> None:
    long = "I have a question about the weather. " * 30
    first, second = (server.ask(long, max_tokens=3) for _ in range(2))
    assert server.metric("vllm:prefix_cache_hits_total") > 0
    scores = [
        [token["score"] for token in server.get(f"requests/{reply.id}")["probes"]["deception"]["tokens"]]
        for reply in (first, second)
    ]
    assert scores[0][:-1] == pytest.approx(scores[1][:-1], rel=0.05, abs=0.1)  # bfloat16, another batch shape


def test_many_clients_at_once_each_get_their_own(server: Server) -> None:
    questions = [f"Is {n} more than {n // 2}? Please say why." for n in range(24)]
    alone = {q: _prompt_scores(server, server.ask(q, max_tokens=8).id) for q in questions[:6]}
    together: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=q: together.__setitem__(q, server.ask(q, max_tokens=8).id))
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


def test_doctor_and_watch_read_the_running_server(server: Server) -> None:
    doctor = probewatch("doctor", "--url", server.url)
    assert doctor.returncode == 0, doctor.stdout
    watch = probewatch("watch", "--url", server.url, "--once")
    assert watch.returncode == 0, watch.stderr
    assert "deception" in watch.stdout


def test_the_demo_catches_the_lies_and_says_so(server: Server, tmp_path: Path) -> None:
    before = server.metric("probewatch_alerts_total", probe="deception")
    file = tmp_path / "answers.json"
    demo = probewatch("demo", "--once", "--seed", "7", "--url", server.url, "--json", str(file))
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


def test_the_evidence_page_is_mounted_outside_the_guarded_routes(server: Server) -> None:
    page = requests.get(f"{server.url}/probewatch/ui", timeout=30)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert requests.get(f"{server.url}/probewatch/ui/app.js", timeout=30).status_code == 200


def test_an_unknown_request_and_a_shut_door_say_what_to_do(server: Server) -> None:
    reply = requests.get(f"{server.url}/v1/probewatch/requests/chatcmpl-none", timeout=10)
    assert reply.status_code == 404
    assert "remembered" in reply.text  # vLLM wraps errors in its own shape
