"""Scores of recorded traffic: who may have them, what they hold, and that `calibrate` takes them."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from monitor import record
from monitor.client import ADMIN_HEADER, Server
from monitor.config import Settings
from monitor.errors import ServerError
from monitor.evidence_scores import ScoreQuery, gather
from monitor.frontend import Arrival, Running
from monitor.http import make_router
from monitor.server_state import HttpState
from monitor.unscored import Reason, nan_for
from probes import Probe, calibration, cli, recorded
from probes import load as load_probe
from tests.unit.monitor_fakes import alerting, alone, column, make_frontend

KEY = {ADMIN_HEADER: "secret"}


class Served:
    """A server's routes over one alerting probe. ``path``: of the evidence file, or ``off``."""

    def __init__(self, probe: Probe, path: Path | str, **changes: Any) -> None:
        self.frontend, _ = make_frontend(probe)
        values: dict[str, Any] = {"admin_key": SecretStr("secret"), "evidence_path": path, **changes}
        self.state = HttpState(alone(self.frontend), Settings(**values), lambda ids: "private text")
        self.state.keep_evidence(8000)
        application = FastAPI()
        application.include_router(make_router(lambda: self.state))
        self.client = TestClient(application)

    def finish(self, response_id: str, *scores: float | np.float32, choice: int = 0) -> None:
        """A sequence of one prompt token and an answer, with these token scores."""
        running = Running(response_id, None, choice, 1, (5,))
        ids = tuple(range(6, 6 + len(scores)))
        self.frontend.arrive([Arrival(running, ids, 0, column(*scores))])
        self.frontend.finish(running, "stop")

    def written(self) -> None:
        """Ends the store, as a server does that stops: everything is on disk then."""
        assert self.state.evidence is not None
        self.state.evidence.close()

    def get(self, query: str = "probe=lie", status: int = 200, headers: dict[str, str] | None = None) -> Any:
        reply = self.client.get(f"/v1/probewatch/scores?{query}", headers=KEY if headers is None else headers)
        assert reply.status_code == status, reply.text
        return reply.json()


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """Two plain sequences of one response, a flagged one, and one with a token that nobody scored."""
    found = Served(alerting(threshold=2.5), tmp_path / "evidence.sqlite")
    found.finish("cmpl-1", 0.0, 1.0)
    found.finish("cmpl-1", 0.0, 2.0, choice=1)
    found.finish("cmpl-2", 0.0, 3.0, 1.0)
    found.finish("cmpl-3", 0.0, nan_for(Reason.OTHER_ADAPTER))
    found.written()
    return found


def test_each_fully_scored_sequence_is_told_flagged_ones_too(served: Served) -> None:
    # A threshold fitted to what was not flagged would flag the same share anew: the sample must not be cut by it.
    told = served.get()
    assert [(s["id"], s["choice"], s["score"], s["tokens"]) for s in told["sequences"]] == [
        ("cmpl-1", 0, 1.0, 2),
        ("cmpl-1", 1, 2.0, 2),
        ("cmpl-2", 0, 3.0, 3),
    ]
    assert told["left_out"] == {"other_statistic": 0, "not_fully_scored": 1}
    assert told["statistic_digest"] == alerting(threshold=0.0).manifest.statistic_digest
    assert "private" not in json.dumps(told)


def test_times_bound_what_is_told(served: Served) -> None:
    assert served.get("probe=lie&until=2020-01-01")["sequences"] == []
    assert served.get("probe=lie&since=2100-01-01")["sequences"] == []
    assert len(served.get("probe=lie&since=2020-01-01&until=2100-01-01")["sequences"]) == 3
    served.get("probe=lie&since=yesterday", 422)


def test_the_admin_key_is_needed_even_where_evidence_is_open(tmp_path: Path) -> None:
    opened = Served(alerting(), tmp_path / "e.sqlite", open_evidence=True)
    assert ADMIN_HEADER in opened.get(status=403, headers={})["detail"]
    keyless = Served(alerting(), tmp_path / "f.sqlite", open_evidence=True, admin_key=None)
    assert "no admin key is set" in keyless.get(status=403)["detail"]


def test_without_a_file_nothing_is_recorded_and_unknown_probes_are_named(served: Served) -> None:
    assert "PROBEWATCH_EVIDENCE_PATH" in Served(alerting(), "off").get(status=409)["detail"]
    assert "attached: lie" in served.get("probe=truth", 404)["detail"]
    served.get("", 422)


def test_scores_of_another_version_of_the_probe_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "evidence.sqlite"
    old = Served(alerting(seed=1), path)
    old.finish("old", 1.0, 2.0)
    old.written()
    new = Served(alerting(aggregation={"method": "mean"}), path)
    new.finish("new", 1.0, 2.0)
    new.written()
    told = new.get()
    assert [s["id"] for s in told["sequences"]] == ["new"]
    assert told["left_out"]["other_statistic"] == 1


def test_a_record_from_before_statistics_were_told_is_left_out() -> None:
    found = gather([("r", 0, json.dumps({"probes": {}}))], ScoreQuery("lie", "0" * 64))
    assert (found.sequences, found.other_statistic) == ([], 1)


class Asked(Server):
    """A client whose server is in this process."""

    served: Served

    def status(self) -> dict[str, Any]:
        probes = [{"name": n, "action": a} for n, a in self.served.frontend.bank.actions.items()]
        return {"probes": probes}

    def scores(self, probe: str, since: str, until: str) -> dict[str, Any]:
        return dict(self.served.get(f"probe={probe}&since={since}&until={until}"))


def ask(monkeypatch: pytest.MonkeyPatch, served: Served, out: Path) -> int:
    monkeypatch.setattr(Asked, "served", served, raising=False)
    monkeypatch.setattr(record, "Server", Asked)
    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    return record.main(parser.parse_args(["lie", "-o", str(out)]))


def test_recorded_scores_calibrate_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = alerting(threshold=9.0)
    artifact = tmp_path / "lie.safetensors"
    probe.save(artifact)
    served = Served(load_probe(artifact), tmp_path / "evidence.sqlite")
    rng = np.random.default_rng(0)
    for i in range(120):
        served.finish(f"cmpl-{i}", *rng.normal(size=4))
    served.written()
    out = tmp_path / "monday.jsonl"
    assert ask(monkeypatch, served, out) == 0
    told = recorded.read(out, load_probe(artifact).manifest)
    arguments = [
        "calibrate",
        artifact,
        "--benign",
        out,
        "--fpr",
        "0.1",
        "--requests-per-day",
        "1000",
        "-o",
        artifact,
    ]
    assert cli.main([str(a) for a in arguments]) == 0
    manifest = load_probe(artifact).manifest
    assert manifest.calibration is not None
    assert (manifest.calibration.n, manifest.calibration.realised_n) == (60, 60)
    scores = [s.score for s in told.sequences]
    assert manifest.threshold in scores
    assert np.mean(np.array(scores) > (manifest.threshold or math.inf)) < 0.2
    assert calibration.order(60, 0.1) == 55
    said = capsys.readouterr().out
    assert "false flags a day" in said
    assert "private" not in out.read_text()


def test_nothing_is_recorded_while_a_probe_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(alerting(default_action="stop"), tmp_path / "evidence.sqlite")
    with pytest.raises(ServerError, match="cut short"):
        ask(monkeypatch, served, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_recorded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(alerting(), tmp_path / "evidence.sqlite")
    with pytest.raises(ServerError, match="0 sequences"):
        ask(monkeypatch, served, tmp_path / "out.jsonl")
    with pytest.raises(ServerError, match="cannot be read"):
        record.read({"probe": "lie"})
