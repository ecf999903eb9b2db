from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn.errors import ParameterError
from xattn.viz import colormap, save


def picture() -> Image.Image:
    """Soft noise above all colours of a map, with a few bright red points."""
    pixels = np.random.default_rng(0).normal(128, 12, (100, 256, 3))
    pixels[70:] = np.rint(colormap("plasma") * 255)
    pixels[4:12, 4:12] = (255, 0, 0)
    return Image.fromarray(pixels.astype(np.uint8))


def read(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_without_a_limit_every_pixel_is_kept(tmp_path: Path) -> None:
    path = save(picture(), tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(read(path), np.asarray(picture()))
    assert save(picture(), tmp_path / "b.png", limit_bytes=10**7).read_bytes() == path.read_bytes()


def test_a_limit_is_kept_with_the_size_and_the_rare_colours_where_possible(tmp_path: Path) -> None:
    whole = save(picture(), tmp_path / "a.png").stat().st_size
    small = save(picture(), tmp_path / "b.png", limit_bytes=whole // 2)
    assert small.stat().st_size <= whole // 2
    assert read(small).shape == (100, 256, 3)
    assert np.abs(read(small)[5:11, 5:11] - (255, 0, 0)).max() < 40
    tiny = save(picture(), tmp_path / "c.png", limit_bytes=whole // 10)
    assert tiny.stat().st_size <= whole // 10
    height, width = read(tiny).shape[:2]
    assert width < 256
    assert width / height == pytest.approx(256 / 100, rel=0.05)


def test_an_impossible_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no picture fits 10 bytes"):
        save(picture(), tmp_path / "a.png", limit_bytes=10)
    assert not (tmp_path / "a.png").exists()
