"""Words at a peak: what has to be known for a replay, who may ask, and whether the replay is of what was served."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from monitor.config import Settings
from monitor.evidence_rows import Text, make_row, show
from monitor.frontend import Arrival, Running
from monitor.host_memory import free_mib
from monitor.http import HttpState, make_router
from monitor.replay import _awaited
from monitor.words import Busy, NoWords, Words
from tests.unit.monitor_fakes import BENIGN, alerting, alone, column, make_frontend

KEY = {"X-Probewatch-Admin-Key": "k"}
SCORES = (0.5, 1.0, 7.0, 2.0)
PROBE = alerting("lie", threshold=2.5, benign_quantiles=BENIGN)


def residual_of(score: float) -> list[float]:
    """A residual that the probe gives about that score: found on the line through 0 and the probe's own direction."""
    d, layers = PROBE.manifest.d_model, len(PROBE.manifest.layers)
    at = torch.eye(d)[:, None].expand(d, layers, d)
    zero = float(PROBE.score_tokens(torch.zeros(1, layers, d))[0])
    slope = PROBE.score_tokens(at.contiguous()) - zero
    return (slope * (score - zero) / slope.dot(slope)).tolist()


class Replays:
    """Answers for ``probes.words`` and remembers what it was asked."""

    def __init__(self, score: float = 7.0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.told: dict[str, Any] | None = None
        self._score = score

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        reading = {"words": [{"token_id": 9, "probability": 0.5}], "residual": residual_of(self._score)}
        return self.told or {"readings": [{"layer": layer, **reading} for layer in question["layers"]]}


class Bench:
    """A server with one flagged generation."""

    def __init__(self, tmp_path: Path, replays: Replays, **settings: Any) -> None:
        self.frontend, _ = make_frontend(PROBE)
        chosen = Settings(**{"evidence_path": "off", "admin_key": SecretStr("k"), **settings})
        self.state = HttpState(alone(self.frontend), chosen, lambda ids: "".join(f" w{i}" for i in ids))
        self.state.words = Words(lambda: tmp_path, chosen.words_mib, replays)
        application = FastAPI()
        application.include_router(make_router(lambda: self.state))
        self.client = TestClient(application)
        self.finish("cmpl-1", (11, 12))

    def finish(self, name: str, prompt: tuple[int, ...] | None) -> None:
        running = Running(name, None, 0, 2, prompt)
        self.frontend.arrive([Arrival(running, (13, 14, 15), 0, column(*SCORES))])
        self.frontend.finish(running, "stop")

    def ask(self, name: str = "cmpl-1", probe: str = "lie", **options: Any) -> Any:
        return self.client.get("/v1/probewatch/words", params={"id": name, "probe": probe}, **options)


def test_the_peak_is_replayed_once_and_its_words_are_told(tmp_path: Path) -> None:
    replays = Replays()
    bench = Bench(tmp_path, replays)
    replies = [bench.ask(headers=KEY) for _ in range(2)]
    assert replays.asked == [
        {
            "model": str(tmp_path),
            "ids": [11, 12, 13],
            "layers": [*PROBE.manifest.layers],
            "top": 5,
            "seconds": 120,
        }
    ]
    for reply in replies:
        found = reply.json()
        assert (found["id"], found["choice"], found["probe"], found["position"]) == ("cmpl-1", 0, "lie", 2)
        assert found["replayed_score"] == pytest.approx(found["score"], abs=1e-3) == pytest.approx(7.0)
        assert found["agrees"]
        assert [layer["layer"] for layer in found["layers"]] == list(PROBE.manifest.layers)
        assert found["layers"][0]["words"] == [{"token_id": 9, "probability": 0.5, "token": " w9"}]


def test_a_replay_of_something_else_than_was_served_is_said_to_be_one(tmp_path: Path) -> None:
    found = Bench(tmp_path, Replays(score=6.0)).ask(headers=KEY).json()
    assert found["replayed_score"] == pytest.approx(6.0, abs=1e-3)
    assert found["agrees"] is False


def test_words_are_evidence_and_need_its_key(tmp_path: Path) -> None:
    replays = Replays()
    bench = Bench(tmp_path, replays)
    assert bench.ask().status_code == 403
    assert bench.ask(headers={**KEY, "X-Probewatch-Admin-Key": "other"}).status_code == 403
    assert not replays.asked
    assert Bench(tmp_path, replays, admin_key=None).ask().status_code == 403
    assert Bench(tmp_path, replays, admin_key=None, open_evidence=True).ask().status_code == 200


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Replays())
    bench.finish("embeddings", None)
    for asked, status, said in (
        (("nobody", "lie"), 404, "no finished request"),
        (("cmpl-1", "truth"), 409, "it was judged by: lie"),
        (("embeddings", "lie"), 409, "PROBEWATCH_STORE_TEXT=1"),
    ):
        reply = bench.ask(*asked, headers=KEY)
        assert (reply.status_code, said in reply.json()["detail"]) == (status, True), reply.text


