"""Oracles of the methods that gather gradients: along a path, over noise, and DeepLIFT's slopes."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from tests.oracles.naive import reduced, replicates
from tests.oracles.network import Array, Case, conv_back, norm_back

ONE = ("tiny_cnn",)
_gradients: dict[tuple[int, int, bytes], Array] = {}


def draws(case: Case, name: str) -> torch.Generator:
    """Random numbers from the image's seed and a name."""
    digest = hashlib.blake2b(f"{case.seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def at(case: Case, x: Array) -> Case:
    """The same network and class for another image."""
    return Case(case.model, x, case.target, case.layer, case.seed)


def gradient_at(case: Case, x: Array) -> Array:
    key = (id(case.model), case.target, x.tobytes())
    if key not in _gradients:
        _gradients[key] = at(case, x).values["gradient"]
    return _gradients[key]


def baseline_of(case: Case, baseline: str, generator: torch.Generator | None = None) -> Array:
    """An image on pixels, normalized."""
    spec, out = case.model.spec, np.zeros_like(case.x)
    if baseline == "mean":
        return out
    noise = torch.rand(case.x.shape, generator=generator or draws(case, "Noise()")).double().numpy()
    for cell in np.ndindex(*out.shape):
        pixel = {"black": 0.0, "noise": float(noise[cell])}[baseline]
        out[cell] = (pixel - spec.mean[cell[0]]) / spec.std[cell[0]]
    return out


def legendre(n: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1]: roots of the Legendre polynomial by Newton's method."""
    nodes, weights = [], []
    for k in range(1, n + 1):
        t = math.cos(math.pi * (k - 0.25) / (n + 0.5))
        for _ in range(50):
            before, value = 0.0, 1.0
            for j in range(1, n + 1):
                before, value = value, ((2 * j - 1) * t * value - (j - 1) * before) / j
            slope = n * (t * value - before) / (t * t - 1)
            t -= value / slope
        nodes.append((1 + t) / 2)
        weights.append(1 / ((1 - t * t) * slope * slope))
    return nodes, weights


@replicates("integrated-gradients", steps=3)
@replicates("integrated-gradients", ONE, steps=4, rule="midpoint", reduce="sum", chunk=3)
@replicates("integrated-gradients", ONE, steps=3, rule="gauss-legendre", reduce="max", baseline="mean")
@replicates("integrated-gradients", ONE, steps=3, reduce="mean_abs")
@replicates("integrated-gradients", ONE, steps=3, reduce="norm", baseline="noise")
def integrated_gradients(
    case: Case, steps: int, rule: str = "midpoint", reduce: str = "sum", baseline: str = "black", chunk: int = 0
) -> Array:
    start = baseline_of(case, baseline)
    nodes, weights = [(k + 0.5) / steps for k in range(steps)], [1 / steps] * steps
    if rule == "gauss-legendre":
        nodes, weights = legendre(steps)
    total = np.zeros_like(case.x)
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * gradient_at(case, start + node * (case.x - start))
    return reduced((case.x - start) * total, reduce)


def blurred(x: Array, sigma: float) -> Array:
    """Rows, then columns; a pixel beyond the border is the one on it."""
    if sigma == 0:
        return x
    radius = math.ceil(3 * sigma)
    weight = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-radius, radius + 1)]
    for axis in (1, 2):
        out, last = np.zeros_like(x), x.shape[axis] - 1
        for cell in np.ndindex(*x.shape):
            for k in range(-radius, radius + 1):
                place = list(cell)
                place[axis] = min(max(cell[axis] + k, 0), last)
                out[cell] += weight[k + radius] / sum(weight) * x[tuple(place)]
        x = out
    return x


@replicates("blur-ig", ONE, steps=3, sigma=0.1, reduce="sum")
@replicates("blur-ig", ONE, steps=3, sigma=0.1, reduce="max")
@replicates("blur-ig", ONE, steps=3, sigma=0.1, reduce="mean_abs", chunk=3)
@replicates("blur-ig", ONE, steps=3, sigma=0.1, reduce="norm")
def blur_ig(case: Case, steps: int, sigma: float, reduce: str, chunk: int = 0) -> Array:
    most = sigma * min(case.x.shape[1:])
    points = [blurred(case.x, most * (i / steps) ** 2) for i in range(steps + 1)]
    total = np.zeros_like(case.x)
    for sharp, soft in itertools.pairwise(points):
        total += (gradient_at(case, sharp) + gradient_at(case, soft)) / 2 * (sharp - soft)
    return reduced(total, reduce)


