"""``deploy/local/test-tools``: nothing to do where all is there; otherwise it installs, or says how, and fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from programs import program

SCRIPT = Path(__file__).parents[2] / "deploy" / "local" / "test-tools"
NEEDED = ("prometheus", "promtool", "prometheus-alertmanager", "amtool", "chromium")


def run(folder: Path, *present: str, apt: str | None = None) -> subprocess.CompletedProcess[str]:
    """The script on a machine that has no program but those; ``apt``: the body of its apt-get."""
    for name in ("bash", "env", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    for name, body in {**dict.fromkeys(present, "exit 0"), **({"apt-get": apt} if apt else {})}.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [str(SCRIPT)], env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


def test_where_all_is_there_nothing_is_done(tmp_path: Path) -> None:
    done = run(tmp_path, *NEEDED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_system_that_is_not_debian_hears_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path, *NEEDED[:3])
    assert done.returncode == 1
    assert "lacks what Debian calls prometheus-alertmanager chromium: install it" in done.stderr


def test_what_is_missing_is_installed_or_the_command_is_told(tmp_path: Path) -> None:
    called = tmp_path / "called"
    done = run(tmp_path, "prometheus", "promtool", apt=f'echo "$@" >> {called}')
    wanted = "prometheus-alertmanager chromium"
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr
        assert called.read_text().splitlines()[1].endswith(wanted)
    else:
        assert done.returncode == 1
        assert f"please run: sudo apt-get install -y {wanted}" in done.stderr


def test_an_installation_that_fails_is_no_success(tmp_path: Path) -> None:
    assert run(tmp_path, apt="exit 100").returncode == 1


def test_a_test_that_lacks_its_program_fails_and_is_not_skipped() -> None:
    assert program("no-such-program", "bash") == shutil.which("bash")
    with pytest.raises(
        pytest.fail.Exception, match=r"no-such-program is not installed; run deploy/local/test-tools"
    ):
        program("no-such-program")
