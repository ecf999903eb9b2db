"""Perturbation metrics as loops in float64 over one image (C, H, W), from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.given import explained
from tests.oracles.naive_grid import on_grid
from xattn.functional.grid import cell_of_pixel
from xattn.metrics import metrics
from xattn.trace import Trace

SIZE = (16, 20)  # not square, so that swapped axes show
N = 2
SEEDS = (5, 6)
Array = np.ndarray
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def some_maps(h: int, w: int, seed: int = 0, levels: int | None = None) -> Tensor:
    """Random maps; with few levels there are ties."""
    maps = torch.rand(N, 1, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return maps if levels is None else (maps * levels).floor()


def probability(trace: Trace, image: Array, i: int) -> float:
    with torch.no_grad():
        logits = trace.model(torch.from_numpy(image)[None])[0].tolist()
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    return powers[int(trace.target[i])] / sum(powers)


def upsampled(grid: Array, size: tuple[int, int], *, rounded: bool = True) -> Array:
    """Bilinear interpolation with half-pixel centres, cell by cell; for ranking it is rounded to float32."""
    (h, w), (height, width) = grid.shape, size
    if (h, w) == size:
        return grid
    out = np.zeros(size)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0.0), h - 1.0)
            u = min(max((x + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            a, b = int(v), int(u)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            t, s = v - a, u - b
            out[y, x] = (1 - t) * ((1 - s) * grid[a, b] + s * grid[a, d]) + t * ((1 - s) * grid[c, b] + s * grid[c, d])
    return out.astype(np.float32).astype(np.float64) if rounded else out


def naive_pixels(grid: Array, cells: tuple[int, int]) -> Array:
    """The map on a grid; each pixel has the value of the cell that holds its centre."""
    grid, out = on_grid(grid, cells), np.zeros(SIZE)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            out[y, x] = grid[int((y + 0.5) / SIZE[0] * cells[0]), int((x + 0.5) / SIZE[1] * cells[1])]
    return out


def order_of(values: Array, trace: Trace, i: int) -> list[int]:
    """Cells from most to least important; equal ones as the image's own random order has them."""
    cells = values.size
    place = {
        cell: k for k, cell in enumerate(torch.randperm(cells, generator=trace.generator(i, f"ties/{cells}")).tolist())
    }
    return sorted(range(cells), key=lambda cell: (-values.flat[cell], place[cell]))


def even_counts(cells: int, steps: int) -> list[int]:
    steps = min(steps, cells)
    return [math.floor(k * cells / steps + 0.5) for k in range(steps + 1)]


def pixels_of(cells: set[int], grid: tuple[int, int], size: tuple[int, int]) -> Array:
    """Which pixels have their centre in one of the cells."""
    mask = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            cell = int((y + 0.5) / size[0] * grid[0]) * grid[1] + int((x + 0.5) / size[1] * grid[1])
            mask[y, x] = cell in cells
    return mask


def auc(values: list[float], x: list[float] | None = None) -> float:
    at = [k / (len(values) - 1) for k in range(len(values))] if x is None else x
    return sum((at[k + 1] - at[k]) * (values[k] + values[k + 1]) / 2 for k in range(len(values) - 1))


def correlation(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(np.array(a), np.array(b))[0, 1])


def box_blurred(image: Array, side: int) -> Array:
    """Mean over a square window; zeros beyond the border."""
    channels, height, width = image.shape
    out, reach = np.zeros_like(image), side // 2
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for v in range(max(0, y - reach), min(height, y + reach + 1)):
                    for u in range(max(0, x - reach), min(width, x + reach + 1)):
                        total += image[c, v, u]
                out[c, y, x] = total / side**2
    return out


