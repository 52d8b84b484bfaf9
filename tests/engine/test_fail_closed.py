"""With a dead tap, the server does not start; without configuration, the plugin is not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Runner, Subject, make_subject
from traffic import mixed


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("closed"), "llama", "float32")


def test_a_dead_tap_refuses_to_start(subject: Subject, run_engine: Runner) -> None:
    done = run_engine(subject.model, subject.probes, [], engine={"dtype": "float32"}, sabotage="dead_tap")
    assert done.status != 0
    assert "the taps of layers [0, 1, 2] did not fire" in done.log


def test_unconfigured_changes_nothing_and_configured_changes_no_token(
    subject: Subject, run_engine: Runner, tmp_path: Path
) -> None:
    phase = mixed(60, seed=5)
    stock = run_engine(subject.model, [], [phase], engine={"dtype": "float32"})
    monitored = run_engine(subject.model, subject.probes, [phase], engine={"dtype": "float32"})
    assert stock.status == monitored.status == 0, (stock.log + monitored.log)[-4000:]
    assert stock.result["wrapped"] == []
    assert "load_model" in monitored.result["wrapped"]
    assert not any(name.startswith("probewatch") for name in stock.phase(0)["metrics"])
    tokens = [[output["tokens"] for output in done.phase(0)["outputs"]] for done in (stock, monitored)]
    assert tokens[0] == tokens[1]
