"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]

# One profile for everybody: the same examples in every run, and no deadline, which a busy machine would miss.
hypothesis.settings.register_profile("xattn", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("xattn")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # several processes with several threads each would fight over the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden pictures anew; look at them after")


@pytest.fixture
def seed() -> torch.Generator:
    """A generator with a fixed seed; the global one is seeded too."""
    torch.manual_seed(0)
    return torch.Generator().manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors and modules are float64, for tests against naive formulas."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Image.Image, str], None]:
    """Compare a picture with tests/golden/<name>.png: at most one grey level off."""

    def compare(picture: Image.Image, name: str) -> None:
        path = ROOT / "tests" / "golden" / f"{name}.png"
        if request.config.getoption("--update-golden"):
            picture.save(path, optimize=True)
        expected = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
        got = np.asarray(picture.convert("RGB"), dtype=np.int64)
        assert got.shape == expected.shape
        worst = np.abs(got - expected).max()
        assert worst <= 1, f"{path.name}: {worst} levels off; look at it, then renew it with --update-golden"

    return compare
