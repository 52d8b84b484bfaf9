"""Logit-lens words on the page: asked for, shown, refused with a reason, and passed on in the exported file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Visitor
from planted import NEUTRAL, Site
from playwright.sync_api import expect

from monitor.ui.command import export
from monitor.words import NoWords, Words

HOSTILE = "<img src=x onerror=window.owned=1>"
PROMPT = ["Is", " it", "?"]
ANSWER = [" It", " is", f" {HOSTILE}", " smooth", " and", " new", "."]
SHARES = (0.5, 0.25, 0.01)


def words_of_the_answer(question: dict[str, Any]) -> dict[str, Any]:
    """The last tokens that were asked about, as if the model would say them."""
    words = [
        {"token_id": token, "probability": share}
        for token, share in zip(question["ids"][-3:], SHARES, strict=True)
    ]
    residual = [0.0, 0.0, 0.0, 0.0]
    return {
        "readings": [{"layer": layer, "words": words, "residual": residual} for layer in question["layers"]]
    }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site() as found:
        found.state.words = Words(lambda: tmp_path, 1, words_of_the_answer)
        found.plant("lie", PROMPT, ANSWER)
        yield found


def test_words_are_shown_when_asked_for_and_never_become_markup(site: Site, visit: Visitor) -> None:
    page = visit(f"{site.page}#id=lie")
    box = page.locator(".words")
    expect(box.get_by_role("button", name="Show words")).to_be_visible()
    assert "/v1/probewatch/words" not in site.asked, "nothing is replayed before somebody asks"
    page.keyboard.press("w")
    expect(box.locator("li .word")).to_have_text(2 * [" is", f" {HOSTILE}", " smooth"])
    expect(box.locator("li small")).to_have_text(2 * ["50%", "25%", "1%"])
    expect(box.locator("figcaption")).to_have_text(["after block 1", "after block 2"])
    expect(box).to_contain_text("The next token was “ and”")
    expect(box).to_contain_text("another precision")  # the planted residual is not what was served
    assert page.evaluate("window.owned") is None
    page.get_by_role("radio", name="believed-valence").click()
    expect(box.get_by_role("button", name="Show words")).to_be_visible()
    page.get_by_role("radio", name="deception").click()
    expect(box.locator("li")).to_have_count(6)
    assert site.asked.count("/v1/probewatch/words") == 1


def test_where_there_are_none_the_page_says_why(site: Site, visit: Visitor) -> None:
    def refuse(question: dict[str, Any]) -> dict[str, Any]:
        raise NoWords("the moon is too far")

    site.state.words = Words(lambda: Path("nowhere"), 1, refuse)
    page = visit(f"{site.page}#id=lie")
    page.get_by_role("button", name="Show words").click()
    expect(page.locator(".words .why")).to_have_text("the moon is too far")
    expect(page.get_by_role("button", name="Show words")).to_be_visible()
    site.state.words = None
    page.get_by_role("button", name="Show words").click()
    expect(page.locator(".words .why")).to_contain_text("replays nothing")


def test_the_exported_file_shows_what_was_asked_for_and_offers_nothing_else(
    site: Site, visit: Visitor, tmp_path: Path
) -> None:
    site.plant("fine", "Is it fine?", NEUTRAL, peak=1.0)
    page = visit(f"{site.page}#id=lie")
    page.get_by_role("button", name="Show words").click()
    expect(page.locator(".words li")).to_have_count(6)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export").click()
    saved.value.save_as(tmp_path / "page.html")
    export(site.url, "lie", tmp_path / "command.html", None, None, with_words=True)
    export(site.url, "fine", tmp_path / "without.html", None, None)
    for name, shown in (("page", 6), ("command", 6), ("without", 0)):
        alone = visit((tmp_path / f"{name}.html").as_uri())
        expect(alone.locator(".tokens")).to_be_visible()
        expect(alone.locator(".words li")).to_have_count(shown)
        alone.keyboard.press("w")
        expect(alone.get_by_role("button", name="Show words")).to_have_count(0)
