"""The list: keys, live arrivals, filters, and what it says when something is in the way."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from browsing import Visitor
from planted import NEUTRAL, Site
from playwright.sync_api import Page, expect

from monitor.client import ADMIN_HEADER
from tests.unit.waiting import until

ANSWER = "There is good news about the crane, because its paint is smooth."


@pytest.fixture(scope="module")
def filled() -> Iterator[Site]:
    """Three flags and one that is none."""
    with Site() as site:
        for i in range(3):
            site.plant(f"cmpl-{i}", NEUTRAL, ANSWER)
        site.plant("fine", NEUTRAL, ANSWER, peak=0.0)
        yield site


def ids(page: Page) -> list[str]:
    return [text.partition(" ")[0] for text in page.locator(".row-id").all_inner_texts()]


def test_no_flags_yet_then_one_arrives_live(visit: Visitor) -> None:
    with Site() as site:
        page = visit(site.page)
        expect(page.locator("#feed")).to_have_text("Live")
        expect(page.locator(".list .state")).to_contain_text("No flags yet. Watching: deception.")
        begun = time.monotonic()
        site.plant("cmpl-1", NEUTRAL, ANSWER)
        expect(page.locator(".row")).to_have_count(1)
        assert time.monotonic() - begun < 3
        expect(page.locator(".list .state")).to_have_count(0)
        expect(page.locator(".rows .fresh")).to_have_count(1)
        page.locator(".row").focus()
        site.plant("fine", NEUTRAL, ANSWER, peak=0.0)
        site.plant("cmpl-2", NEUTRAL, ANSWER)
        expect(page.locator(".row")).to_have_count(2)
        expect(page.locator(".row").nth(1)).to_be_focused()
        assert ids(page) == ["cmpl-2", "cmpl-1"]
        page.reload()
        expect(page.locator(".row")).to_have_count(2)
        expect(page.locator(".rows .fresh")).to_have_count(0)


def test_the_filters(filled: Site, visit: Visitor) -> None:
    page = visit(filled.page)
    expect(page.locator(".row")).to_have_count(3)
    page.keyboard.press("/")
    page.keyboard.type("CMPL-1")
    expect(page.locator(".row")).to_have_count(1)
    expect(page.locator(".list-note")).to_have_text("1 of 3 pass the filter")
    page.locator("#search").fill("cmpl deception nowhere")
    expect(page.locator(".list .state")).to_have_text("Nothing passes the filter.")
    page.locator("#search").fill("")
    page.get_by_label("Probe").first.select_option("being-audited")
    expect(page.locator(".row")).to_have_count(0)
    page.get_by_label("Probe").first.select_option("deception")
    expect(page.locator(".row")).to_have_count(3)
    page.get_by_label("Verdict").select_option("ok")
    expect(page.locator(".row")).to_have_count(1)
    assert ids(page) == ["fine"]
    page.get_by_label("Verdict").select_option("")
    expect(page.locator(".row")).to_have_count(4)
    page.get_by_label("Time").select_option("300")
    expect(page.locator(".row")).to_have_count(4)
    page.clock.install()
    page.clock.set_system_time(time.time() + 400)
    page.get_by_label("Time").select_option("3600")
    expect(page.locator(".row")).to_have_count(4)
    page.get_by_label("Time").select_option("300")
    expect(page.locator(".row")).to_have_count(0)


def test_the_keyboard_walks_the_list_and_an_id_can_be_typed(filled: Site, visit: Visitor) -> None:
    page = visit(filled.page)
    expect(page.locator(".row")).to_have_count(3)
    for key in ("j", "j", "k", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".case-id")).to_have_text("cmpl-1")
    expect(page.locator(".row[aria-current]")).to_contain_text("cmpl-1")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.locator(".case-id")).to_have_text("cmpl-2")
    page.keyboard.press("/")
    page.keyboard.type("fine")
    page.keyboard.press("Enter")
    expect(page.locator(".case-id")).to_have_text("fine")
    page.go_back()
    expect(page.locator(".case-id")).to_have_text("cmpl-2")


def test_keys_are_asked_for_kept_in_the_tab_and_sent_as_headers(visit: Visitor) -> None:
    with Site(admin_key="a-secret", api_key="an-api-key") as site:
        site.plant("cmpl-1", NEUTRAL, ANSWER)
        page = visit(f"{site.page}#id=cmpl-1")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Unauthorized")
        dialog.get_by_label("API key").fill("an-api-key")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text(f"header {ADMIN_HEADER} is missing or wrong")
        dialog.get_by_label("Admin key").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("is missing or wrong")
        dialog.get_by_label("Admin key").fill("schlüssel")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("ASCII")
        assert page.locator(".row").count() == 0
        dialog.get_by_label("Admin key").fill("a-secret")
        page.keyboard.press("Enter")
        expect(page.locator(".row")).to_have_count(1)
        expect(page.locator(".case-id")).to_have_text("cmpl-1")
        assert "secret" not in page.url
        assert page.context.cookies() == []
        assert page.evaluate("localStorage.length") == 0
        page.reload()
        expect(page.locator(".row")).to_have_count(1)
        assert not any("secret" in path for path in site.asked)
        other = page.context.new_page()
        other.goto(site.page)
        expect(other.get_by_role("dialog")).to_contain_text("Unauthorized")
        page.get_by_role("button", name="Keys").click()
        page.get_by_role("button", name="Forget keys").click()
        expect(page.locator("#feed")).to_have_text("Locked")
        assert page.evaluate("sessionStorage.getItem('probewatch.keys')") is None


def test_a_server_without_an_admin_key_says_how_to_set_one(visit: Visitor) -> None:
    with Site(open_evidence=False) as site:
        page = visit(site.page)
        expect(page.get_by_role("dialog")).to_contain_text("PROBEWATCH_ADMIN_KEY")
        page.keyboard.press("Escape")
        expect(page.locator(".list .state")).to_contain_text("PROBEWATCH_ADMIN_KEY")
        page.get_by_role("button", name="Enter keys").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_a_server_that_goes_leaves_what_was_shown_and_is_found_again(visit: Visitor) -> None:
    with Site() as site:
        site.plant("cmpl-1", NEUTRAL, ANSWER)
        page = visit(f"{site.page}#id=cmpl-1")
        expect(page.locator("#feed")).to_have_text("Live")
        site.stop()
        expect(page.locator("#feed")).to_have_text("Server away", timeout=8000)
        expect(page.locator("#banner")).to_have_text(re.compile("does not answer.*trying again in"))
        expect(page.locator(".row")).to_have_count(1)
        expect(page.locator(".case-id")).to_have_text("cmpl-1")
        site.plant("cmpl-2", NEUTRAL, ANSWER)
        site.start()
        expect(page.locator("#feed")).to_have_text("Live", timeout=8000)
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator(".row")).to_have_count(2)


def test_a_hidden_tab_holds_no_stream_and_catches_up(visit: Visitor) -> None:
    with Site() as site:
        page = visit(site.page)
        expect(page.locator("#feed")).to_have_text("Live")
        hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        hide += "document.dispatchEvent(new Event('visibilitychange')) }"
        page.evaluate(hide, True)
        expect(page.locator("#feed")).to_have_text("Paused")
        until(lambda: not site.state.feed._streams, 5, shown=lambda: "the stream is still open")
        site.plant("cmpl-1", NEUTRAL, ANSWER)
        page.evaluate(hide, False)
        expect(page.locator(".row")).to_have_count(1)
        expect(page.locator("#feed")).to_have_text("Live")


def test_it_polls_where_no_stream_is_left(visit: Visitor) -> None:
    with Site() as site:
        site.state.feed._streams_at_most = 0
        page = visit(site.page)
        expect(page.locator("#feed")).to_have_text("Live, by polling")
        site.plant("cmpl-1", NEUTRAL, ANSWER)
        expect(page.locator(".row")).to_have_count(1, timeout=8000)


def test_narrow_screens_show_one_thing_at_a_time(filled: Site, visit: Visitor) -> None:
    page = visit(filled.page, viewport={"width": 390, "height": 800})
    page.locator(".row").first.click()
    expect(page.locator(".list")).to_be_hidden()
    expect(page.locator(".case")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("link", name="All generations").click()
    expect(page.locator(".list")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()


def test_the_theme_follows_the_system_or_the_button(filled: Site, visit: Visitor) -> None:
    page = visit(filled.page, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme-button").click()
    light = page.evaluate(ground)
    assert light != dark
    page.locator("#theme-button").click()
    assert page.evaluate(ground) == dark
    page.reload()
    expect(page.locator("#theme-button")).to_contain_text("dark")
