"""What may not stand in probes/ and monitor/: code that runs other people's bytes, and errors that vanish."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_NAMES = {
    "torch.load",
    "torch.hub.load",
    "eval",
    "exec",
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "trust_remote_code", "shell"}  # set to True
# {"monitor/file.py": {"torch.load"}}: a use that was argued for. An entry no longer needed fails the test.
ALLOWED: dict[str, set[str]] = {
    # The converter of foreign probes: an unpickler that imports nothing, and torch.load with weights_only.
    "probes/importing/pickles.py": {"pickle", "torch.load"},
}

BROAD = {"Exception", "BaseException"}


@functools.cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """All of a module's nodes: several rules look at them."""
    return tuple(ast.walk(ast.parse(source)))


def local_names(source: str) -> dict[str, str]:
    """Local name -> dotted name it was imported as, so that `from torch import load as x` hides nothing."""
    names: dict[str, str] = {}
    for node in nodes(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    names[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each forbidden module, function or argument."""
    names = local_names(source)
    for node in nodes(source):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or ""]
        else:
            imported = []
        for name in imported:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, name.partition(".")[0]  # type: ignore[attr-defined]
        if isinstance(node, ast.Name | ast.Attribute):
            root, dot, rest = ast.unparse(node).partition(".")
            if (dotted := names.get(root, root) + dot + rest) in FORBIDDEN_NAMES:
                yield node.lineno, dotted
        if isinstance(node, ast.keyword) and node.arg in FORBIDDEN_ARGUMENTS:
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                yield node.value.lineno, f"{node.arg}=True"


def vanishing_errors(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of a bare except, and of a broad one that does nothing."""
    for node in nodes(source):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
                if node.type
                else set()
            )
            silent = all(
                isinstance(line, ast.Pass | ast.Continue)
                or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in node.body
            )
            if node.type is None:
                yield node.lineno, "bare except"
            elif silent and caught & BROAD:
                yield node.lineno, "except Exception that does nothing"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            if BROAD & {ast.unparse(argument) for argument in node.args}:
                yield node.lineno, "suppress(Exception)"


def house() -> Iterator[tuple[str, str]]:
    for path in sorted([*(ROOT / "probes").rglob("*.py"), *(ROOT / "monitor").rglob("*.py")]):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_nothing_runs_other_peoples_bytes() -> None:
    found = {(path, name): line for path, source in house() for line, name in dangers(source)}
    allowed = {(path, name) for path, names in ALLOWED.items() for name in names}
    assert [
        f"{path}:{line}: {name}" for (path, name), line in found.items() if (path, name) not in allowed
    ] == []
    assert allowed <= found.keys(), "an entry of ALLOWED is no longer needed"


def test_no_error_vanishes() -> None:
    found = [f"{path}:{line}: {what}" for path, source in house() for line, what in vanishing_errors(source)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from joblib import load", "joblib"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("import torch as t\nread = t.load", "torch.load"),
        ("from torch import load as read\nread('x')", "torch.load"),
        ("eval('1')", "eval"),
        ("exec('1')", "exec"),
        ("from os import system\nsystem('ls')", "os.system"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
    ],
)
def test_a_danger_is_caught(source: str, name: str) -> None:
    assert name in [found for _, found in dangers(source)]


def test_what_only_looks_dangerous_passes() -> None:
    source = "import torch, yaml\nmodel.eval()\nyaml.safe_load(text)\nprobes.load(path)\nre.compile('x')\n"
    assert list(dangers(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept:\n    log()",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept (ValueError, BaseException) as e:\n    ...",
        "for x in y:\n    try:\n        f()\n    except Exception:\n        continue",
        "import contextlib\nwith contextlib.suppress(Exception):\n    f()",
    ],
)
def test_a_vanishing_error_is_caught(source: str) -> None:
    assert len(list(vanishing_errors(source))) == 1


def test_a_narrow_or_handled_error_passes() -> None:
    source = "try:\n    f()\nexcept KeyError:\n    pass\nexcept Exception as e:\n    log(e)\n"
    assert list(vanishing_errors(source)) == []
