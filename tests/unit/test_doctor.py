"""``probewatch doctor``: what it prints is what it found."""

from __future__ import annotations

import argparse

import pytest

from monitor import doctor
from monitor.doctor import Finding


def test_what_looks_like_markup_is_printed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Finding("configuration", "a[/red]b", False, "check [bold]the path")
    monkeypatch.setattr(doctor, "local_findings", lambda model: [found])
    assert doctor.main(argparse.Namespace(model=None, url=None, api_key=None)) == 1
    shown = capsys.readouterr().out
    assert "a[/red]b" in shown
    assert "[bold]" in shown
    assert "0 checks passed, 1 failed" in shown
