"""The table of what the seam touches in vLLM: that the check sees what is wrong, and that the table is complete."""

from __future__ import annotations

import ast
import dataclasses
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.compat.__main__ import choose, look
from deploy.compat.page import page, summary, what
from deploy.compat.wheels import UnreadableIndex, releases, source
from monitor.errors import CompatibilityError
from monitor.seam import symbols
from monitor.seam.symbols import Finding, check_capabilities, examine
from monitor.seam.touched import TOUCHED, How, Touched

SEAM = Path(__file__).parents[2] / "monitor" / "seam"
ROWS = [row for rows in TOUCHED.values() for row in rows]

FAKE = {
    "vllm.base": """
class Base:
    def __init__(self):
        self.device = None
    def inherited(self, x): ...
""",
    "vllm.worker": """
from typing import TYPE_CHECKING
from vllm.base import Base
if TYPE_CHECKING:
    from vllm.batch import Batch
else:
    Batch = object

class Worker(Base):
    model_runner: object
    def __init__(self):
        super().__init__()
        if True:
            self.first, self.second = 1, 2
    @property
    def rank(self): ...
    def execute(self, scheduler_output, extra=None): ...
    def demanding(self, rows, mode, *, strict): ...
    def obliging(self, rows, **options): ...
    @staticmethod
    def static(rows): ...

async def attach(app, tasks): ...
""",
    "vllm.batch": "class Batch:\n    req_ids: list[str]\n",
    "vllm.reexport": "try:\n    from vllm.worker import attach as attach_plugins\nexcept ImportError:\n    ...\n",
}


def found(how: How, place: str, names: str = "", keywords: str = "", exact: bool = False) -> Finding:
    row = Touched(how, f"vllm.{place}", names, "a test", keywords=keywords, exact=exact)
    return examine([row], FAKE.get)[0]


@pytest.mark.parametrize(
    ("how", "place", "names"),
    [
        ("reads", "worker:Worker", "model_runner, first, second, rank, execute"),
        ("reads", "worker:Worker", "device"),  # assigned by a base class in another module
        ("reads", "worker:Batch", "req_ids"),  # imported for type checkers, `object` at run time
        ("reads", "worker:attach", ""),
        ("wraps", "worker:Worker.execute", "scheduler_output"),
        ("shadows", "worker:Worker.inherited", "x"),
        ("calls", "worker:Worker.execute", "scheduler_output"),
        ("calls", "worker:Worker.static", "rows"),
        ("wraps", "reexport:attach_plugins", "app"),
    ],
)
def test_what_is_there_is_found(how: How, place: str, names: str) -> None:
    assert found(how, place, names) == Finding(found(how, place, names).row, "present")


@pytest.mark.parametrize(
    ("how", "place", "names", "detail"),
    [
        ("reads", "gone:Worker", "", "no vllm.gone.Worker"),
        ("reads", "worker:Gone", "", "no vllm.worker.Gone"),
        ("reads", "worker:Worker", "device, third", "no third in vllm.worker.Worker"),
        ("calls", "worker:Worker.gone", "", "no vllm.worker.Worker.gone"),
        ("wraps", "worker:Worker.inherited", "x", "no vllm.worker.Worker.inherited"),  # not its own
    ],
)
def test_what_is_missing_is_named(how: How, place: str, names: str, detail: str) -> None:
    finding = found(how, place, names)
    assert (finding.status, finding.detail, finding.broken) == ("missing", detail, True)


@pytest.mark.parametrize(
    ("finding", "detail"),
    [
        (
            found("wraps", "worker:Worker.execute", "output"),
            "takes (scheduler_output, extra), not (output) first",
        ),
        (
            found("answers", "worker:Worker.execute", "scheduler_output", exact=True),
            "more than (scheduler_output)",
        ),
        (found("answers", "worker:Worker.obliging", "rows", exact=True), "more than (rows)"),
        (found("calls", "worker:Worker.demanding", "rows"), "and demands mode, strict"),
        (found("calls", "worker:Worker.execute", "scheduler_output", "dummy"), "not dummy"),
        (found("calls", "worker:Worker.model_runner"), "is not a function"),
    ],
)
def test_a_changed_signature_is_described(finding: Finding, detail: str) -> None:
    assert (finding.status, finding.broken) == ("differs", True)
    assert detail in finding.detail


def test_a_parameter_passed_by_name_may_stand_anywhere_or_among_options() -> None:
    assert found("calls", "worker:Worker.demanding", "rows, mode", "strict").status == "present"
    assert found("calls", "worker:Worker.obliging", "rows", "strict").status == "present"


