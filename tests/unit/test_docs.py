"""The documents: links lead somewhere, generated parts are fresh, and what the code can be asked is written down."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from deploy import pages
from monitor import cli, doctor
from monitor.catalogue import CATALOGUE
from monitor.config import PREFIX, Settings
from monitor.unscored import Reason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]


def prose(text: str) -> str:
    """Without fenced code."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    found: set[str] = set(re.findall(r"""<a (?:id|name)=["']([^"']+)["']""", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeated = next(i for i in range(1000) if (f"{slug}-{i}" if i else slug) not in found)
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Links to local files that do not exist, and to headings that no page has."""
    links = re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", prose(text))
    links += re.findall(r"""(?:src|href)=["']([^"']+)["']""", prose(text))
    return [
        link
        for link in links
        if not re.match(r"[a-z][a-z0-9+.-]*:|//", link) and _is_broken(page, text, link)
    ]


def _is_broken(page: Path, text: str, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return True
    if not anchor or target.suffix != ".md":
        return False
    return anchor not in anchors(target.read_text(encoding="utf-8") if name else text)


def test_documents_link_to_what_exists() -> None:
    assert len(documents()) > 40
    broken = {str(page): broken_links(page, page.read_text(encoding="utf-8")) for page in documents()}
    assert {page: links for page, links in broken.items() if links} == {}


def test_a_broken_link_is_caught() -> None:
    text = (
        "# Here it is\n[a](no.md#x) [b](https://a.b) [c](#here-it-is) [c2](#nowhere) [d](LICENSE) "
        "[e](docs/metrics.md#metrics) [f](docs/metrics.md#none)\n```\n[g](code.md)\n```\n<img src='no.svg'>"
    )
    assert broken_links(ROOT / "README.md", text) == ["no.md#x", "#nowhere", "docs/metrics.md#none", "no.svg"]


def test_anchors_are_those_that_github_makes() -> None:
    assert anchors("# A `b` & [c](d.md)?\n## Twice\n## Twice\n```\n# no\n```\n") == {
        "a-b--c",
        "twice",
        "twice-1",
    }


def test_the_metric_reference_is_fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pages.main(["--check"]) == 0
    stale = tmp_path / "metrics.md"
    stale.write_text(pages.PAGE.read_text().replace("probewatch_attached", "probewatch_attacked"))
    monkeypatch.setattr(pages, "PAGE", stale)
    assert pages.main(["--check"]) == 1
    assert pages.main([]) == 0
    assert stale.read_text() == (DOCS / "metrics.md").read_text().replace("../", "../")


def test_the_metric_reference_tells_type_labels_meaning_and_alerts() -> None:
    page = (DOCS / "metrics.md").read_text()
    rows = re.findall(r"^\| `(probewatch_\w+)` \| (\w+) \| (.*?) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    listed = {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text, _ in rows
    }
    assert listed == {name: (m.type, m.labels, m.help) for name, m in CATALOGUE.items()}
    named = {name: links for name, *_, links in rows}
    assert "NotAttached" in named["probewatch_attached"]
    assert "FlagBurnFast" in named["probewatch_requests_total"], "by a recording rule"
    assert set(re.findall(r"^\| `([a-z_]+)` \| [^|]*\|$", page, re.MULTILINE)) == {r.label for r in Reason}


def test_every_setting_and_every_command_is_in_the_operating_guide() -> None:
    guide = (DOCS / "operation.md").read_text()
    written = set(re.findall(rf"`({PREFIX}\w+)`", guide))
    assert {PREFIX + name.upper() for name in Settings.model_fields} <= written
    everything = "\n".join(page.read_text(encoding="utf-8") for page in documents())
    for command in (*cli._COMMANDS, *cli._REMOTE, "serve", "paths"):
        assert f"probewatch {command}" in everything, command


def checks_of_doctor() -> set[str]:
    """The name of every check in monitor/doctor.py; what is filled in at run time stands as NAME."""
    source = Path(doctor.__file__).read_text(encoding="utf-8")
    found = set()
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        if ast.unparse(call.func) in ("Finding", "_guarded") and call.args:
            first = call.args[0]
            parts = first.values if isinstance(first, ast.JoinedStr) else [first]
            if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "NAME" for p in parts))
    return found


def test_troubleshooting_has_a_section_for_every_check_of_doctor() -> None:
    sections = set(re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE))
    checks = checks_of_doctor()
    assert len(checks) > 10
    assert checks <= sections, checks - sections
