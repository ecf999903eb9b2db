"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.colours import write_images


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 3 x 14 training images of 32 px."""
    return write_images(tmp_path_factory.mktemp("colours"), 14, 32, seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images go to a folder of the test session."""
    monkeypatch.setenv("XATTN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
