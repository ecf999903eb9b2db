"""The browser of a test run, started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from tests.pages.browser import Tab, chromium, opened

Open = Callable[..., AbstractContextManager[Tab]]


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(_chromium: Any) -> Open:
    """`with open_page(path, width=400, dark=True) as tab:` opens a page and checks what it did."""
    return partial(opened, _chromium)
