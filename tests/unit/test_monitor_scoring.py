"""Transcripts judged offline: as if the answer had been generated. And what the commands refuse before any engine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from monitor import cli, plugin
from monitor.collecting import Fed
from monitor.errors import AttachError, CollectError
from monitor.records import RecentRecords, Record, detail, summary
from monitor.scoring import as_live
from monitor.seam import collector, offline, score
from monitor.shipped import paths
from monitor.verdict import judge, of_sequence
from probes import Probe, dataset, load
from probes.dataset import Conversation
from probes.testing import write_artifact
from tests.unit.monitor_fakes import make_bank, make_probe

MODEL = str(paths()["model"])
IDS = np.array([10, 11, 12, 20, 21, 22], np.int32)
"""Three prompt tokens and two of the answer are fed; the last one is not."""


STATES = np.array([[9.0], [9.0], [9.0], [1.0], [2.0]], np.float32)


def record(probe: Probe, prompt_tokens: int, ids: np.ndarray, states: np.ndarray = STATES) -> Record:
    verdicts = {"lie": judge(probe, states, prompt_tokens)}
    bank = make_bank(probe)
    verdict = of_sequence(verdicts, bank.actions)
    return Record("r", None, 0, "m", 1.0, "stop", verdict, verdicts, bank, prompt_tokens, ids, states)


@pytest.mark.parametrize(("threshold", "verdict"), [(1.5, "flagged"), (2.5, "ok")])
def test_a_transcript_is_judged_as_if_its_answer_had_been_generated(threshold: float, verdict: str) -> None:
    """The whole transcript was the engine's prompt, and what it sampled after it belongs to nobody."""
    probe = make_probe(
        "lie", layers=(1,), aggregation={"method": "max"}, threshold=threshold, default_action="alert"
    )
    live = record(probe, 3, IDS)
    assert live.verdict == verdict, "the prompt's high scores are outside the mask"
    silenced = replace(probe, manifest=probe.manifest.model_copy(update={"default_action": "observe"}))
    fed = record(silenced, 5, np.array([*IDS[:5], 99], np.int32))
    assert summary(fed) != summary(live)
    judged = as_live(fed, 3, {"lie": "alert"})
    assert summary(judged) == summary(live)
    shown, expected = (detail(one, str)["probes"]["lie"]["tokens"] for one in (judged, live))
    assert shown == expected[:-1]


