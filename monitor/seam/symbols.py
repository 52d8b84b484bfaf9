"""Whether a vLLM has what the seam touches, told from its source text. Nothing of vLLM is imported or run."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from monitor.errors import CompatibilityError
from monitor.seam.touched import TOUCHED, Runner, Touched
from monitor.versions import NEWEST, OLDEST

Reader = Callable[[str], str | None]
"""Source text of a module by its dotted name; None where there is no such module."""

Status = Literal["present", "missing", "differs"]

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """What became of one row of the table in one vLLM. ``detail`` names what is missing or differs."""

    row: Touched
    status: Status
    detail: str = ""

    @property
    def broken(self) -> bool:
        """Whether the monitor cannot work there."""
        return self.status != "present" and not self.row.optional


def check_capabilities(version: str, runner: Runner = "both") -> None:
    """Raises ``CompatibilityError`` if the installed vLLM lacks something that every engine needs, or that the given
    model runner needs. A quarter of a second, once in a process. ``version``: for the message."""
    parts: tuple[Runner, ...] = ("both",) if runner == "both" else ("both", runner)
    for part in parts:
        broken = _broken(part)
        if broken:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
            raise CompatibilityError(
                f"vLLM {version} is not what the monitor was written for: {broken[0].detail}{more}; "
                f"install an unchanged release from {low} to {high}"
            )


@functools.cache
def _broken(part: Runner) -> list[Finding]:
    return [finding for finding in examine(TOUCHED[part], installed) if finding.broken]


def installed(module: str) -> str | None:
    """Source text of a module of the installed vLLM, found without importing it."""
    package, _, rest = module.partition(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *rest.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def examine(rows: Sequence[Touched], read: Reader) -> list[Finding]:
    """One finding a row."""
    with _without_garbage_collection():
        sources = _Sources(read)
        return [_examine(row, sources) for row in rows]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Syntax trees are many objects and no cycles; looking for some beside a loaded torch takes most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _examine(row: Touched, sources: _Sources) -> Finding:
    findings = [_examine_at(place, row, sources) for place in (row.place, *row.elsewhere)]
    for status in ("present", "differs"):
        for finding in findings:
            if finding.status == status:
                return finding
    return findings[0]


def _examine_at(place: str, row: Touched, sources: _Sources) -> Finding:
    module, _, name = place.partition(":")
    owner, _, member = name.partition(".")
    dotted = f"{module}.{name}"
    if member:
        node = sources.member(module, owner, member, own=row.how == "wraps")
    else:
        node = sources.name(module, owner)
    if node is None:
        return Finding(row, "missing", f"no {dotted}")
    if row.how == "reads":
        lacking = [each for each in _split(row.names) if sources.member(module, owner, each) is None]
        detail = f"no {', '.join(lacking)} in {dotted}"
        return Finding(row, "missing", detail) if lacking else Finding(row, "present")
    complaint = _signature(row, node, is_method=bool(member))
    return Finding(row, "differs", f"{dotted} {complaint}") if complaint else Finding(row, "present")


def _split(names: str) -> tuple[str, ...]:
    return tuple(name for name in names.split(", ") if name)


def _signature(row: Touched, node: ast.AST, is_method: bool) -> str | None:
    """What is wrong with the function's parameters, if anything."""
    if not isinstance(node, _Function):
        return "is not a function"
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    with_default = set(names[len(names) - len(given.defaults) :])
    if is_method and "staticmethod" not in map(ast.unparse, node.decorator_list):
        names = names[1:]
    named_only = [argument.arg for argument in given.kwonlyargs]
    with_default |= {
        name for name, value in zip(named_only, given.kw_defaults, strict=True) if value is not None
    }
    parameters, keywords = _split(row.names), _split(row.keywords)
    others = [name for name in (*names, *named_only) if name not in (*parameters, *keywords)]
    takes = f"takes ({', '.join([*names, *named_only])})"
    if tuple(names[: len(parameters)]) != parameters:
        return f"{takes}, not ({row.names}) first"
    if given.kwarg is None and (unknown := set(keywords) - {*names, *named_only}):
        return f"{takes}, not {', '.join(sorted(unknown))}"
    if row.exact and (others or given.vararg or given.kwarg):
        return f"{takes}, more than ({row.names})"
    if row.how == "calls" and (demanded := [name for name in others if name not in with_default]):
        return f"{takes}, and demands {', '.join(demanded)}"
    return None


class _Sources:
    """Modules of one vLLM, each parsed at most once."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._modules: dict[str, dict[str, ast.AST]] = {}
        self._classes: dict[ast.ClassDef, dict[str, ast.AST]] = {}

    def name(self, module: str, name: str) -> ast.AST | None:
        """What stands under ``name`` in a module, followed through imports."""
        return self._resolve(module, name)[1]

    def member(self, module: str, owner: str, name: str, own: bool = False) -> ast.AST | None:
        """A field or method of a class, or what it assigns to ``self``; ``own``: base classes do not count."""
        module, node = self._resolve(module, owner)
        return self._member(module, node, name, own) if isinstance(node, ast.ClassDef) else None

    def _resolve(self, module: str, name: str) -> tuple[str, ast.AST | None]:
        if module not in self._modules:
            self._modules[module] = _bindings(ast.parse(self._read(module) or ""))
        node = self._modules[module].get(name)
        if isinstance(node, ast.ImportFrom) and _package(node.module or "") == _package(module):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            module_there, there = self._resolve(str(node.module), original)
            if there is not None:
                return module_there, there
        return module, node

    def _member(self, module: str, owner: ast.ClassDef, name: str, own: bool = False) -> ast.AST | None:
        if owner not in self._classes:
            self._classes[owner] = _members(owner)
        found = self._classes[owner].get(name)
        if found is not None or own:
            return found
        for base in owner.bases:
            base = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            if isinstance(base, ast.Name):
                module_there, there = self._resolve(module, base.id)
                if isinstance(there, ast.ClassDef) and there is not owner:
                    found = self._member(module_there, there, name)
                    if found is not None:
                        return found
        return None


def _package(module: str) -> str:
    return module.partition(".")[0]


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Statements in order, also those inside ``if``, ``try``, ``for`` and ``with``, but not those of functions and
    classes."""
    for statement in body:
        yield statement
        if not isinstance(statement, _Function | ast.ClassDef):
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from _statements(getattr(statement, block, ()))


def _targets(statement: ast.AST) -> Iterator[ast.AST]:
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(statement, ast.AnnAssign):
        yield statement.target


def _bindings(scope: ast.Module | ast.ClassDef) -> dict[str, ast.AST]:
    """What stands under each name in a module or a class. A definition outweighs a stand-in (``X = object``)."""
    found: dict[str, ast.AST] = {}
    for statement in _statements(scope.body):
        if isinstance(statement, _Function | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                found[alias.asname or alias.name.partition(".")[0]] = statement
        for target in _targets(statement):
            if isinstance(target, ast.Name):
                found.setdefault(target.id, statement)
    return found


def _members(owner: ast.ClassDef) -> dict[str, ast.AST]:
    """Fields and methods of a class, and what its methods assign to ``self``."""
    found = _bindings(owner)
    for method in [node for node in found.values() if isinstance(node, _Function)]:
        for statement in _statements(method.body):
            for target in _targets(statement):
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    if target.value.id == "self":
                        found.setdefault(target.attr, statement)
    return found
