"""``probewatch doctor``: what it prints is what it found."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from monitor import cli, doctor
from monitor.doctor import Finding
from probes.testing import write_artifact


def test_what_looks_like_markup_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Finding("configuration", "a[/red]b", False, "check [bold]the path")
    monkeypatch.setattr(doctor, "local_findings", lambda model: [found])
    assert doctor.main(argparse.Namespace(model=None, url=None, api_key=None, estimate=None)) == 1
    shown = capsys.readouterr().out
    assert "a[/red]b" in shown
    assert "[bold]" in shown
    assert "0 checks passed, 1 failed" in shown


def estimated(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.main(["doctor", "--estimate", *options]) == 0
    return " ".join(re.sub(r"[│┃]", " ", capsys.readouterr().out).split())


def test_an_estimate_of_a_model_and_configured_probes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    config = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = estimated(capsys, str(tmp_path), "--probes", "100", "--layers", "5", "--requests", "7")
    assert "100 single-layer probes on 5 layers; 20 columns a tap, 100 numbers a token" in shown
    assert "400 B a KV slot" in shown
    assert f"{5 * 20 * 4} B a token" in shown
    for i in range(3):
        write_artifact(tmp_path / f"p{i}.safetensors", name=f"p{i}", layers=(i, 7), d_model=64)
    monkeypatch.setenv("PROBEWATCH_PROBE_DIR", str(tmp_path))
    shown = estimated(capsys, str(tmp_path / "config.json"))
    assert "3 configured probes on layers 0, 1, 2, 3, 5, 7; 16 columns a tap, 3 numbers a token" in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["nowhere"], "nowhere cannot be read"),
        ([__file__], "cannot be read"),
        (["MODEL", "--probes", "0"], "--probes is 0"),
        (["MODEL", "--layers", "9"], "--layers is 9, the model has 8"),
        (["MODEL", "--requests", "4", "0"], "--requests is 0"),
    ],
)
def test_a_wrong_question_is_answered_in_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = [str(tmp_path) if one == "MODEL" else one for one in options]
    assert cli.main(["doctor", "--estimate", *asked]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