def body_of(said: dict[str, Any], name: str = "lie") -> dict[str, Any]:
    """A response that the probe judged, as ``GET /requests/{id}`` tells it."""
    return {"id": "x", "statistics": {name: PROBE.statistic_digest}, "probes": {name: said}}


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_another_probe_of_the_same_name_has_no_words_for_an_earlier_verdict(
    tmp_path: Path, where: str
) -> None:
    replays = Replays()
    bench = Bench(tmp_path, replays)
    told = bench.client.get("/v1/probewatch/requests/cmpl-1", headers=KEY).json()
    if where == "disk":
        (record,) = bench.frontend.recent.of("cmpl-1")
        text = Text(str, str)
        told = show(make_row(record, b"k", text))
    other = alerting("lie", threshold=2.5, benign_quantiles=BENIGN, layers=(0, 1))
    assert other.manifest.layers != PROBE.manifest.layers
    words = Words(lambda: tmp_path, 4096, replays)
    with pytest.raises(NoWords, match="another one has its name"):
        words.of(told, "lie", [other], str)
    assert not replays.asked
    assert words.of(told, "lie", [PROBE], str)["agrees"]


def test_what_is_remembered_does_not_grow_with_the_prompt(tmp_path: Path) -> None:
    replays = Replays()
    words = Words(lambda: tmp_path, 4096, replays)

    def ask(count: int) -> None:
        tokens = [{"token_id": 1, "score": 1.0}] * count
        words.of(body_of({"peak_token": count - 1, "tokens": tokens}), "lie", [PROBE], str)
        replays.asked.clear()

    ask(3)  # what a first one allocates for good
    tracemalloc.start()
    try:
        ask(30_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


def test_a_probe_that_is_gone_and_a_peak_that_is_none(tmp_path: Path) -> None:
    words, text = Words(lambda: tmp_path, 10, Replays()), str
    said = {"peak_token": 0, "tokens": [{"token_id": 1, "score": 1.0}]}
    with pytest.raises(NoWords, match="not attached any more"):
        words.of(body_of(said, "gone"), "gone", [PROBE], text)
    for lacking in ({"peak_token": None}, {"tokens": []}, {"tokens": [{"token_id": 1, "score": None}]}):
        with pytest.raises(NoWords, match="knows its peak"):
            words.of(body_of({**said, **lacking}), "lie", [PROBE], text)
    long = {"peak_token": 40_000, "tokens": [{"token_id": 1, "score": 1.0}] * 40_001}
    with pytest.raises(NoWords, match="at most 32768"):
        words.of(body_of(long), "lie", [PROBE], text)


def test_a_checkpoint_too_large_is_not_replayed(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(3 * 2**20)
    replays = Replays()
    for limit, said in ((2, "4 MiB and PROBEWATCH_WORDS_MIB=2"), (0, "PROBEWATCH_WORDS_MIB=0")):
        reply = Bench(tmp_path, replays, words_mib=limit).ask(headers=KEY)
        assert (reply.status_code, said in reply.json()["detail"]) == (409, True), reply.text
    assert not replays.asked
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2**50 // 1024)  # a TiB that no disk holds
    reply = Bench(tmp_path, replays, words_mib=2**30).ask(headers=KEY)
    assert "of the host's memory" in reply.json()["detail"]
    assert not replays.asked


def test_trouble_in_the_replay_is_told_and_asked_again(tmp_path: Path) -> None:
    replays = Replays()
    replays.told = {"trouble": "no room"}
    bench = Bench(tmp_path, replays)
    assert "cannot be replayed here: no room" in bench.ask(headers=KEY).json()["detail"]
    replays.told = None
    assert bench.ask(headers=KEY).status_code == 200


def test_one_replay_at_a_time(tmp_path: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    class Slow(Replays):
        def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
            inside.set()
            assert go.wait(5)
            return super().__call__(question)

    words = Words(lambda: tmp_path, 10, Slow())
    tokens = [{"token_id": i, "score": 1.0} for i in range(3)]
    body = body_of({"peak_token": 2, "tokens": tokens})
    first = threading.Thread(target=words.of, args=(body, "lie", [PROBE], str))
    first.start()
    assert inside.wait(5)
    with pytest.raises(Busy, match="ask again"):
        words.of(body, "lie", [PROBE], str)
    go.set()
    first.join(5)
    assert words.of(body, "lie", [PROBE], str)["position"] == 2


def child_of(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_the_program_is_asked_and_given_up_when_the_server_closes() -> None:
    with child_of("import sys; print(sys.stdin.read())") as child:
        assert _awaited(child, b'{"a": 1}', lambda: False) == {"a": 1}
    with child_of("print('Run its code? [y/N]')") as child, pytest.raises(NoWords, match="no JSON"):
        _awaited(child, b"{}", lambda: False)
    with child_of("raise SystemExit(3)") as child, pytest.raises(NoWords, match="status 3"):
        _awaited(child, b"{}", lambda: False)
    with child_of("import time; time.sleep(60)") as child, pytest.raises(NoWords):
        _awaited(child, b"{}", lambda: True)
    assert child.returncode == -9


def test_free_memory_is_what_host_and_container_leave(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    group.mkdir()
    assert free_mib(proc, group) == 0
    (proc / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable:  2097152 kB\n")
    assert free_mib(proc, group) == 2048
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    assert free_mib(proc, group) == 2048
    (group / "memory.max").write_text(f"{600 * 2**20}\n")
    (group / "memory.current").write_text(f"{100 * 2**20}\n")
    assert free_mib(proc, group) == 500
