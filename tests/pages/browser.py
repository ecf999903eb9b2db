"""A page opened in Chromium, as a person would, with all that it complains of and asks for."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser that is installed; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("needs a browser: install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page that is open.

    Args:
        page: of Playwright.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.trouble: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda m: self.trouble.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (self.trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def get(self, script: str, *values: Any) -> Any:
        """The value of a JavaScript expression or function."""
        return self.page.evaluate(script, *values)

    def style(self, selector: str, name: str) -> str:
        """A computed style of the first element of a selector."""
        return str(self.get("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name]))

    def frame(self) -> None:
        """Wait until what was asked for is drawn."""
        self.get("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """Wait for an expression to become true; the page's own policy forbids Playwright's way of waiting."""
        end = time.monotonic() + seconds
        while not (value := self.get(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return value

    def check(self, path: Path) -> None:
        """Nothing complained, and nothing was asked for but the page itself and what is inside it."""
        assert not self.trouble, self.trouble
        outside = {url.split("#")[0] for url in self.asked if not url.startswith(("data:", "blob:"))}
        assert outside == {path.resolve().as_uri()}, outside


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1440, height: int = 900, dark: bool = False) -> Iterator[Tab]:
    """A page from disk in a window of its own; what it did is checked at the end."""
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 600, reduced_motion="reduce"
    )
    try:
        tab = Tab(context.new_page())
        tab.page.goto(path.resolve().as_uri())
        yield tab
        tab.check(path)
        if folder := os.environ.get("XATTN_SCREENSHOTS"):  # to look at
            tab.page.screenshot(path=str(Path(folder) / f"{path.stem}-{width}-{scheme}.png"))
    finally:
        context.close()
