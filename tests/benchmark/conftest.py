"""A small run that several tests read, and the settings that make it the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmark.runs import small
from xattn.benchmark.run import run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are in one order
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(small(), folder)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of two classes, one of them damaged."""
    from PIL import Image

    for name, grey in (("cat/a", 50), ("cat/b", 100), ("dog/c", 150)):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), grey).convert("RGB").save(path)
    broken = tmp_path / "images" / "cat" / "b.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path / "images"