def test_an_optional_row_is_reported_and_breaks_nothing() -> None:
    row = Touched("reads", "vllm.worker:Worker", "third", "a test", optional=True)
    (finding,) = examine([row], FAKE.get)
    assert (finding.status, finding.broken) == ("missing", False)


def test_another_place_serves_as_well() -> None:
    row = Touched("wraps", "vllm.gone:attach", "app", "a test", elsewhere=("vllm.worker:attach",))
    assert examine([row], FAKE.get)[0].status == "present"
    other = dataclasses.replace(row, names="application")
    assert examine([other], FAKE.get)[0].status == "differs", "what is there tells more than what is not"


def test_each_module_is_read_once() -> None:
    asked: list[str] = []

    def read(module: str) -> str | None:
        asked.append(module)
        return FAKE.get(module)

    examine([Touched("reads", "vllm.worker:Worker", "device, rank", "a test")] * 2, read)
    assert sorted(asked) == ["vllm.base", "vllm.worker"]


def test_an_engine_refuses_by_name_and_asks_only_for_its_own_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "both": (Touched("reads", "vllm.worker:Worker", "device", "a test"),),
        "v1": (),
        "v2": (
            Touched("reads", "vllm.worker:Worker", "third", "a test"),
            Touched("reads", "vllm.worker:Worker", "fourth", "a test"),
        ),
    }
    monkeypatch.setattr(symbols, "TOUCHED", table)
    monkeypatch.setattr(symbols, "installed", FAKE.get)
    symbols._broken.cache_clear()
    try:
        check_capabilities("0.32.0")
        check_capabilities("0.32.0", "v1")
        with pytest.raises(
            CompatibilityError,
            match=r"vLLM 0\.32\.0 .*no third in vllm\.worker\.Worker \(and 1 more\); install",
        ):
            check_capabilities("0.32.0", "v2")
    finally:
        symbols._broken.cache_clear()


# The table covers the seam.


def trees() -> Iterator[ast.Module]:
    own = {"touched.py", "symbols.py"}
    yield from (ast.parse(path.read_text()) for path in sorted(SEAM.glob("*.py")) if path.name not in own)


def uncovered_imports(tree: ast.Module) -> list[str]:
    """Names imported from vLLM that no row speaks of; a module stands in the table by what is in it."""
    known = {place.replace(":", ".") for row in ROWS for place in (row.place, *row.elsewhere)}
    parts = {name.rsplit(".", cut)[0] for name in known for cut in range(3)}
    imported = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
        for alias in node.names
    ]
    return [name for name in imported if name not in parts]


