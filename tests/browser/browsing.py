"""A tab of a real Chromium that remembers whatever goes wrong in it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page


class Visitor:
    """Opens addresses, each in a fresh context. ``faults``: script errors, refusals by policy, requests elsewhere."""

    def __init__(self, browser: Browser) -> None:
        self.faults: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def __call__(self, address: str, **options: Any) -> Page:
        context = self._browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda said: self.faults.append(said.text) if is_fault(said) else None)
        page.on(
            "request", lambda asked: None if within(asked.url, address) else self.faults.append(asked.url)
        )
        page.goto(address)
        return page

    def close(self) -> None:
        """Closes every tab."""
        for context in self._contexts:
            context.close()


def within(url: str, address: str) -> bool:
    """Whether a request stays with the page's own server, or with the very file that was opened."""
    home = (
        address.partition("#")[0] if address.startswith("file:") else "/".join(address.split("/")[:3]) + "/"
    )
    return url.startswith(home)


def is_fault(said: Any) -> bool:
    """Chromium writes an error for every 4xx and every lost connection; tests provoke those."""
    return said.type == "error" and "Failed to load resource" not in said.text
