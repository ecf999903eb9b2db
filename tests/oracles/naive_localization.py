"""Scores of localisation as plain loops over pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Pixels = list[tuple[float, bool]]


def pixels(m: Tensor, k: Tensor) -> Pixels:
    return [(float(a), bool(b)) for a, b in zip(m.flatten(), k.flatten(), strict=True)]


def naive_pointing(m: Tensor, k: Tensor, tolerance: int) -> float:
    height, width = m.shape[-2:]
    top = float(m.max())
    hits = points = 0
    for y in range(height):
        for x in range(width):
            if float(m[0, y, x]) == top:
                points += 1
                hits += any(
                    bool(k[0, v, u]) and (u - x) ** 2 + (v - y) ** 2 <= tolerance**2
                    for v in range(height) for u in range(width)
                )  # fmt: skip
    return hits / points


def naive_energy(m: Tensor, k: Tensor) -> float:
    low = min(a for a, _ in pixels(m, k))
    return sum(a - low for a, b in pixels(m, k) if b) / sum(a - low for a, _ in pixels(m, k))


def naive_mass(m: Tensor, k: Tensor) -> float:
    return sum(a for a, b in pixels(m, k) if b and a > 0) / sum(a for a, _ in pixels(m, k) if a > 0)


def naive_top(m: Tensor, k: Tensor, count: int) -> float:
    """Take whole groups of equal values from the top; of the last group the expected share."""
    left, hits = count, 0.0
    for value in sorted({a for a, _ in pixels(m, k)}, reverse=True):
        group = [b for a, b in pixels(m, k) if a == value]
        taken = min(left, len(group))
        hits += taken * sum(group) / len(group)
        left -= taken
    return hits / count


def naive_auc(m: Tensor, k: Tensor) -> float:
    on = [a for a, b in pixels(m, k) if b]
    off = [a for a, b in pixels(m, k) if not b]
    return sum((a > b) + 0.5 * (a == b) for a in on for b in off) / (len(on) * len(off))


def naive_ap(m: Tensor, k: Tensor) -> float:
    total = sum(b for _, b in pixels(m, k))
    area = recall = 0.0
    for value in sorted({a for a, _ in pixels(m, k)}, reverse=True):
        found = [b for a, b in pixels(m, k) if a >= value]
        area += (sum(found) / total - recall) * sum(found) / len(found)
        recall = sum(found) / total
    return area


def naive_regions(binary: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """Flood fill: xmin, ymin, xmax, ymax (exclusive) and number of cells of each region, corners touch."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(binary), strict=True)}
    found = []
    while left:
        waiting, region = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            for v in range(y - 1, y + 2):
                for u in range(x - 1, x + 2):
                    if (v, u) in left:
                        left.remove((v, u))
                        waiting.append((v, u))
        ys, xs = [p[0] for p in region], [p[1] for p in region]
        found.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1, len(region)))
    return sorted(found)


def scaled(m: Tensor) -> np.ndarray:
    a = m.double().numpy()[0]
    return (a - a.min()) / (a.max() - a.min())


def naive_overlap(m: Tensor, k: Tensor, threshold: float) -> dict[str, float]:
    found = np.zeros(k.shape[1:], bool)
    for x0, y0, x1, y1, _ in naive_regions(scaled(m) > threshold):
        found[y0:y1, x0:x1] = True
    real = k.numpy()[0]
    tp = fp = fn = tn = 0
    for a, b in zip(found.flat, real.flat, strict=True):
        tp, fp, fn, tn = tp + (a and b), fp + (a and not b), fn + (b and not a), tn + (not a and not b)
    return {
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn),
        "pixel_accuracy": (tp + tn) / (tp + fp + fn + tn),
    }


def naive_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(w, 0) * max(h, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def spiral(side: int) -> np.ndarray:
    """One thin region that winds inwards: what a labelling in few rounds finds hardest."""
    grid = np.zeros((side, side), bool)
    y = x = 0
    dy, dx = 0, 1
    grid[0, 0] = True
    for _ in range(side * side):
        v, u = y + 2 * dy, x + 2 * dx
        if not (0 <= y + dy < side and 0 <= x + dx < side) or (0 <= v < side and 0 <= u < side and grid[v, u]):
            dy, dx = dx, -dy
            v, u = y + 2 * dy, x + 2 * dx
            if not (0 <= y + dy < side and 0 <= x + dx < side) or (0 <= v < side and 0 <= u < side and grid[v, u]):
                break
        y, x = y + dy, x + dx
        grid[y, x] = True
    return grid


def zoo(seed: int = 0, n: int = 6, size: tuple[int, int] = (7, 9)) -> tuple[Tensor, Tensor]:
    """Maps with many ties, with negative cells and with none, and masks of all kinds."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, 1, *size, generator=g)
    maps[0] = (maps[0] * 2).round()
    maps[1] = maps[1].clamp(min=0)
    maps[2] = (maps[2] > 1).float()
    maps[2, 0, 0, 0] = 1
    masks = torch.rand(n, 1, *size, generator=g) < torch.rand(n, 1, 1, 1, generator=g)
    masks[3] = False
    masks[3, 0, 2, 3] = True
    masks[4] = False
    masks[4, 0, 1:5, 2:8] = True
    masks[[0, 1, 2, 5], 0, 0, :2] = torch.tensor([True, False])  # neither empty nor full
    return maps, masks