def uncovered_wraps(tree: ast.Module) -> list[str]:
    """Methods that ``wrap`` replaces and no row says so."""
    known = {row.place.rpartition(".")[2] for row in ROWS if row.how == "wraps"}
    wrapped = [
        ast.literal_eval(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "wrap"
    ]
    return [name for name in wrapped if name not in known]


# Local names under which the seam holds objects of vLLM.
HELD = """
runner batch table tables worker scheduler_output kv_cache_config group spec vllm_config model_config c
model_runner_output client_outputs output outputs stage intermediate get_pp_group get_tp_group request
req_state parent request_output engine_client client scheduler manager prepared
"""
OF_VLLM = set(HELD.split())
# What NumPy, torch and Python have on them, and what is the monitor's own.
NOT_OF_VLLM = {"type", "astype", "tolist", "get", "pop", "values"}
OURS = {"probewatch", "probewatch_plan"}


def uncovered_attributes(tree: ast.Module) -> list[str]:
    """Attributes read off vLLM's objects, also through ``getattr``, that no row speaks of."""
    known = {name for row in ROWS for name in row.names.split(", ")}
    known |= {row.place.rpartition(".")[2] for row in ROWS} | NOT_OF_VLLM
    return [name for name in _attributes(tree, OF_VLLM) if name not in known]


def _attributes(node: ast.AST, of: set[str]) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and [arg.arg for arg in node.args.args[:2]] == ["original", "self"]:
        of = of | {"self"}  # what `wrap` puts around a method of vLLM
    if isinstance(node, ast.Attribute) and _root(node) in of:
        yield node.attr
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and _root(node.args[0]) in of:
        if isinstance(node.args[1], ast.Constant):
            yield str(node.args[1].value)
    for child in ast.iter_child_nodes(node):
        yield from _attributes(child, of)


def _root(node: ast.AST) -> str | None:
    """The name an expression starts from; None if it leads through what is the monitor's own."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute) and node.attr in OURS:
            return None
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


RULES = [uncovered_imports, uncovered_wraps, uncovered_attributes]


def test_the_table_covers_the_seam() -> None:
    missing = [name for tree in trees() for rule in RULES for name in rule(tree)]
    assert missing == [], "touched in monitor/seam/ and not in monitor/seam/touched.py"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (
            "def f():\n    from vllm.v1.worker.tpu_worker import TPUWorker",
            "vllm.v1.worker.tpu_worker.TPUWorker",
        ),
        ("from vllm.v1.worker import tpu_worker", "vllm.v1.worker.tpu_worker"),
        ("wrap(worker_class, 'save_model', save_model)", "save_model"),
        ("rows = runner.input_batch.row_count", "row_count"),
        ("tables.tables[0].pages", "pages"),
        ("def sample(original, self, *args):\n    return self.sampler", "sampler"),
        ("getattr(c.parallel_config, 'ring_size', 1)", "ring_size"),
    ],
)
def test_an_uncovered_touch_is_caught(source: str, name: str) -> None:
    assert name in [each for rule in RULES for each in rule(ast.parse(source))]


def test_the_rules_see_the_seam() -> None:
    text = "".join(map(ast.unparse, trees()))
    unused = sorted(name for name in OF_VLLM if name not in text)
    assert unused == [], "no such name in monitor/seam/ any more"


# make compat.


def wheel_of(modules: dict[str, str]) -> zipfile.ZipFile:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as wheel:
        for module, text in modules.items():
            wheel.writestr(f"{module.replace('.', '/')}.py", text)
        wheel.writestr("vllm/__init__.py", "from .version import __version__")
    return zipfile.ZipFile(file)


def test_modules_are_read_out_of_a_wheel() -> None:
    wheel = wheel_of(FAKE)
    assert source(wheel, "vllm.batch") == FAKE["vllm.batch"]
    assert source(wheel, "vllm") == "from .version import __version__"
    assert source(wheel, "vllm.gone") is None


def test_the_newest_patch_of_each_version_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["0.9.0", "0.27.0", "0.27.10", "0.27.9", "0.28.0rc1", "0.28.0"]
    links = [f'<a href="../w/vllm-{v}-cp38-abi3-manylinux_2_31_x86_64.whl#sha256=0">w</a>' for v in files]
    links.append('<a data-yanked="" href="../w/vllm-0.28.1-cp38-abi3-manylinux_2_31_x86_64.whl">w</a>')
    monkeypatch.setattr("deploy.compat.wheels._fetch", lambda url: "\n".join(links).encode())
    found = releases("https://index/simple/vllm/")
    assert list(found) == ["0.9.0", "0.27.0", "0.27.9", "0.27.10", "0.28.0"]
    assert [wheel.version for wheel in choose(found, ["0.27", "0.28", "0.27.0"])] == [
        "0.27.10",
        "0.28.0",
        "0.27.0",
    ]
    assert found["0.9.0"].url == "https://index/simple/w/vllm-0.9.0-cp38-abi3-manylinux_2_31_x86_64.whl"
    with pytest.raises(UnreadableIndex, match=r"no wheel of vLLM 0\.2, the newest is 0\.28\.0"):
        choose(found, ["0.2"])


def test_the_page_shows_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "both": (Touched("reads", "vllm.worker:Worker", "device", "the device"),),
        "v1": (Touched("reads", "vllm.worker:Worker", "third", "a field", optional=True),),
        "v2": (Touched("calls", "vllm.worker:Worker.demanding", "rows", "a call"),),
    }
    monkeypatch.setattr("deploy.compat.__main__.TOUCHED", rows)
    columns = {"1.0": look(FAKE.get), "1.1": look(lambda module: None)}
    shown = page(columns)
    assert "| `vllm.worker` `Worker`: `device` | reads | the device | yes | **missing** |" in shown
    assert "| `vllm.worker` `Worker`: `third` | reads | a field (optional) | no | no |" in shown
    assert "| `vllm.worker` `Worker.demanding(rows)` | calls | a call | **differs** | **missing** |" in shown
    assert "- 1.0: vllm.worker.Worker.demanding takes (rows, mode, strict), and demands mode, strict" in shown
    assert summary(columns) == "3 rows, 2 versions; missing or different: 1 in 1.0, 2 in 1.1."


def test_docs_hold_every_row() -> None:
    shown = (SEAM.parents[1] / "docs" / "compatibility.md").read_text()
    lacking = [row.place for row in ROWS if f"| {what(row)} | {row.how} | {row.why}" not in shown]
    assert lacking == [], "run `make compat`"
