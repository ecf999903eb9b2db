"""Maps on the grid that is ranked: against a loop over cells, and what is the same whichever way a map took."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from tests.given import random_maps
from tests.oracles.naive_grid import on_grid
from xattn.errors import ParameterError, ShapeError
from xattn.functional.grid import axis_weights, cell_of_pixel, common_cells, grid_cells, resample, to_grid, to_pixels
from xattn.functional.perturb import undefined

sides = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(h=sides, w=sides, rows=sides, columns=sides, seed=st.integers(0, 99))
def test_resampling_is_the_loop_over_cells(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    maps = (random_maps(2, h, w, seed) - 0.5).double()  # signed
    found = resample(maps, (rows, columns))
    for own, expected in zip(found[:, 0].numpy(), maps[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(own, on_grid(expected, (rows, columns), rounded=False), rtol=1e-12, atol=1e-14)


def test_torch_agrees_where_it_has_the_formula() -> None:
    """Pooling where the grid divides the map, adaptive pooling there too, and interpolation where it grows."""
    maps = random_maps(2, 24, 36).double()
    torch.testing.assert_close(resample(maps, (8, 9)), avg_pool2d(maps, (3, 4)))
    torch.testing.assert_close(resample(maps, (8, 9)), adaptive_avg_pool2d(maps, (8, 9)))
    grown = interpolate(maps, (31, 57), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(maps, (31, 57)), grown)
    # Unlike adaptive pooling, which counts cells on a border twice, the mean of all cells is that of the map.
    assert resample(maps, (7, 5)).mean().item() == pytest.approx(maps.mean().item(), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(factors=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])), seed=st.integers(0, 99))
def test_pooled_copies_are_one_map_on_a_coarser_grid(factors: tuple[int, int], seed: int) -> None:
    """Whole numbers over a power of two have exact means, so that nothing is left to rounding."""
    maps = (random_maps(2, 32, 48, seed) * 2**10).floor() - 500
    pooled = avg_pool2d(maps, factors)
    assert torch.equal(resample(pooled, (8, 12)), resample(maps, (8, 12)))


def test_rows_of_weights_sum_to_one_and_none_is_negative() -> None:
    for old in range(1, 20):
        for new in range(1, 20):
            weights = axis_weights(old, new)
            torch.testing.assert_close(weights.sum(1), torch.ones(new, dtype=torch.float64))
            assert weights.min() >= 0
    assert torch.equal(axis_weights(7, 7), torch.eye(7, dtype=torch.float64))


def test_equal_cells_stay_equal() -> None:
    """Beyond the centres of the outer cells the map is constant; and a constant map stays constant."""
    for own, cells in (((3, 3), (50, 47)), ((50, 47), (7, 3)), ((64, 64), (8, 8))):
        assert undefined(resample(torch.full((1, 1, *own), 0.1), cells)).item()
    corner = resample(random_maps(1, 3, 3), (30, 30))[0, 0, :5, :5]
    assert (corner == corner[0, 0]).all()


def test_what_is_not_finite_leaves_the_map_undefined() -> None:
    for bad in (torch.nan, torch.inf):
        maps = random_maps(1, 16, 16)
        maps[0, 0, 3, 3] = bad
        assert undefined(resample(maps, (8, 8))).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_on_the_grid_stay_as_they_are(dtype: torch.dtype) -> None:
    maps = random_maps(1, 8, 8).to(dtype)
    assert resample(maps, (8, 8)) is maps
    assert resample(maps, (4, 4)).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert to_grid(maps, (32, 32), 4).dtype == torch.float32  # for ties


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 600), width=st.integers(1, 600), grid=st.one_of(st.just("common"), st.integers(1, 40)))
def test_grids_fit_the_image(height: int, width: int, grid: str | int) -> None:
    rows, columns = grid_cells(grid, (height, width))  # type: ignore[arg-type]
    wanted = common_cells((height, width)) if grid == "common" else int(grid)
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    assert min(rows, columns) == min(wanted, height, width)
    if max(rows, columns) < min(height, width):  # cells are squares but for rounding
        assert abs(rows / height - columns / width) * max(height, width) <= 1
    assert grid_cells(grid, (width, height)) == (columns, rows)  # type: ignore[arg-type]


def test_the_common_grid() -> None:
    sizes = {(224, 224): (14, 14), (64, 64): (8, 8), (32, 32): (8, 8), (448, 448): (28, 28), (5, 9): (5, 9)}
    assert {size: grid_cells("common", size) for size in sizes} == sizes
    assert grid_cells("common", (64, 640)) == (8, 80)


@pytest.mark.parametrize("grid", [(1, 1), (21, 21), (33, 33), (3, 17), (64, 64)])
def test_own_grid_is_no_finer_than_the_pixels(grid: tuple[int, int]) -> None:
    size = (32, 40)
    cells = to_grid(random_maps(1, *grid), size, "map").shape[-2:]
    assert cells == (min(grid[0], 32), min(grid[1], 40))
    pixel = cell_of_pixel((cells[0], cells[1]), size)
    assert set(pixel.tolist()) == set(range(cells[0] * cells[1]))  # no cell without a pixel


def test_cell_of_pixel_is_nearest_neighbour() -> None:
    ids = torch.arange(15.0).view(1, 1, 3, 5)
    expected = interpolate(ids, (17, 23), mode="nearest-exact").flatten().long()
    torch.testing.assert_close(cell_of_pixel((3, 5), (17, 23)), expected)


def test_pixels_have_the_value_of_their_cell() -> None:
    maps = random_maps(2, 4, 6)
    found = to_pixels(maps, (8, 12), 4)
    torch.testing.assert_close(found.view(2, 1, 8, 12), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert to_pixels(maps, (8, 12), "pixels").unique().numel() > 24


def test_grids_and_shapes_are_checked() -> None:
    with pytest.raises(ParameterError, match="must be one of common, map, pixels or a number of cells but is 'cells'"):
        grid_cells("cells", (8, 8))  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="'map' needs a map"):
        grid_cells("map", (8, 8))
    with pytest.raises(ShapeError, match="resample: expected maps"):
        resample(torch.zeros(4, 4), (2, 2))
    with pytest.raises(ShapeError, match="resample: expected maps"):
        resample(torch.zeros(1, 1, 4, 4), (0, 2))
