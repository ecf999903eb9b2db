"""Every method again, from its paper, as plain loops in float64 that share no code with the package.

`Case` runs a tiny network by hand, forwards and backwards. An oracle takes a case and the parameters of the method
and gives the map (h, w), or the parts (P, h, w).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.oracles.naive_grid import on_grid
from tests.oracles.network import Array, Case, conv, norm, relu

Oracle = Callable[..., Array]


@dataclass(frozen=True)
class Replica:
    """An oracle with the parameters for which it stands, and the networks of `tests.tiny_models` on which it is run."""

    method: str
    parameters: dict[str, Any]
    oracle: Oracle
    networks: tuple[str, ...] | None = None


REPLICAS: list[Replica] = []


def replicates(method: str, networks: tuple[str, ...] | None = None, **parameters: Any) -> Callable[[Oracle], Oracle]:
    """Enter an oracle for a method with these parameters, and for other networks than the usual ones."""

    def enter(oracle: Oracle) -> Oracle:
        REPLICAS.append(Replica(method, parameters, oracle, networks))
        return oracle

    return enter


# --- one layer ---------------------------------------------------------------------------------------------------


@replicates("activation")
@replicates("activation", reduce="norm")
@replicates("activation", reduce="squared_norm")
@replicates("activation", reduce="mean")
def activation(case: Case, reduce: str = "norm") -> Array:
    c, h, w = case.features.shape
    out = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            f = [float(case.features[k, i, j]) for k in range(c)]
            squares = sum(value * value for value in f)
            out[i, j] = {"norm": math.sqrt(squares), "squared_norm": squares, "mean": sum(f) / c}[reduce]
    return out


@replicates("cam")
def cam(case: Case) -> Array:
    trunk = case.values["trunk"]
    out = np.zeros(trunk.shape[1:])
    for k, i, j in np.ndindex(*trunk.shape):
        out[i, j] += float(case.model.fc.weight.detach()[case.target, k]) * trunk[k, i, j]
    return out


def weighted(features: Array, weights: list[float], rectify: bool) -> Array:
    out = np.zeros(features.shape[1:])
    for k, i, j in np.ndindex(*features.shape):
        out[i, j] += weights[k] * features[k, i, j]
    return relu(out) if rectify else out


@replicates("gradcam")
@replicates("gradcam", relu=True)
@replicates("gradcam", relu=False)
def grad_cam(case: Case, relu: bool = True) -> Array:
    h, w = case.features.shape[1:]
    weights = []
    for k in range(len(case.features)):
        weights.append(sum(float(case.gradient[k, i, j]) for i in range(h) for j in range(w)) / (h * w))
    return weighted(case.features, weights, relu)


@replicates("gradcam++")
def grad_cam_plus_plus(case: Case) -> Array:
    h, w = case.features.shape[1:]
    weights = []
    for k in range(len(case.features)):
        total = sum(float(case.features[k, a, b]) for a in range(h) for b in range(w))
        weight = 0.0
        for i in range(h):
            for j in range(w):
                g = float(case.gradient[k, i, j])
                denominator = 2 * g**2 + total * g**3
                if denominator != 0:
                    weight += g**2 / denominator * max(g, 0.0)
        weights.append(weight)
    return weighted(case.features, weights, True)


@replicates("hirescam")
@replicates("hirescam", relu=True)
@replicates("hirescam", relu=False)
def hires_cam(case: Case, relu: bool = False) -> Array:
    out = np.zeros(case.features.shape[1:])
    for k, i, j in np.ndindex(*case.features.shape):
        out[i, j] += case.gradient[k, i, j] * case.features[k, i, j]
    for i, j in np.ndindex(*out.shape):
        out[i, j] = max(out[i, j], 0.0) if relu else out[i, j]
    return out


@replicates("xgradcam")
@replicates("xgradcam", relu=True)
@replicates("xgradcam", relu=False)
def xgrad_cam(case: Case, relu: bool = True) -> Array:
    h, w = case.features.shape[1:]
    weights = []
    for k in range(len(case.features)):
        total = sum(float(case.features[k, a, b]) for a in range(h) for b in range(w))
        weight = 0.0
        for i in range(h):
            for j in range(w):
                if total != 0:
                    weight += float(case.features[k, i, j]) / total * float(case.gradient[k, i, j])
        weights.append(weight)
    return weighted(case.features, weights, relu)


@replicates("layercam")
def layer_cam(case: Case) -> Array:
    out = np.zeros(case.features.shape[1:])
    for k, i, j in np.ndindex(*case.features.shape):
        out[i, j] += max(case.gradient[k, i, j], 0.0) * case.features[k, i, j]
    return relu(out)


@replicates("eigencam")
@replicates("eigencam", center=False)
@replicates("eigencam", center=True)
def eigen_cam(case: Case, center: bool = False) -> Array:
    c, h, w = case.features.shape
    rows = np.array([[case.features[k, i, j] for k in range(c)] for i in range(h) for j in range(w)])
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in rows]
    if center:
        rows = rows - rows.mean(axis=0)
    first = np.linalg.svd(rows, full_matrices=False)[2][0]
    out = [sum(a * b for a, b in zip(row, first, strict=True)) for row in rows]
    if sum(a * b for a, b in zip(out, lengths, strict=True)) < 0:
        out = [-value for value in out]
    return np.array(out).reshape(h, w)


# --- pixels ------------------------------------------------------------------------------------------------------


def reduced(attribution: Array, reduce: str) -> Array:
    out = np.zeros(attribution.shape[1:])
    for i, j in np.ndindex(*out.shape):
        values = [float(value) for value in attribution[:, i, j]]
        out[i, j] = {
            "max": max(abs(value) for value in values),
            "sum": sum(values),
            "mean_abs": sum(abs(value) for value in values) / len(values),
            "norm": math.sqrt(sum(value**2 for value in values)),
        }[reduce]
    return out


@replicates("saliency")
@replicates("saliency", reduce="max")
@replicates("saliency", reduce="sum")
@replicates("saliency", reduce="mean_abs")
@replicates("saliency", reduce="norm")
def saliency(case: Case, reduce: str = "max") -> Array:
    return reduced(case.values["gradient"], reduce)


@replicates("input-x-gradient")
@replicates("input-x-gradient", reduce="max")
@replicates("input-x-gradient", reduce="sum")
@replicates("input-x-gradient", reduce="mean_abs")
@replicates("input-x-gradient", reduce="norm")
def input_x_gradient(case: Case, reduce: str = "sum") -> Array:
    product = np.zeros_like(case.x)
    for cell in np.ndindex(*case.x.shape):
        product[cell] = case.x[cell] * case.values["gradient"][cell]
    return reduced(product, reduce)


@replicates("guided-backprop")
@replicates("guided-backprop", reduce="max")
@replicates("guided-backprop", reduce="sum")
@replicates("guided-backprop", reduce="mean_abs")
@replicates("guided-backprop", reduce="norm")
def guided_backprop(case: Case, reduce: str = "max") -> Array:
    return reduced(case.values["guided"], reduce)


def bilinear(grid: Array, height: int, width: int) -> Array:
    """Half-pixel centres; beyond the outer centres the border is repeated."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
            x = min(max((j + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
            v, u = y - top, x - left
            out[i, j] = (1 - v) * ((1 - u) * grid[top, left] + u * grid[top, right])
            out[i, j] += v * ((1 - u) * grid[bottom, left] + u * grid[bottom, right])
    return out


def guided_times(case: Case, maps: Array, reduce: str) -> Array:
    grown = bilinear(maps, *case.x.shape[1:])
    product = np.zeros_like(case.x)
    for k, i, j in np.ndindex(*case.x.shape):
        product[k, i, j] = case.values["guided"][k, i, j] * grown[i, j]
    return reduced(product, reduce)


@replicates("guided-gradcam")
@replicates("guided-gradcam", reduce="max")
@replicates("guided-gradcam", reduce="sum")
@replicates("guided-gradcam", reduce="mean_abs")
@replicates("guided-gradcam", reduce="norm")
def guided_grad_cam(case: Case, reduce: str = "max") -> Array:
    return guided_times(case, grad_cam(case), reduce)


@replicates("guided-gradcam++")
@replicates("guided-gradcam++", reduce="max")
@replicates("guided-gradcam++", reduce="sum")
@replicates("guided-gradcam++", reduce="mean_abs")
@replicates("guided-gradcam++", reduce="norm")
def guided_grad_cam_plus_plus(case: Case, reduce: str = "max") -> Array:
    return guided_times(case, grad_cam_plus_plus(case), reduce)


# --- attention ---------------------------------------------------------------------------------------------------


def length(features: Array, i: int, j: int) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in features[:, i, j]))


def part_weights(
    features: Array, parts: int, activation: str = "norm", suppress: str = "similarity", refine: bool = True
) -> Array:
    """BR-NPA as the table of the paper's steps says, with 1e-5 added to each norm as in the released code."""
    h, w = features.shape[1:]
    cells = list(np.ndindex(h, w))
    norms = {cell: length(features, *cell) + 1e-5 for cell in cells}
    level = {cell: norms[cell] ** 2 if activation == "squared_norm" else norms[cell] for cell in cells}
    out = np.zeros((parts, h, w))
    for p in range(parts):
        seed = max(cells, key=lambda cell: level[cell])
        similarity = {}
        for cell in cells:
            dot = sum(float(a) * float(b) for a, b in zip(features[:, *cell], features[:, *seed], strict=True))
            similarity[cell] = max(dot / (norms[cell] * norms[seed]), 0.0)
        total = sum(similarity.values())
        for cell in cells:
            share = similarity[cell] / total
            level[cell] *= 1 - (similarity[cell] if suppress == "similarity" else share)
            out[p, *cell] = share if refine else float(cell == seed)
    return out


def combined(parts: Array, saliency: str) -> Array:
    h, w = parts.shape[1:]
    out = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            values = [float(value) for value in parts[:, i, j]]
            out[i, j] = {"first": values[0], "mean": sum(values) / len(values), "max": max(values)}[saliency]
    return out


@replicates("brnpa")
@replicates("brnpa", parts=1)
@replicates("brnpa", parts=4, saliency="first")
@replicates("brnpa", saliency="mean")
@replicates("brnpa", saliency="max", activation="norm", suppress="similarity", refine=True)
@replicates("brnpa", saliency="mean", activation="squared_norm")
@replicates("brnpa", saliency="mean", suppress="weight")
@replicates("brnpa", saliency="mean", refine=False)
def br_npa(case: Case, saliency: str = "first", parts: int = 3, **options: Any) -> Array:
    weights = part_weights(case.features, parts, **options)
    for p, i, j in np.ndindex(*weights.shape):
        weights[p, i, j] *= length(case.features, i, j)
    return combined(weights, saliency)


def bcnn_weights(case: Case) -> Array:
    attention, f = case.model.head.attention, case.features
    block = attention.block
    inner = relu(norm(conv(f, block.conv1), block.bn1))
    maps = relu(conv(relu(f + norm(conv(inner, block.conv2), block.bn2)), attention.conv))
    return maps[:-1]


@replicates("bcnn")
@replicates("bcnn", saliency="first")
@replicates("bcnn", saliency="mean")
@replicates("bcnn", saliency="max")
def bcnn(case: Case, saliency: str = "mean") -> Array:
    weights = bcnn_weights(case)
    for p, i, j in np.ndindex(*weights.shape):
        weights[p, i, j] *= length(case.features, i, j)
    return combined(weights, saliency)


@replicates("part-cam")
def part_cam(case: Case) -> Array:
    f, head = case.features, case.model.head
    c, h, w = f.shape
    weights = bcnn_weights(case) / (h * w) if head.name == "bcnn" else part_weights(f, head.parts)
    row = head.classifier.weight[case.target].detach().double().numpy()
    out = np.zeros((h, w))
    for p, i, j in np.ndindex(*weights.shape):
        out[i, j] += weights[p, i, j] * sum(float(row[p * c + k]) * float(f[k, i, j]) for k in range(c))
    return out


# --- controls ----------------------------------------------------------------------------------------------------


def own_cells(case: Case, grid: str | int) -> tuple[int, int]:
    """So many cells on the shorter side, each as near to a square as whole numbers allow; by default cells of 16."""
    height, width = case.x.shape[1:]
    if grid == "pixels":
        return height, width
    cells = max(8, math.floor(min(height, width) / 16 + 0.5)) if grid == "common" else int(grid)
    rows, columns = (math.floor(cells * side / min(height, width) + 0.5) for side in (height, width))
    return min(rows, height), min(columns, width)


@replicates("random")
@replicates("random", grid=5)
def random(case: Case, grid: str | int = "common") -> Array:
    h, w = own_cells(case, grid)
    digest = hashlib.blake2b(f"{case.seed}/random".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(h, w, generator=generator).double().numpy()


@replicates("center")
@replicates("center", sigma=0.1)
@replicates("center", grid=5)
def center(case: Case, sigma: float = 0.25, grid: str | int = "pixels") -> Array:
    height, width = case.x.shape[1:]
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            dy, dx = (i + 0.5 - height / 2) / (sigma * height), (j + 0.5 - width / 2) / (sigma * width)
            out[i, j] = math.exp(-(dy**2 + dx**2) / 2)
    return on_grid(out, own_cells(case, grid), rounded=False)


@replicates("pooled-gradient")
@replicates("pooled-gradient", grid=5)
def pooled_gradient(case: Case, grid: str | int = "common") -> Array:
    return on_grid(input_x_gradient(case, reduce="sum"), own_cells(case, grid), rounded=False)


@replicates("edges")
@replicates("edges", grid="common")
def edges(case: Case, grid: str | int = "pixels") -> Array:
    spec = case.model.spec
    height, width = case.x.shape[1:]
    grey = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        pixel = [float(case.x[k, i, j]) * spec.std[k] + spec.mean[k] for k in range(3)]
        grey[i, j] = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    out = np.zeros((height, width))
    for i, j in np.ndindex(height, width):

        def near(dy: int, dx: int, i: int = i, j: int = j) -> float:
            return float(grey[min(max(i + dy, 0), height - 1), min(max(j + dx, 0), width - 1)])

        across = sum(weight * (near(dy, 1) - near(dy, -1)) for dy, weight in ((-1, 1), (0, 2), (1, 1)))
        down = sum(weight * (near(1, dx) - near(-1, dx)) for dx, weight in ((-1, 1), (0, 2), (1, 1)))
        out[i, j] = math.hypot(across, down)
    return on_grid(out, own_cells(case, grid), rounded=False)
