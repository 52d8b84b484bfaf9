"""The wheel: what it brings, and that an installed package finds it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from monitor.shipped import paths

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would unpack into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def shipped_by(folder: Path) -> dict[str, Any]:
    """``probewatch paths`` of the package in ``folder``."""
    command = [
        sys.executable,
        "-c",
        "import json; from monitor.shipped import paths; print(json.dumps(paths()))",
    ]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, check=True
    )
    return dict(json.loads(done.stdout))


def test_an_installed_package_finds_all_that_a_checkout_has(installed: Path) -> None:
    found, here = shipped_by(installed), dict[str, Any](paths())
    assert Path(str(found["model"])).is_relative_to(installed)
    for kind in ("probes", "vectors", "dashboards", "rules"):
        pairs = list(zip(found[kind], here[kind], strict=True))
        assert pairs, kind
        for installed_file, source in pairs:
            assert Path(installed_file).is_relative_to(installed)
            assert Path(installed_file).read_bytes() == Path(source).read_bytes()


def test_the_wheel_brings_two_packages_and_every_file_of_theirs(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"monitor", "probes"}
    tracked = subprocess.run(
        ["git", "ls-files", "monitor", "probes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert tracked
    assert [name for name in tracked if not (installed / name).is_file()] == []
