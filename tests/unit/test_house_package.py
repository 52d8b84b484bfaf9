"""What the distribution promises: its version, entry points, dependencies, lock, make targets, documents."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

BROUGHT_BY_VLLM = {
    "numpy",
    "prometheus-client",
    "pydantic",
    "pydantic-settings",
    "pyyaml",
    "requests",
    "rich",
    "safetensors",
    "torch",
}
# Their CUDA builds break `import transformers` on CPU.
NEVER_LOCKED = {"torchvision", "torchaudio", "torchcodec", "triton"}


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


def declared_version(source: str) -> str | None:
    """The literal given to __version__, read without importing."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__version__" for target in targets):
                return str(node.value.value)
    return None


def undeclared(table: dict[str, Any]) -> list[str]:
    """What the contract promises to find in [project] and is not there."""
    plugins = table.get("entry-points", {})
    promised = {
        "console script": (table.get("scripts", {}), "monitor.cli:main"),
        "general plugin": (plugins.get("vllm.general_plugins", {}), "monitor.plugin:register"),
        "endpoint plugin": (plugins.get("vllm.endpoint_plugins", {}), "monitor.plugin:endpoint_plugin"),
    }
    return [what for what, (group, target) in promised.items() if group.get("probewatch") != target]


def intruders(dependencies: Iterable[str]) -> set[str]:
    """Hard dependencies that an environment with vLLM would not have already."""
    return {str(canonicalize_name(Requirement(line).name)) for line in dependencies} - BROUGHT_BY_VLLM


def lock_faults(lock: str, wanted: Iterable[str]) -> list[str]:
    """Lines that are not exact or must stay out, and wanted requirements that the lock does not meet."""
    faults, versions = [], {}
    for line in lock.splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        name, pins = canonicalize_name(requirement.name), list(requirement.specifier)
        if requirement.url or len(pins) != 1 or pins[0].operator != "==" or "*" in pins[0].version:
            faults.append(f"{line}: not an exact version")
            continue
        versions[name] = pins[0].version
        if name in NEVER_LOCKED:
            faults.append(f"{line}: must stay out")
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement}: the lock has {version}")
    return faults


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))


def test_one_version() -> None:
    source = (ROOT / "monitor" / "__init__.py").read_text(encoding="utf-8")
    assert declared_version(source) == project()["version"]
    assert declared_version('__version__: str = "9.9"') == "9.9"
    assert declared_version('version = "0.1.0"') is None


def test_the_promised_entry_points() -> None:
    assert undeclared(project()) == []
    assert undeclared({"scripts": {"probewatch": "monitor.cli:run"}}) == [
        "console script",
        "general plugin",
        "endpoint plugin",
    ]


def test_an_environment_with_vllm_gains_nothing_else() -> None:
    assert intruders(project()["dependencies"]) == set()
    assert intruders(["vllm>=0.26", "numpy", "PyYAML"]) == {"vllm"}


def test_the_lock_is_exact_and_covers_the_project() -> None:
    table = project()
    extras = table["optional-dependencies"]
    wanted = [*table["dependencies"], *extras["cpu"], *extras["train"], *extras["dev"], "hatchling"]
    lock = (ROOT / "deploy" / "local" / "requirements-cpu.lock").read_text(encoding="utf-8")
    assert lock_faults(lock, wanted) == []


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        ("numpy>=2.0", "not an exact version"),
        ("numpy @ https://example.org/numpy.whl", "not an exact version"),
        ("numpy==2.*", "not an exact version"),
        ("numpy==2.3.5\ntriton==3.0", "must stay out"),
        ("scipy==1.17.1", "the lock has None"),
        ("numpy==1.0", "the lock has 1.0"),
    ],
)
def test_a_faulty_lock_is_caught(lock: str, fault: str) -> None:
    assert any(fault in found for found in lock_faults(lock, ["numpy>=1.26"]))


def test_the_make_targets_and_their_scripts() -> None:
    promised = {"setup", "demo", "test", "test-unit", "lint", "bench", "organism", "probes", "clean", "help"}
    assert promised <= make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert make_targets("demo: setup\nNAME := x\n") == {"demo"}
    for script in ("deploy/local/setup", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), f"{script} is not executable"


def test_the_licence_is_the_declared_one() -> None:
    assert project()["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(
        encoding="utf-8"
    )
