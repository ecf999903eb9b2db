"""The browser of a test run, started once, and a page of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pages.browser import Tab, chromium, opened
from tests.pages.sheets import EVIL, comparison
from xattn.pages.compare import Comparison

Open = Callable[..., AbstractContextManager[Tab]]


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(_chromium: Any) -> Open:
    """`with open_page(path, width=400, dark=True) as tab:` opens a page and checks what it did."""
    return partial(opened, _chromium)


@pytest.fixture(scope="module")
def sheet() -> Comparison:
    return comparison([EVIL, "b & c.png", "d.png"])


@pytest.fixture(scope="module")
def path(sheet: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sheet.write(tmp_path_factory.mktemp("page") / "page.html")
