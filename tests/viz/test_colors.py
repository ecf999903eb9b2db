from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from xattn.errors import UnknownNameError
from xattn.looks import RANKS
from xattn.viz import DIVERGING, colorize, colormap, colormap_names, rank_color
from xattn.viz._tables import TABLES


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    colormap.cache_clear()
    yield
    colormap.cache_clear()


@pytest.mark.parametrize("name", [*TABLES, "grey", "viridis_r"])
def test_tables_equal_matplotlib(name: str) -> None:
    from matplotlib import colormaps

    expected = colormaps["gray" if name == "grey" else name](np.arange(256))[:, :3]
    np.testing.assert_allclose(colormap(name), expected, atol=0.5 / 255 + 1e-9)


def test_other_names_come_from_matplotlib() -> None:
    from matplotlib import colormaps

    np.testing.assert_array_equal(colormap("RdBu"), colormaps["RdBu"](np.arange(256))[:, :3])
    np.testing.assert_array_equal(colormap("rdbu"), colormap("RdBu"))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown colour map 'plasmo'\. Did you mean 'plasma'\?"):
        colormap("plasmo")


@pytest.mark.usefixtures("no_matplotlib")
def test_all_own_maps_do_without_matplotlib() -> None:
    for name in colormap_names():
        assert colormap(name).shape == (256, 3)
    with pytest.raises(UnknownNameError, match=r"unknown colour map 'RdBu'"):
        colormap("RdBu")


@pytest.mark.parametrize("name", ["plasma", "viridis", "magma", "inferno", "cividis", "grey"])
def test_lightness_of_sequential_maps_rises(name: str) -> None:
    assert (np.diff(lightness(colormap(name))) > -0.1).all()


def test_the_diverging_map_is_symmetric_in_lightness_and_palest_at_zero() -> None:
    light = lightness(colormap(DIVERGING))
    assert light.argmax() in (127, 128)
    assert np.abs(light - light[::-1]).max() < 4
    blue, red = colormap(DIVERGING)[0], colormap(DIVERGING)[-1]
    assert blue.argmax() == 2
    assert red.argmax() == 0


def lightness(colors: Any) -> Any:
    """L* of CIELAB, by the formula, for sRGB colours (n, 3)."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def test_colorize_meets_the_table_and_mixes_between() -> None:
    table = colormap("viridis")
    np.testing.assert_allclose(colorize(np.arange(256) / 255, "viridis"), table, atol=1e-12)
    np.testing.assert_allclose(colorize(np.array(10.25 / 255), "viridis"), 0.75 * table[10] + 0.25 * table[11])
    ends = colorize(np.array([-3.0, 7.0, np.nan]), "viridis")
    np.testing.assert_array_equal(ends, table[[0, 255, 0]])


def test_rank_colours_begin_with_red_green_blue_and_differ() -> None:
    colors_of_ranks = tuple(RANKS.values())
    assert colors_of_ranks[:3] == ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    colors = np.array(colors_of_ranks, dtype=float)
    distance = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(len(colors))
    assert distance.min() > 100
    assert rank_color(len(colors_of_ranks)) == colors_of_ranks[0]


def test_the_tables_are_what_their_script_writes() -> None:
    import runpy
    from pathlib import Path

    script = runpy.run_path(str(Path(__file__).with_name("make_tables.py")))
    assert script["PATH"].read_text(encoding="utf-8") == script["source"]()