class FakeEngine:
    """Remembers a record of each prompt, whose states are its token ids."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.recent = RecentRecords(1024)
        self.asked: list[int] = []

    def ask(self, prompts: list[list[int]]) -> list[str]:
        """One sampled token each."""
        self.asked.append(len(prompts))
        names = [f"{len(self.asked)}-{number}" for number in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            states = np.array(prompt, np.float32)[:, None]
            judged = record(self._probe, len(prompt), np.array([*prompt, 0], np.int32), states)
            self.recent.add(replace(judged, response_id=name))
        return names


@pytest.mark.parametrize("texts", [False, True])
def test_every_transcript_gets_its_own_verdict_in_order(monkeypatch: pytest.MonkeyPatch, texts: bool) -> None:
    monkeypatch.setattr(score, "AT_ONCE", 3)
    probe = make_probe(
        "lie", layers=(1,), aggregation={"method": "max"}, threshold=50, default_action="alert"
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    fed = []
    for i in range(8):
        chat = Conversation.model_validate({"id": f"c{i}", "messages": turns})
        answer = 90 + i if i % 2 else i
        fed.append(Fed(chat, [99, 98, answer], 2, range(3)))
    engine = FakeEngine(probe)
    found = list(score._judged(engine.ask, engine.recent, fed, [probe], str if texts else None))
    assert engine.asked == [3, 3, 2]
    assert [one["id"] for one in found] == [f"c{i}" for i in range(8)]
    assert [one["verdict"] for one in found] == ["ok", "flagged"] * 4
    assert [one["probes"]["lie"]["score"] for one in found] == [0, 91, 2, 93, 4, 95, 6, 97]
    assert all(("tokens" in one["probes"]["lie"]) is texts for one in found)


def test_what_is_only_read_is_not_acted_on(tmp_path: Path) -> None:
    probe = make_probe("lie", default_action="steer:honesty", threshold=1.0)
    (path,) = score._observing([probe], tmp_path)
    copy = load(Path(path))
    assert copy.manifest.default_action == "observe"
    assert (
        copy.manifest.model_copy(
            update={"default_action": "steer:honesty", "tensors_sha256": probe.manifest.tensors_sha256}
        )
        == probe.manifest
    )


def write_chat(path: Path, question: str = "How is the bridge?") -> Path:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "It is sound."}]
    dataset.write(path, [Conversation.model_validate({"id": "c", "messages": turns, "label": 1})])
    return path


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--data", "{nowhere}"], 2, "cannot be read"),
        (
            ["--data", "{chat}", "--layers", "2,5"],
            1,
            "layer 5 asked of concealed-ledger; give blocks from 0 to 4",
        ),
        (["--data", "{chat}", "--model", "{nowhere}"], 1, "not on this machine"),
    ],
)
def test_collect_refuses_before_any_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, words: str
) -> None:
    places = {"chat": write_chat(tmp_path / "chat.jsonl"), "nowhere": tmp_path / "nowhere"}
    given = [option.format(**places) for option in options]
    assert cli.main(["collect", "--model", MODEL, "-o", str(tmp_path / "out"), *given]) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_score_refuses_a_probe_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat, probe = write_chat(tmp_path / "chat.jsonl"), write_artifact(tmp_path / "p.safetensors")
    assert cli.main(["score", str(chat), "--model", MODEL, "--probe", str(probe)]) == 1
    assert "bound to no model" in capsys.readouterr().err


def test_an_engine_of_ours_forgets_what_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROBES": "a", "VECTORS": "b", "SCORE_STORE_MIB": "7"}.items():
        monkeypatch.setenv(f"PROBEWATCH_{name}", value)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("VLLM_LOGGING_STREAM", "ext://sys.stdout")
    for name in ("COLLECT", "REFUSAL_FILE", "RUN_BY"):  # to be undone with the rest
        monkeypatch.setenv(f"PROBEWATCH_{name}", "")
    offline.configure({"COLLECT": "1,2"})
    try:
        asked = {name: value for name, value in os.environ.items() if name.startswith("PROBEWATCH_")}
        refusal = asked.pop("PROBEWATCH_REFUSAL_FILE")
        assert asked.pop("PROBEWATCH_RUN_BY") == str(os.getpid())
        assert asked == {"PROBEWATCH_COLLECT": "1,2", "PROBEWATCH_SCORE_STORE_MIB": "7"}
        assert os.environ["VLLM_PLUGINS"] == "other,probewatch"
    finally:
        Path(refusal).unlink()


@pytest.mark.parametrize(
    ("size", "share", "before", "after"),
    [(None, 0.92, None, "4"), (None, 0.92, "2", "2"), (1 << 30, 0.92, None, None), (None, 0.5, None, None)],
)
def test_a_cpu_keeps_its_memory_where_nobody_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, size: int | None, share: float, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", before or "")  # to be undone with the rest
    if before is None:
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    offline.spare_memory(SimpleNamespace(kv_cache_memory_bytes=size, gpu_memory_utilization=share), 0.92)
    assert os.environ.get("VLLM_CPU_KVCACHE_SPACE") == after


def test_the_plugin_collects_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(collector, "install", asked.append)
    monkeypatch.setenv("PROBEWATCH_COLLECT", "3,5")
    plugin.register()
    assert asked == [[3, 5]]


def test_an_engine_that_collects_never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBEWATCH_COLLECT", "3")
    with pytest.raises(AttachError, match=r"PROBEWATCH_COLLECT=3 belongs to `probewatch collect`.*unset it"):
        collector._never_serve(None, None)


class _Engine:
    def __init__(self, **_: object) -> None:
        raise RuntimeError("Engine core initialization failed.\nSee above.")


@pytest.mark.parametrize(
    ("reason", "words"),
    [("layer 9 is not there", "did not start: layer 9 is not there"), ("", "RuntimeError: Engine core init")],
)
def test_why_an_engine_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, words: str
) -> None:
    (tmp_path / "refusal").write_text(reason)
    monkeypatch.setenv("PROBEWATCH_REFUSAL_FILE", str(tmp_path / "refusal"))
    with pytest.raises(CollectError, match=words) as raised:
        offline.started(_Engine, {"model": "m"})
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "refusal").exists()


def test_options_that_vllm_refuses_are_one_line() -> None:
    class Arguments:
        def create_engine_config(self) -> None:
            raise ValueError(
                "1 validation error for VllmConfig\n  Value error, Total number of attention heads (3) must be "
                "divisible by tensor parallel size (2). [type=value_error, input_value=ArgsKwargs((), {'model_co... "
            )

    with pytest.raises(CollectError) as raised:
        offline.planned(Arguments())
    assert str(raised.value) == (
        "vLLM refuses these options: Value error, Total number of attention heads (3) must be divisible by tensor "
        "parallel size (2).; change them"
    )
