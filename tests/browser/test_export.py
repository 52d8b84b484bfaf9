"""A case as one file: opened from disk, it shows what the page showed and asks nobody for anything."""

from __future__ import annotations

import time
from pathlib import Path

from browsing import Visitor
from planted import Site
from playwright.sync_api import expect

from monitor.ui.case_file import case_html
from monitor.ui.command import export

HOSTILE = "</script><script>window.owned=1</script><!--<script>"
ANSWER = [" It", " is", f" {HOSTILE}", " smooth", " and", " $& $1 $`", " new", "."]


def test_the_exported_file_stands_alone(tmp_path: Path, visit: Visitor) -> None:
    with Site() as site:
        site.plant(f"cmpl{HOSTILE}", ["Is", " it", "?"], ANSWER)
        page = visit(site.page)
        page.locator(".row").click()
        shown = page.locator(".tokens .t")
        expect(shown).to_have_count(11)
        before = shown.evaluate_all("spans => spans.map(span => [span.className, span.textContent])")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Export").click()
        assert saved.value.suggested_filename.endswith(".html")
        file = tmp_path / "case.html"
        saved.value.save_as(file)
        page.context.close()
    alone = visit(file.as_uri())
    tokens = alone.locator(".tokens .t")
    expect(tokens).to_have_count(11)
    assert tokens.evaluate_all("spans => spans.map(span => [span.className, span.textContent])") == before
    assert alone.locator(".case-id").text_content() == f"cmpl{HOSTILE}"
    assert alone.evaluate("window.owned") is None
    expect(alone.locator(".origin")).to_contain_text("Exported")
    alone.keyboard.press("p")
    expect(alone.locator(".inspector")).to_contain_text("peak")
    assert alone.evaluate("document.scripts.length") == 2
    alone.set_viewport_size({"width": 390, "height": 800})
    expect(alone.locator(".tokens")).to_be_visible()


def test_the_command_writes_the_same_file(tmp_path: Path, visit: Visitor) -> None:
    with Site(admin_key="a-secret") as site:
        site.plant("cmpl-1", ["Is", " it", "?"], ANSWER)
        file = export(site.url, "cmpl-1", tmp_path / "case.html", None, "a-secret")
    page = visit(file.as_uri())
    expect(page.locator(".case-id")).to_have_text("cmpl-1")
    expect(page.get_by_role("radio", name="deception")).to_contain_text("flagged \u00b7 alert")
    assert "a-secret" not in file.read_text()


def test_nothing_but_the_own_script_runs_in_the_file(tmp_path: Path, visit: Visitor) -> None:
    """The policy of the file names digests: even markup in it would not run."""
    case = {
        "id": "x",
        "model": "m",
        "verdict": "ok",
        "probes": {},
        "coverage": {"prompt": 1.0, "generated": 1.0},
    }
    html = case_html(case, [], "http://127.0.0.1", time.time())
    file = tmp_path / "case.html"
    file.write_text(html.replace("</body>", "<script>window.owned = 1</script></body>"))
    page = visit(file.as_uri())
    expect(page.locator(".case .state")).to_contain_text("No probe was attached")
    assert page.evaluate("window.owned") is None
    assert "Content Security Policy" in visit.faults.pop()