@replicates("guided-ig", ONE, steps=4, reach=0.2)
@replicates("guided-ig", ONE, steps=3, fraction=0.1, reach=0.5, baseline="mean", reduce="max", chunk=1)
@replicates("guided-ig", ONE, steps=3, reduce="sum")
@replicates("guided-ig", ONE, steps=3, reduce="mean_abs")
@replicates("guided-ig", ONE, steps=3, reduce="norm")
def guided_ig(
    case: Case,
    steps: int,
    fraction: float = 0.25,
    reach: float = 0.02,
    baseline: str = "black",
    reduce: str = "sum",
    chunk: int = 0,
) -> Array:
    """Group after group, as in the paper: features of least gradient go as far as they may, until the step is made."""
    start, end = baseline_of(case, baseline), case.x
    x, total = start.copy(), np.zeros_like(start)
    gradient, length = gradient_at(case, x), float(np.abs(end - start).sum())
    for step in range(1, steps + 1):
        alpha = step / steps
        lowest = start + (end - start) * max(alpha - reach, 0)
        highest = start + (end - start) * min(alpha + reach, 1)
        before, cost = x.copy(), np.abs(gradient)
        for cell in np.ndindex(*x.shape):
            if abs(x[cell] - start[cell]) < abs(lowest[cell] - start[cell]):
                x[cell] = lowest[cell]
        while True:
            left = float(np.abs(end - x).sum()) - length * (1 - alpha)
            if left <= 1e-9 * length:
                break
            cost[np.abs(highest - x) < 1e-12] = np.inf
            limit = np.quantile(cost, fraction, method="lower")
            chosen = (cost <= limit) & (cost < np.inf)
            way = float(np.abs(highest - x)[chosen].sum())
            x[chosen] += min(left / way, 1) * (highest - x)[chosen]
        following = gradient_at(case, x)
        total += (gradient + following) / 2 * (x - before)
        gradient = following
    return reduced(total, reduce)


@replicates("gradient-shap", ONE, samples=3, reduce="sum", chunk=2)
@replicates("gradient-shap", ONE, samples=2, reduce="max", baseline="black")
@replicates("gradient-shap", ONE, samples=2, reduce="mean_abs")
@replicates("gradient-shap", ONE, samples=2, reduce="norm")
def gradient_shap(case: Case, samples: int, reduce: str = "sum", baseline: str = "noise", chunk: int = 0) -> Array:
    shares = torch.rand(samples, generator=draws(case, "gradient-shap"))
    noise = draws(case, "gradient-shap/Noise()")
    total = np.zeros_like(case.x)
    for share in shares.double().tolist():
        start = baseline_of(case, baseline, noise)
        total += (case.x - start) * gradient_at(case, start + share * (case.x - start))
    return reduced(total / samples, reduce)


# --- noise -------------------------------------------------------------------------------------------------------

INNER: dict[str, Callable[[Case], tuple[Array, str | None]]] = {
    "saliency": lambda case: (case.values["gradient"], "max"),
    "saliency:reduce=sum": lambda case: (case.values["gradient"], "sum"),
    "input-x-gradient": lambda case: (case.x * case.values["gradient"], "sum"),
    "guided-backprop": lambda case: (case.values["guided"], "max"),
    "activation": lambda case: (np.sqrt((case.features**2).sum(axis=0))[None], None),
}
_noisy: dict[tuple[int, int, str, int, float], tuple[list[Array], str | None]] = {}


def noisy(case: Case, of: str, samples: int, noise: float) -> tuple[list[Array], str | None]:
    """Attributions of noisy copies, and how their channels are reduced."""
    key = (id(case.model), case.target, of, samples, noise)
    if key not in _noisy:
        generator, sigma = draws(case, "noise tunnel"), noise * (case.x.max() - case.x.min())
        found = []
        for _ in range(samples):
            drawn = torch.randn(case.x.shape, generator=generator).double().numpy()
            found.append(INNER[of](at(case, case.x + sigma * drawn)))
        _noisy[key] = [values for values, _ in found], found[0][1]
    return _noisy[key]


