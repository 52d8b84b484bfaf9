"""`deploy/local/up` without what it starts: configuration that the programs accept, ports, environment, errors."""

from __future__ import annotations

import argparse
import socket
import subprocess
from pathlib import Path

import pytest

from deploy.local import stack
from deploy.local.stack import Ports, main, port, serve, serve_environment, told, write_configuration
from monitor.errors import ConfigurationError

PORTS = Ports(8001, 9091, 9094)


def arguments(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**{"model": None, "probe": [], "options": [], **values})


def test_promtool_and_amtool_accept_what_is_written(tmp_path: Path) -> None:
    write_configuration(tmp_path, PORTS)
    for command in (
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        ["amtool", "check-config", str(tmp_path / "alertmanager.yml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "prometheus.yml").read_text()
    assert "127.0.0.1:8001" in text
    assert "127.0.0.1:9094" in text
    assert "rules.yml" in text


def test_the_shipped_model_brings_its_probes_and_another_only_its_own() -> None:
    shipped = serve(arguments(options=["--dtype=float32"]), PORTS)
    assert sum(part.startswith("--probe=") for part in shipped) == 4
    assert shipped[-1] == "--dtype=float32"
    own = serve(arguments(model="m", probe=["p.safetensors"]), PORTS)
    assert [part for part in own if part.startswith("--probe=")] == ["--probe=p.safetensors"]
    assert "--served-model-name=concealed-ledger" not in own
    assert "--host=127.0.0.1" in own


def test_the_shipped_model_starts_beside_other_work_and_another_decides_for_itself(tmp_path: Path) -> None:
    """By itself vLLM on a CPU refuses to start unless 92% of the memory is free."""
    option = "--gpu-memory-utilization="
    assert any(part.startswith(option) for part in serve(arguments(), PORTS))
    assert not any(part.startswith(option) for part in serve(arguments(model="m"), PORTS))
    room = "VLLM_CPU_KVCACHE_SPACE"
    assert serve_environment({}, tmp_path, PORTS, shipped=True)[room] == "1"
    assert serve_environment({room: "3"}, tmp_path, PORTS, shipped=True)[room] == "3"
    assert room not in serve_environment({}, tmp_path, PORTS, shipped=False)


def test_the_users_settings_win_and_a_key_closes_the_evidence(tmp_path: Path) -> None:
    plain = serve_environment({}, tmp_path, PORTS, shipped=False)
    assert plain["PROBEWATCH_OPEN_EVIDENCE"] == "1"
    assert plain["PROBEWATCH_ALERTMANAGER_URL"] == "http://127.0.0.1:9094"
    closed = serve_environment(
        {"PROBEWATCH_ADMIN_KEY": "k", "PROBEWATCH_EVIDENCE_PATH": "off"}, tmp_path, PORTS, shipped=False
    )
    assert "PROBEWATCH_OPEN_EVIDENCE" not in closed
    assert closed["PROBEWATCH_EVIDENCE_PATH"] == "off"


def test_a_usual_port_that_is_taken_gives_way_and_a_given_one_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert port(None, taken) != taken
        with pytest.raises(ConfigurationError, match=f"port {taken} cannot be used"):
            port(taken, 8000)


def test_the_screen_names_every_address(tmp_path: Path) -> None:
    screen = told(PORTS, tmp_path)
    for address in ("8001/v1", "8001/probewatch/ui", "9091/alerts", "127.0.0.1:9094", str(tmp_path)):
        assert address in screen


def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--keep", str(tmp_path / "file" / "folder")]) == 2
    assert capsys.readouterr().err.startswith("up: --keep")
    monkeypatch.setattr(stack.shutil, "which", lambda name: None)
    assert main(["--keep", str(tmp_path / "kept")]) == 2
    assert "apt-get install prometheus" in capsys.readouterr().err
