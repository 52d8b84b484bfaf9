"""The rooms of the house and their arrows (CONTRIBUTING.md draws them), held by reading the source.

Every rule is one function from a module and one of its imports to a complaint, shown to fail on an offender.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

PROBES_MAY_IMPORT = {"probes", "torch", "numpy", "scipy", "safetensors", "sklearn", "pydantic"}
# Hugging Face stays behind one module and the organism, drawing inside the reports.
PROBES_EXCEPTIONS = {
    "transformers": ("probes.hf", "probes.organism"),
    "tokenizers": ("probes.hf", "probes.organism"),
    "huggingface_hub": ("probes.hf", "probes.organism"),
    "matplotlib": ("probes.report", "probes.reports"),
}
# The top of monitor/: what composes the rooms. Nothing below may reach up to it.
COMPOSITION = ("monitor.plugin", "monitor.cli", "monitor.__main__")
SEAM = ("monitor.seam",)
CONVERTER = ("probes.importing",)
# vLLM swallows a plugin's import errors, so what its entry points name must have none to raise.
ENTRY_MODULES = {"monitor", "monitor.plugin"}


class Import(NamedTuple):
    target: str
    line: int
    at_import_time: bool


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def imports(module: str, source: str, is_package: bool = False) -> Iterator[Import]:
    """Every import statement, relative ones resolved, and import_module or __import__ with a literal name."""
    package = module if is_package else module.rpartition(".")[0]

    def targets(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            return [f"{base}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}:
                return [str(node.args[0].value)]
        return []

    def walk(node: ast.AST, runs: bool) -> Iterator[Import]:
        yield from (Import(target, node.lineno, runs) for target in targets(node))  # type: ignore[attr-defined]
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch, branch_runs in ((node.body, False), (node.orelse, runs)):
                for statement in branch:
                    yield from walk(statement, branch_runs)
            return
        runs = runs and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, runs)

    yield from walk(ast.parse(source), True)


def probes_stand_alone(module: str, found: Import) -> str | None:
    root = found.target.partition(".")[0]
    if not within(module, ("probes",)) or root in PROBES_MAY_IMPORT or root in sys.stdlib_module_names:
        return None
    if within(module, PROBES_EXCEPTIONS.get(root, ())):
        return None
    return f"probes/ knows nothing of {root}"


def only_the_seam_knows_vllm(module: str, found: Import) -> str | None:
    if within(found.target, ("vllm",)) and not within(module, SEAM):
        return "only monitor/seam/ imports vllm"
    return None


def arrows_point_down(module: str, found: Import) -> str | None:
    if not within(module, ("monitor",)) or within(module, COMPOSITION):
        return None
    if within(found.target, COMPOSITION):
        return "only the composition root stands above the rooms: nothing imports it"
    if within(found.target, SEAM) and not within(module, SEAM):
        return "a pure room does not import monitor.seam"
    return None


def entry_cannot_fail(module: str, found: Import) -> str | None:
    root = found.target.partition(".")[0]
    if module in ENTRY_MODULES and found.at_import_time and root not in sys.stdlib_module_names:
        return "what vLLM's entry points load imports only the standard library at module level"
    return None


def foreign_files_stay_outside(module: str, found: Import) -> str | None:
    if within(found.target, CONVERTER) and not within(module, CONVERTER):
        return "what opens foreign files is a command of its own, and no server imports it"
    if within(found.target, ("probes.cli",)) and not within(module, ("probes.cli", "monitor.cli")):
        return "only the command line reaches the commands"
    return None


RULES = [
    foreign_files_stay_outside,
    probes_stand_alone,
    only_the_seam_knows_vllm,
    arrows_point_down,
    entry_cannot_fail,
]


def complaints(module: str, source: str, is_package: bool = False) -> list[str]:
    return [
        f"{module}:{found.line}: imports {found.target}: {complaint}"
        for found in imports(module, source, is_package)
        for rule in RULES
        if (complaint := rule(module, found)) is not None
    ]


def modules() -> Iterator[tuple[str, str, bool]]:
    """(dotted name, source, whether it is a package) of everything under probes/ and monitor/."""
    for path in sorted([*(ROOT / "probes").rglob("*.py"), *(ROOT / "monitor").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if is_package else parts), path.read_text(encoding="utf-8"), is_package


def test_the_house_keeps_its_arrows() -> None:
    scanned = list(modules())
    assert {"probes", "monitor"} <= {name for name, _, _ in scanned}, "the scan found no house to check"
    assert [line for module in scanned for line in complaints(*module)] == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("probes.kinds", "import monitor.events", "knows nothing of monitor"),
        ("probes.hf", "from vllm import LLM", "knows nothing of vllm"),
        ("probes.kinds", "def f():\n    import transformers", "knows nothing of transformers"),
        ("probes.kinds", "import matplotlib.pyplot as plt", "knows nothing of matplotlib"),
        ("probes.organism.train", "importlib.import_module('monitor')", "knows nothing of monitor"),
        ("monitor.events", "from vllm.config import VllmConfig", "only monitor/seam/ imports vllm"),
        ("monitor.cli", "__import__('vllm')", "only monitor/seam/ imports vllm"),
        ("monitor.events", "from monitor import seam", "a pure room does not import monitor.seam"),
        ("monitor.events", "from .seam.wire import send", "a pure room does not import monitor.seam"),
        ("monitor.seam.http", "from ..plugin import register", "only the composition root stands above"),
        ("monitor.events", "import monitor.cli", "only the composition root stands above"),
        ("monitor.control", "import probes.importing.pickles", "no server imports it"),
        ("probes.artifact", "def f():\n    from probes.importing import convert", "no server imports it"),
        ("monitor.http", "from probes import cli", "only the command line reaches"),
        ("monitor.plugin", "import torch", "only the standard library at module level"),
        ("monitor.plugin", "try:\n    import torch\nexcept ImportError: ...", "only the standard library"),
    ],
)
def test_an_offender_is_caught(module: str, source: str, expected: str) -> None:
    assert any(expected in line for line in complaints(module, source)), complaints(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("probes.hf", "import transformers"),
        ("probes.organism.tokenizer", "from tokenizers import Tokenizer"),
        ("probes.kinds", "from .manifest import ProbeManifest\nimport json, torch.nn"),
        ("monitor.seam.http", "import vllm\nfrom monitor.events import StepView\nfrom . import wire"),
        ("monitor.cli", "from monitor.seam import serve"),
        ("monitor.plugin", "import os\ndef register() -> None:\n    from monitor.seam import install"),
        ("monitor.plugin", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_the_innocent_pass(module: str, source: str) -> None:
    assert complaints(module, source) == []