def shown(values: Array, reduce: str | None) -> Array:
    return values[0] if reduce is None else reduced(values, reduce)


@replicates("smoothgrad", ONE, samples=5, chunk=2)
@replicates("smoothgrad", ONE, samples=3, noise=0.3, of="input-x-gradient")
@replicates("smoothgrad", ONE, samples=3, of="guided-backprop")
@replicates("smoothgrad", ONE, samples=3, of="activation")
def smooth_grad(case: Case, samples: int, noise: float = 0.15, of: str = "saliency", chunk: int = 0) -> Array:
    values, reduce = noisy(case, of, samples, noise)
    return shown(sum(values) / samples, reduce)


@replicates("smoothgrad-squared", ONE, samples=5, chunk=2)
@replicates("smoothgrad-squared", ONE, samples=3, noise=0.3, of="input-x-gradient")
def smooth_grad_squared(case: Case, samples: int, noise: float = 0.15, of: str = "saliency", chunk: int = 0) -> Array:
    values, reduce = noisy(case, of, samples, noise)
    return shown(sum(value**2 for value in values) / samples, reduce)


@replicates("vargrad", ONE, samples=5, chunk=2)
@replicates("vargrad", ONE, samples=3, noise=0.3, of="activation")
def var_grad(case: Case, samples: int, noise: float = 0.15, of: str = "saliency", chunk: int = 0) -> Array:
    values, reduce = noisy(case, of, samples, noise)
    mean = sum(values) / samples
    return shown(sum((value - mean) ** 2 for value in values) / samples, reduce)


# --- DeepLIFT ----------------------------------------------------------------------------------------------------


def rescaled(r: Array, x: Array, start: Array) -> Array:
    """What passes a ReLU: its slope between the two points."""
    out = np.zeros_like(r)
    for cell in np.ndindex(*x.shape):
        if x[cell] != start[cell]:
            out[cell] = r[cell] * (max(x[cell], 0) - max(start[cell], 0)) / (x[cell] - start[cell])
    return out


def lifted(case: Case, start: Array) -> Array:
    """Contributions of the pixels to the difference of the logits."""
    m, v, b = case.model, case.values, at(case, start).values
    row = m.fc.weight[case.target].detach().double().numpy()
    at_trunk = np.zeros_like(v["trunk"])
    for cell in np.ndindex(*at_trunk.shape):
        at_trunk[cell] = row[cell[0]] / at_trunk[0].size
    at_sum = rescaled(at_trunk, v["sum"], b["sum"])
    at_second = at_sum + conv_back(norm_back(at_sum, m.bn3), m.conv3, v["bn2"].shape)
    at_second = rescaled(at_second, v["bn2"], b["bn2"])
    at_first = rescaled(conv_back(norm_back(at_second, m.bn2), m.conv2, v["bn1"].shape), v["bn1"], b["bn1"])
    return (case.x - start) * conv_back(norm_back(at_first, m.bn1), m.conv1, case.x.shape)


@replicates("deeplift")
@replicates("deeplift", ONE, reduce="sum", baseline="mean", chunk=1)
@replicates("deeplift", ONE, reduce="max")
@replicates("deeplift", ONE, reduce="mean_abs")
@replicates("deeplift", ONE, reduce="norm")
def deep_lift(case: Case, reduce: str = "sum", baseline: str = "black", chunk: int = 0) -> Array:
    return reduced(lifted(case, baseline_of(case, baseline)), reduce)


@replicates("deeplift-shap", ONE, samples=3, reduce="sum", chunk=2)
@replicates("deeplift-shap", ONE, samples=2, reduce="max")
@replicates("deeplift-shap", ONE, samples=2, reduce="mean_abs", baseline="black")
@replicates("deeplift-shap", ONE, samples=2, reduce="norm")
def deep_lift_shap(case: Case, samples: int, reduce: str = "sum", baseline: str = "noise", chunk: int = 0) -> Array:
    noise = draws(case, "deeplift-shap/Noise()")
    return reduced(sum(lifted(case, baseline_of(case, baseline, noise)) for _ in range(samples)) / samples, reduce)
