"""A map on another grid as a loop over its cells in float64: means over area, or values between centres of cells."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def on_axis(values: list[float], cells: int) -> list[float]:
    """One axis: a new cell is the mean over its length, or lies between the centres of the two old cells around it."""
    old, out = len(values), []
    for k in range(cells):
        if cells <= old:
            left, right = k * old / cells, (k + 1) * old / cells
            total = 0.0
            for j, value in enumerate(values):
                total += value * max(0.0, min(right, j + 1) - max(left, j))
            out.append(total / (right - left))
        else:
            place = min(max((k + 0.5) * old / cells - 0.5, 0.0), old - 1.0)
            below = int(place)
            above = min(below + 1, old - 1)
            out.append(values[below] + (place - below) * (values[above] - values[below]))
    return out


def on_grid(values: Array, cells: tuple[int, int], *, rounded: bool = True) -> Array:
    """A map (h, w) on a grid; it is rounded to float32 unless it is on the grid already."""
    if values.shape == cells:
        return values
    wide = np.array([on_axis(row, cells[1]) for row in values.tolist()])
    both = np.array([on_axis(column, cells[0]) for column in wide.T.tolist()]).T
    return both.astype(np.float32).astype(np.float64) if rounded else both
