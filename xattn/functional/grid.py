"""Maps on a grid of cells: the one that all methods are scored on, whatever grid each of them has."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError

Grid = Literal["common", "map", "pixels"] | int
"""Cells that are ranked: one grid for all methods, so many cells on the shorter side, each map's own, or pixels."""

CELL_PX, FEWEST = 16, 8
"""Side of a cell of the common grid, and how many there are at least on the shorter side."""


def common_cells(size: tuple[int, int]) -> int:
    """Cells on the shorter side of the common grid: one for 16 pixels, at least eight.

    >>> [common_cells((side, side)) for side in (32, 64, 224, 448)], common_cells((224, 448))
    ([8, 8, 14, 28], 14)
    """
    return max(FEWEST, (2 * min(size) + CELL_PX) // (2 * CELL_PX))


def grid_cells(grid: Grid, size: tuple[int, int], own: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns of a grid; no axis has more cells than pixels.

    >>> grid_cells("common", (224, 448)), grid_cells(4, (96, 64)), grid_cells("map", (64, 64), (7, 100))
    ((14, 28), (6, 4), (7, 64))

    Args:
        grid: `"common"`, cells as near to squares as whole numbers allow; a number, likewise with so many cells on the
            shorter side; `"map"`, the grid of the map; `"pixels"`.
        size: height and width of the image in pixels.
        own: rows and columns of the map, which `"map"` needs.

    Raises:
        ParameterError: for another name, and for `"map"` where there is no map.
    """
    height, width = size
    if grid == "pixels":
        return height, width
    if grid == "map":
        if own is None:
            raise ParameterError("grid: 'map' needs a map; choose a number of cells, common or pixels.")
        return min(own[0], height), min(own[1], width)
    if not isinstance(grid, int) and grid != "common":
        raise ParameterError(f"grid: must be one of common, map, pixels or a number of cells but is '{grid}'.")
    shorter = min(size)
    cells = common_cells(size) if grid == "common" else grid
    rows, columns = ((2 * cells * side + shorter) // (2 * shorter) for side in size)
    return min(rows, height), min(columns, width)


def axis_weights(old: int, new: int) -> Tensor:
    """How much each old cell of an axis counts for each new one: float64 (new, old), rows that sum to one.

    Where there are fewer new cells than old ones a new cell is the mean over its length, in which an old cell counts by
    the length that it shares with it; where there are more, values are interpolated between the centres of old cells
    (`align_corners=False`).

    >>> axis_weights(3, 2), axis_weights(1, 2)
    (tensor([[0.6667, 0.3333, 0.0000],
            [0.0000, 0.3333, 0.6667]], dtype=torch.float64), tensor([[1.],
            [1.]], dtype=torch.float64))
    """
    cell = torch.arange(old)
    if new <= old:  # lengths in units of 1 / (old new) are whole numbers
        left = torch.arange(new)[:, None] * old
        shared = torch.minimum(left + old, (cell + 1) * new) - torch.maximum(left, cell * new)
        return shared.clamp(min=0).double() / old
    place = ((2 * torch.arange(new, dtype=torch.float64) + 1) * old / (2 * new) - 0.5).clamp(0, old - 1)
    return (1 - (place[:, None] - cell).abs()).clamp(min=0)


def resample(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Maps on another grid: means over the area of a cell along an axis that gets coarser, else interpolated.

    A signed map is averaged with its signs: what speaks for the class and what speaks against it within one cell
    cancel, as the cell is removed as a whole. Take the absolute value first to rank by strength.

    The mean over a cell does not depend on the way to it: a map of 64 cells a side and its copies that were averaged
    to 32 or 16 are the same on a grid of 8.

    >>> resample(torch.tensor([[[[1.0, 3.0, -2.0, 2.0]]]]), (1, 2))
    tensor([[[[2., 0.]]]])

    Args:
        maps: (M, P, h, w).
        cells: rows and columns of the new grid.

    Returns:
        (M, P, rows, columns), float32 (float64 is kept); maps that are on the grid already stay as they are.
    """
    if maps.ndim != 4 or min(cells) < 1:
        raise ShapeError(f"resample: expected maps (M, P, h, w) and a grid but got {tuple(maps.shape)} and {cells}.")
    own = (maps.shape[-2], maps.shape[-1])
    if own == cells:
        return maps
    rows, columns = (axis_weights(old, new).to(maps.device) for old, new in zip(own, cells, strict=True))
    return (rows @ maps.double() @ columns.T).to(torch.promote_types(maps.dtype, torch.float32))


def to_grid(maps: Tensor, size: tuple[int, int], grid: Grid) -> Tensor:
    """Maps (M, P, h, w) on the grid whose cells are ranked, for images of `size` pixels.

    What is averaged or interpolated is rounded to float32: cells that are equal on paper are then equal, a tie, and not
    ordered by the last digit.
    """
    own = (maps.shape[-2], maps.shape[-1])
    cells = grid_cells(grid, size, own)
    return maps if own == cells else resample(maps, cells).float()


def cell_of_pixel(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Index of the cell that holds the centre of each pixel.

    >>> cell_of_pixel((1, 2), (2, 4)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]

    Args:
        grid: rows and columns of the cells, no finer than the pixels.
        size: height and width in pixels.

    Returns:
        int64 (H * W,).
    """
    row, column = (((2 * torch.arange(n) + 1) * cells) // (2 * n) for cells, n in zip(grid, size, strict=True))
    return (row[:, None] * grid[1] + column).flatten()


def to_pixels(maps: Tensor, size: tuple[int, int], grid: Grid) -> Tensor:
    """Importance of each pixel (M, H * W): that of the cell of the grid which holds it."""
    maps = to_grid(maps, size, grid)
    cells = (maps.shape[-2], maps.shape[-1])
    values = maps.flatten(1)
    return values if cells == size else values.index_select(1, cell_of_pixel(cells, size).to(maps.device))
