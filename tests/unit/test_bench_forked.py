"""An arm's process as a fork of one that has imported what all need."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from bench import forked
from tests.unit.waiting import until


def test_a_forked_arm_answers_on_its_own_line_logs_where_it_shall_and_leads_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_IMPORTED", ["bench.arm"])  # not vLLM, before which this one ends
    arms: list[forked.Forked] = []
    try:
        for n in range(2):
            arms.append(forked.Forked(dict(os.environ), tmp_path / f"{n}.log"))
        until(lambda: all((tmp_path / f"{n}.log").exists() for n in range(2)), 120)
        assert [os.getpgid(arm.pid) for arm in arms] == [arm.pid for arm in arms]
        for arm in arms:
            print("no settings", file=arm.stdin, flush=True)
        until(lambda: all("JSONDecodeError" in (tmp_path / f"{n}.log").read_text() for n in range(2)), 120)
        assert [arm.stdout.read() for arm in arms] == ["", ""]
        while arms:
            assert arms.pop().wait() == 1
    finally:
        for arm in arms:
            with contextlib.suppress(ProcessLookupError):
                os.kill(arm.pid, signal.SIGKILL)
        forked.forget()
