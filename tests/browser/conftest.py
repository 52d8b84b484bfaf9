"""A real Chromium, started once, and a visitor that fails the test on any error or any request to elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from browsing import Visitor
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Found on PATH; playwright's own downloads are not needed."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail('no Chromium on PATH; apt-get install chromium, or leave these out: -m "not browser"')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visitor]:
    """In the end: no script error, nothing refused by the policy, no request to elsewhere."""
    visitor = Visitor(chromium)
    yield visitor
    visitor.close()
    assert visitor.faults == []
