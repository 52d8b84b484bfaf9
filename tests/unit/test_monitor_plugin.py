"""Installed and not configured, the plugin changes nothing and costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from monitor import plugin
from monitor.errors import AttachError, ConfigurationError

ROOT = Path(__file__).parents[2]
HEAVY = (
    "multiprocessing",
    "torch",
    "vllm",
    "pydantic",
    "numpy",
    "yaml",
    "prometheus_client",
    "fastapi",
    "safetensors",
)
INERT = f"""
import json, sys, time
before = set(sys.modules)
started = time.perf_counter()
from monitor import plugin
plugin.register()
plugin.register()
seconds = time.perf_counter() - started
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - before]
print(json.dumps({{"seconds": seconds, "heavy": heavy, "configured": plugin.is_configured()}}))
"""


def run_bare(code: str) -> dict[str, Any]:
    """Runs ``code`` in a new interpreter without a PROBEWATCH_ variable; its output is JSON."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PROBEWATCH_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_unconfigured_it_loads_nothing_and_takes_no_time() -> None:
    runs = [run_bare(INERT)]
    while runs[-1]["seconds"] >= 0.05 and len(runs) < 4:  # a busy machine gets other chances
        runs.append(run_bare(INERT))
    assert all(run["heavy"] == [] for run in runs)
    assert not runs[0]["configured"]
    assert min(run["seconds"] for run in runs) < 0.05


def test_a_stray_setting_is_told_once_and_not_by_children() -> None:
    code = (
        "import multiprocessing as m; from monitor import plugin; plugin.register(); "
        "child = m.get_context('spawn').Process(target=plugin.register); child.start(); child.join()"
    )
    environment = {**os.environ, "PROBEWATCH_EXPOSE": "verdict"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("PROBEWATCH_EXPOSE set, but none of") == 1


@pytest.mark.parametrize("name", ["PROBES", "TAP_LAYERS", "VECTORS", "CONFIG"])
def test_one_of_these_variables_asks_for_the_monitor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not plugin.is_configured()
    monkeypatch.setenv(f"PROBEWATCH_{name}", "")
    assert not plugin.is_configured()
    monkeypatch.setenv(f"PROBEWATCH_{name}", "x")
    assert plugin.is_configured()


@pytest.mark.parametrize("name", ["EXPOSE", "ADMIN_KEY", "STORE_TEXT", "OPEN_EVIDENCE"])
def test_other_variables_alone_do_not(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"PROBEWATCH_{name}", "1")
    assert not plugin.is_configured()


def test_a_missing_artifact_stops_the_process_and_files_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("monitor.refusal.print_at_exit", lambda: None)
    monkeypatch.setenv("PROBEWATCH_REFUSAL_FILE", str(tmp_path / "reason"))
    monkeypatch.setenv("PROBEWATCH_PROBES", str(tmp_path / "none.safetensors"))
    with pytest.raises(AttachError, match=r"none\.safetensors"):
        plugin.register()
    assert "none.safetensors" in (tmp_path / "reason").read_text()


def test_a_wrong_setting_stops_the_process_and_files_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("monitor.refusal.print_at_exit", lambda: None)
    monkeypatch.setenv("PROBEWATCH_REFUSAL_FILE", str(tmp_path / "reason"))
    monkeypatch.setenv("PROBEWATCH_TAP_LAYERS", "one")
    with pytest.raises(ConfigurationError):
        plugin.register()
    assert "PROBEWATCH_TAP_LAYERS" in (tmp_path / "reason").read_text()


def test_a_plan_is_installed_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[Any] = []
    monkeypatch.setattr("monitor.refusal.print_at_exit", lambda: None)
    monkeypatch.setattr(
        "monitor.seam.engine.install", lambda settings, plan: installed.append((settings, plan))
    )
    monkeypatch.setenv("PROBEWATCH_TAP_LAYERS", "2,5")
    plugin.register()
    ((settings, plan),) = installed
    assert settings.tap_layers == plan.tap_layers == (2, 5)


def test_unconfigured_the_endpoint_adds_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    application = FastAPI()
    before = len(application.routes)
    plugin.endpoint_plugin().attach_router(application)
    assert len(application.routes) == before
    monkeypatch.setenv("PROBEWATCH_TAP_LAYERS", "2")
    plugin.endpoint_plugin().attach_router(application)
    assert len(application.routes) > before
