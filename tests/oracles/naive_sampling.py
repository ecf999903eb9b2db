"""Oracles of the methods that hide parts of the image: pixel by pixel, run by run."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from tests.oracles.naive import replicates
from tests.oracles.naive_integrated import ONE, baseline_of, draws
from tests.oracles.network import Array, Case, conv, norm, relu

_scores: dict[tuple[int, int, bytes], float] = {}


def score_of(case: Case, x: Array) -> float:
    """The logit of the target."""
    key = (id(case.model), case.target, x.tobytes())
    if key not in _scores:
        m = case.model
        second = relu(norm(conv(relu(norm(conv(x, m.conv1), m.bn1)), m.conv2), m.bn2))
        trunk = relu(norm(conv(second, m.conv3), m.bn3) + second)
        pooled = trunk.mean(axis=(1, 2))
        row, bias = m.fc.weight.detach()[case.target].numpy(), float(m.fc.bias.detach()[case.target])
        _scores[key] = bias + sum(float(a) * float(b) for a, b in zip(row, pooled, strict=True))
    return _scores[key]


def mixed(case: Case, shown: Array, baseline: str) -> Array:
    """The image where `shown` (H, W) is 1, the baseline where it is 0."""
    start, out = baseline_of(case, baseline), np.zeros_like(case.x)
    for k, i, j in np.ndindex(*out.shape):
        out[k, i, j] = shown[i, j] * case.x[k, i, j] + (1 - shown[i, j]) * start[k, i, j]
    return out


def stops(size: int, window: int, stride: int) -> list[int]:
    found, first = [], 0
    while first + window <= size:
        found.append(first)
        first += stride
    return found if found[-1] + window == size else [*found, size - window]


@replicates("occlusion", ONE, window=0.5, baseline="black", chunk=4)
@replicates("occlusion", ONE, window=0.4, stride=1)
@replicates("occlusion", ONE, window=0.75, stride=0.75)
def occlusion(case: Case, window: float, stride: float = 0.5, baseline: str = "mean", chunk: int = 0) -> Array:
    h, w = case.x.shape[1:]
    side = round(window * min(h, w))
    step = round(stride * side)
    total, count = np.zeros((h, w)), np.zeros((h, w))
    for top in stops(h, side, step):
        for left in stops(w, side, step):
            shown = np.ones((h, w))
            shown[top : top + side, left : left + side] = 0
            total[shown == 0] += score_of(case, case.x) - score_of(case, mixed(case, shown, baseline))
            count[shown == 0] += 1
    return total / count


@replicates("rise", ONE, samples=6, normalize="sum")
@replicates("rise", ONE, samples=6, normalize="expected", keep=0.7)
@replicates("rise", ONE, samples=5, cells=3, baseline="black", chunk=2)
def rise(
    case: Case,
    samples: int,
    cells: int = 7,
    keep: float = 0.5,
    normalize: str = "sum",
    baseline: str = "mean",
    chunk: int = 0,
) -> Array:
    h, w = case.x.shape[1:]
    generator = draws(case, "rise")
    grids = torch.rand(samples, cells, cells, generator=generator) < keep
    shifts = torch.rand(samples, 2, generator=generator)
    tall, wide = math.ceil(h / cells), math.ceil(w / cells)
    total, weight = np.zeros((h, w)), np.zeros((h, w))
    for grid, shift in zip(grids, shifts, strict=True):
        down, across = int(shift[0] * tall), int(shift[1] * wide)
        mask = np.zeros((h, w))
        for i, j in np.ndindex(h, w):
            # The centre of a pixel of the enlarged grid, in cells; beyond the outermost centres the border cell.
            y = min(max((i + down + 0.5) * cells / ((cells + 1) * tall) - 0.5, 0), cells - 1)
            x = min(max((j + across + 0.5) * cells / ((cells + 1) * wide) - 0.5, 0), cells - 1)
            for a, b in itertools.product({math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}):
                mask[i, j] += float(grid[a, b]) * (1 - abs(y - a)) * (1 - abs(x - b))
        total += score_of(case, mixed(case, mask, baseline)) * mask
        weight += mask
    return total / (weight if normalize == "sum" else samples * keep)


# --- segments ----------------------------------------------------------------------------------------------------


def segments_of(case: Case, segments: str, count: int) -> Array:
    h, w = case.x.shape[1:]
    if segments == "slic":
        from skimage.segmentation import slic

        spec, pixels = case.model.spec, np.zeros((h, w, 3))
        for k, i, j in np.ndindex(*case.x.shape):
            # float32, as the images that are explained are for the superpixels
            value = np.float32(case.x[k, i, j]) * np.float32(spec.std[k]) + np.float32(spec.mean[k])
            pixels[i, j, k] = min(max(float(value), 0.0), 1.0)
        return slic(pixels, n_segments=count, start_label=0, channel_axis=-1)
    rows = round(math.sqrt(count * h / w))
    columns = round(count / rows)
    out = np.zeros((h, w), int)
    for i, j in np.ndindex(h, w):
        out[i, j] = int((i + 0.5) * rows / h) * columns + int((j + 0.5) * columns / w)
    return out


def run(case: Case, labels: Array, kept: list[bool], baseline: str) -> float:
    shown = np.zeros(labels.shape)
    for cell in np.ndindex(*labels.shape):
        shown[cell] = float(kept[labels[cell]])
    return score_of(case, mixed(case, shown, baseline))


def spread(labels: Array, values: list[float]) -> Array:
    out = np.zeros(labels.shape)
    for cell in np.ndindex(*labels.shape):
        out[cell] = values[labels[cell]]
    return out


@replicates("feature-ablation", ONE, segments="grid", count=6)
@replicates("feature-ablation", ONE, segments="grid", count=4, baseline="black", chunk=3)
@replicates("feature-ablation", ONE, segments="slic")
def feature_ablation(case: Case, segments: str, count: int = 50, baseline: str = "mean", chunk: int = 0) -> Array:
    labels = segments_of(case, segments, count)
    n = labels.max() + 1
    clean = score_of(case, case.x)
    return spread(labels, [clean - run(case, labels, [j != k for j in range(n)], baseline) for k in range(n)])


@replicates("shapley-sampling", ONE, segments="grid", count=6, samples=3)
@replicates("shapley-sampling", ONE, segments="grid", count=4, baseline="black", chunk=3)
@replicates("shapley-sampling", ONE, segments="slic")
def shapley_sampling(
    case: Case, segments: str, count: int = 50, samples: int = 10, baseline: str = "mean", chunk: int = 0
) -> Array:
    labels = segments_of(case, segments, count)
    n, generator = labels.max() + 1, draws(case, "shapley-sampling")
    orders: list[list[int]] = []
    if math.factorial(n) <= samples:
        orders, samples = [list(order) for order in itertools.permutations(range(n))], math.factorial(n)
    while len(orders) < samples:
        places = torch.randperm(n, generator=generator).tolist()
        order = [places.index(k) for k in range(n)]
        orders += [order, order[::-1]]
    orders = orders[:samples]
    values = [0.0] * n
    for order in orders:
        kept = [False] * n
        before = run(case, labels, kept, baseline)
        for k in order:
            kept[k] = True
            after = run(case, labels, kept, baseline)
            values[k] += (after - before) / len(orders)
            before = after
    return spread(labels, values)


def exact_shapley(case: Case, labels: Array, baseline: str) -> list[float]:
    """By definition: the gain of each segment, over all coalitions of the others."""
    n = labels.max() + 1
    values = [0.0] * n
    for k in range(n):
        others = [j for j in range(n) if j != k]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for chosen in itertools.combinations(others, size):
                kept = [j in chosen for j in range(n)]
                without = run(case, labels, kept, baseline)
                kept[k] = True
                values[k] += weight * (run(case, labels, kept, baseline) - without)
    return values


@replicates("shapley-sampling", ONE, segments="grid", count=3, samples=6)
@replicates("kernel-shap", ONE, segments="grid", count=4, baseline="black", chunk=3)
@replicates("kernel-shap", ONE, segments="slic")
def all_coalitions(
    case: Case, segments: str, count: int = 50, samples: int = 500, baseline: str = "mean", chunk: int = 0
) -> Array:
    """With every order, or every coalition, the methods are exact."""
    labels = segments_of(case, segments, count)
    return spread(labels, exact_shapley(case, labels, baseline))


@replicates("kernel-shap", ONE, segments="grid", count=6, samples=20)
def kernel_shap(case: Case, segments: str, count: int, samples: int) -> Array:
    labels = segments_of(case, segments, count)
    n, generator = labels.max() + 1, draws(case, "kernel-shap")
    chances = torch.tensor([1 / (s * (n - s)) for s in range(1, n)], dtype=torch.float64)
    sizes = (torch.multinomial(chances, samples // 2, replacement=True, generator=generator) + 1).tolist()
    noise = torch.rand(samples // 2, n, generator=generator).tolist()
    coalitions = []
    for size, values in zip(sizes, noise, strict=True):
        kept = [sorted(values).index(value) < size for value in values]
        coalitions += [kept, [not k for k in kept]]
    empty, total = (
        run(case, labels, [False] * n, "mean"),
        score_of(case, case.x) - run(case, labels, [False] * n, "mean"),
    )
    # The last value is what the others leave: an ordinary least-squares problem.
    rows = [[float(z[k]) - float(z[-1]) for k in range(n - 1)] for z in coalitions]
    aims = [run(case, labels, z, "mean") - empty - float(z[-1]) * total for z in coalitions]
    free = np.linalg.lstsq(np.array(rows), np.array(aims), rcond=None)[0]
    return spread(labels, [*free, total - free.sum()])


@replicates("lime", ONE, segments="grid", count=6, samples=12)
@replicates("lime", ONE, segments="grid", count=4, samples=12, width=0.5, penalty=0.1, baseline="black", chunk=5)
@replicates("lime", ONE, segments="slic", samples=3)
def lime(
    case: Case,
    segments: str,
    samples: int,
    count: int = 50,
    width: float = 0.25,
    penalty: float = 1.0,
    baseline: str = "mean",
    chunk: int = 0,
) -> Array:
    labels = segments_of(case, segments, count)
    n = labels.max() + 1
    drawn = (torch.rand(samples - 1, n, generator=draws(case, "lime")) < 0.5).tolist()
    rows, aims = [], []
    for kept in [[True] * n, *drawn]:
        distance = 1 - (math.sqrt(sum(kept) / n) if any(kept) else 0)  # cosine between it and ones
        root = math.sqrt(math.exp(-(distance**2) / (2 * width**2)))
        rows.append([root] + [root * float(k) for k in kept])
        aims.append(root * run(case, labels, kept, baseline))
    for k in range(n):  # the penalty as one more observation of each coefficient
        rows.append([0.0] + [math.sqrt(penalty) if j == k else 0.0 for j in range(n)])
        aims.append(0.0)
    return spread(labels, list(np.linalg.lstsq(np.array(rows), np.array(aims), rcond=None)[0][1:]))