def gaussian_blurred(image: Array, sigma: float) -> Array:
    """A Gaussian cut at three deviations; the border is repeated."""
    reach = math.ceil(3 * sigma)
    weight = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    weight = [value / sum(weight) for value in weight]
    for axis in (1, 2):
        out, last = np.zeros_like(image), image.shape[axis] - 1
        for place in range(last + 1):
            for k, value in zip(range(-reach, reach + 1), weight, strict=True):
                source = np.take(image, min(max(place + k, 0), last), axis=axis)
                if axis == 1:
                    out[:, place] += value * source
                else:
                    out[:, :, place] += value * source
        image = out
    return image


def black(trace: Trace, image: Array) -> Array:
    mean, std = np.array(trace.spec.mean), np.array(trace.spec.std)
    return np.broadcast_to((-mean / std)[:, None, None], image.shape)


@dataclass
class NaiveCurve:
    scores: list[float]
    saliency: list[float]
    share: list[float]


def naive_curve(
    trace: Trace, i: int, values: Array, start: Array, end: Array, steps: int, *, last_first: bool = False
) -> NaiveCurve:
    """Replace cells of `start` by those of `end`, most important first."""
    order = order_of(values, trace, i)
    order = order[::-1] if last_first else order
    counts = even_counts(values.size, steps)
    scores, saliency = [], []
    for k, count in enumerate(counts):
        mask = pixels_of(set(order[:count]), values.shape, SIZE)
        scores.append(probability(trace, np.where(mask, end, start), i))
        if k:
            saliency.append(float(np.mean([values.flat[c] for c in order[counts[k - 1] : count]])))
    return NaiveCurve(scores, saliency, [count / values.size for count in counts])


def check(trace: Trace, metric: str, maps: Tensor, oracle: Callable[[int, Array, Array], dict[str, float]]) -> None:
    """Every column that the oracle gives, for every image; `oracle(i, map, image)`."""
    found = metrics.parse(metric).measure(explained(maps, trace), trace, None)
    for i in range(N):
        expected = oracle(i, maps[i, 0].numpy(), trace.x[i].numpy())
        for column, value in expected.items():
            assert found[column].dtype == torch.float64
            assert found[column][i].item() == pytest.approx(value, rel=1e-9, abs=1e-10), column


def imputed(image: Array, removed: Array) -> Array:
    """The equations of ROAD, solved as a dense system."""
    channels, height, width = image.shape
    unknown = [tuple(place) for place in np.argwhere(removed)]
    number = {place: k for k, place in enumerate(unknown)}
    left, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), channels))
    for (y, x), k in number.items():
        for v in (-1, 0, 1):
            for u in (-1, 0, 1):
                if (v, u) == (0, 0) or not (0 <= y + v < height and 0 <= x + u < width):
                    continue
                weight = 1 / 6 if 0 in (v, u) else 1 / 12
                left[k, k] += weight
                if (y + v, x + u) in number:
                    left[k, number[y + v, x + u]] -= weight
                else:
                    right[k] += weight * image[:, y + v, x + u]
    out = image.copy()
    out[:, removed] = np.linalg.solve(left, right).T
    return out


# --- subsets ----------------------------------------------------------------------------------------------------------


def naive_agreement(
    trace: Trace, i: int, values: Array, image: Array, sizes: list[int], samples: int, key: str
) -> list[float]:
    """For each size the correlation of the map's sum over random blocks with the fall of the score."""
    grid = (4, 5)
    worth = on_grid(values, grid, rounded=False).flatten().tolist()
    cell = cell_of_pixel(grid, SIZE).view(SIZE).numpy()
    noise = torch.rand(len(sizes) * samples, 20, generator=trace.generator(i, key)).tolist()
    clean, found = probability(trace, image, i), []
    for s, size in enumerate(sizes):
        sums, falls = [], []
        for row in noise[s * samples : (s + 1) * samples]:
            chosen = sorted(range(20), key=lambda k: row[k])[:size]
            sums.append(sum(worth[k] for k in chosen))
            falls.append(clean - probability(trace, np.where(np.isin(cell, chosen), 0.0, image), i))
        found.append(correlation(sums, falls))
    return found
