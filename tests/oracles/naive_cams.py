"""The other class activation maps, from their papers, in float64 numpy; see `naive` for what an oracle is."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from tests.oracles.naive import bilinear, replicates, weighted
from tests.oracles.network import Array, Case, conv_back, norm, norm_back, norm_scale, relu, relu_back

# --- the network again, on any image: sums of shifted images, so that a hundred passes take no time -----------------


def quick_conv(x: Array, module: nn.Conv2d) -> Array:
    weight, bias = module.weight.detach().double().numpy(), module.bias
    (s, _), (p, _), k = module.stride, module.padding, module.kernel_size[0]
    padded = np.pad(x, ((0, 0), (p, p), (p, p)))
    h, w = ((n + 2 * p - k) // s + 1 for n in x.shape[1:])
    out = np.zeros((len(weight), h, w)) if bias is None else np.tile(bias.detach().numpy()[:, None, None], (1, h, w))
    for a in range(k):
        for b in range(k):
            shifted = padded[:, a : a + s * (h - 1) + 1 : s, b : b + s * (w - 1) + 1 : s]
            out += np.einsum("oc,chw->ohw", weight[:, :, a, b], shifted)
    return out


def logits_after(model: nn.Module, conv3: Array, second: Array) -> tuple[Array, Array]:
    """Logits (K,) and trunk from the output of conv3 and what is added to it."""
    trunk = relu(norm(conv3, model.bn3) + second)
    return head(model, trunk), trunk


def head(model: nn.Module, trunk: Array) -> Array:
    return model.fc.weight.detach().numpy() @ trunk.mean((1, 2)) + model.fc.bias.detach().numpy()


def second_of(model: nn.Module, x: Array) -> Array:
    first = relu(norm(quick_conv(x, model.conv1), model.bn1))
    return relu(norm(quick_conv(first, model.conv2), model.bn2))


def logits_of(model: nn.Module, x: Array) -> Array:
    second = second_of(model, x)
    return logits_after(model, quick_conv(second, model.conv3), second)[0]


def pulled_back(case: Case, row: Array, values: dict[str, Array] | None = None) -> Array:
    """What arrives at the features when the mean of trunk channel k is worth row[k]."""
    values = case.values if values is None else values
    at_trunk = np.zeros_like(values["trunk"])
    for k, i, j in np.ndindex(*at_trunk.shape):
        at_trunk[k, i, j] = row[k] / at_trunk[0].size
    if case.layer != "conv3":
        return at_trunk
    return norm_back(relu_back(at_trunk, values["sum"], False), case.model.bn3)


def rows_of(case: Case) -> Array:
    return case.model.fc.weight.detach().double().numpy()


def mean_weights(gradient: Array) -> list[float]:
    return [float(channel.sum()) / channel.size for channel in gradient]


def logits_here(case: Case) -> Array:
    return head(case.model, case.values["trunk"])


def generator_of(case: Case, method: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{case.seed}/{method}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


# --- channels by what the score does with them -----------------------------------------------------------------------


@replicates("scorecam")
@replicates("scorecam", weights="softmax", chunk=3)
@replicates("scorecam", weights="increase")
def score_cam(case: Case, weights: str = "softmax", chunk: int = 64) -> Array:
    scores, used = [], []
    for channel in case.features:
        mask = bilinear(channel, *case.x.shape[1:])
        used.append(channel.max() > channel.min())
        mask = (mask - mask.min()) / (mask.max() - mask.min()) if used[-1] else mask * 0
        scores.append(float(logits_of(case.model, case.x * mask)[case.target]))
    baseline = float(logits_of(case.model, case.x * 0)[case.target])
    total = sum(math.exp(s - baseline) for s, u in zip(scores, used, strict=True) if u)
    found = []
    for score, use in zip(scores, used, strict=True):
        value = math.exp(score - baseline) / total if weights == "softmax" else score - baseline
        found.append(value if use else 0.0)
    return weighted(case.features, found, True)


@replicates("ablationcam")
@replicates("ablationcam", relative=False, chunk=3)
@replicates("ablationcam", relative=True)
def ablation_cam(case: Case, relative: bool = False, chunk: int = 64) -> Array:
    score = float(logits_here(case)[case.target])
    found = []
    for k in range(len(case.features)):
        changed = case.features.copy()
        changed[k] = 0
        if case.layer == "conv3":
            logits = logits_after(case.model, changed, relu(case.values["bn2"]))[0]
        else:
            logits = head(case.model, changed)
        fall = score - float(logits[case.target])
        found.append(fall / score if relative else fall)
    return weighted(case.features, found, True)


# --- other gradients -------------------------------------------------------------------------------------------------


@replicates("gradcam-elementwise")
def grad_cam_elementwise(case: Case) -> Array:
    out = np.zeros(case.features.shape[1:])
    for k, i, j in np.ndindex(*case.features.shape):
        out[i, j] += max(case.gradient[k, i, j] * case.features[k, i, j], 0.0)
    return out


@replicates("finercam")
@replicates("finercam", strength=1.0)
@replicates("finercam", classes=2)
@replicates("finercam", classes=100, strength=0.3)
def finer_cam(case: Case, strength: float = 0.6, classes: int = 3) -> Array:
    logits, target = logits_here(case), case.target
    others = sorted((k for k in range(len(logits)) if k != target), key=lambda k: abs(logits[k] - logits[target]))
    others = others[:classes]
    row = rows_of(case)[target].copy()
    for other in others:
        row -= strength * rows_of(case)[other] / len(others)
    return weighted(case.features, mean_weights(pulled_back(case, row)), True)


@replicates("shapleycam")
@replicates("shapleycam", utility="rest")
@replicates("shapleycam", utility="score")
def shapley_cam(case: Case, utility: str = "rest") -> Array:
    """The features are piecewise linear up to the logits z; 2 z_c - log sum exp z has the Hessian -(diag p - p p^T)."""
    if utility == "score":
        return weighted(case.features, mean_weights(case.gradient), True)
    z = logits_here(case)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    slope = -p.copy()
    slope[case.target] += 2
    # along the features themselves the logits move by J A
    moved = np.array([float((pulled_back(case, row) * case.features).sum()) for row in rows_of(case)])
    bent = -(p * moved - p * float(p @ moved))
    corrected = pulled_back(case, rows_of(case).T @ slope) - pulled_back(case, rows_of(case).T @ bent) / 2
    return weighted(case.features, mean_weights(corrected), True)


@replicates("smoothgradcam++")
@replicates("smoothgradcam++", samples=3)
@replicates("smoothgradcam++", samples=2, noise=0.5)
def smooth_grad_cam_plus_plus(case: Case, samples: int = 8, noise: float = 0.15) -> Array:
    model, generator = case.model, generator_of(case, "smoothgradcam++")
    deviation = noise * (case.x.max() - case.x.min())
    gradients = []
    for _ in range(samples):
        x = case.x + deviation * torch.randn(case.x.shape, generator=generator).double().numpy()
        second = second_of(model, x)
        total = norm(quick_conv(second, model.conv3), model.bn3) + second
        gradients.append(pulled_back(case, rows_of(case)[case.target], {"sum": total, "trunk": relu(total)}))
    h, w = case.features.shape[1:]
    weights = []
    for k in range(len(case.features)):
        activity = float(case.features[k].sum())
        weight = 0.0
        for i in range(h):
            for j in range(w):
                g = [float(one[k, i, j]) for one in gradients]
                square, cube = (sum(value**power for value in g) / samples for power in (2, 3))
                denominator = 2 * square + activity * cube
                if denominator != 0:
                    weight += square / denominator * max(sum(g) / samples, 0.0)
        weights.append(weight)
    return weighted(case.features, weights, True)


# --- components ------------------------------------------------------------------------------------------------------


def as_rows(features: Array) -> Array:
    return features.reshape(len(features), -1).T


@replicates("eigengradcam")
@replicates("eigengradcam", center=False)
@replicates("eigengradcam", center=True)
def eigen_grad_cam(case: Case, center: bool = False) -> Array:
    rows = as_rows(case.features * case.gradient)
    evidence = rows.sum(1)
    rows = rows - rows.mean(0) if center else rows
    out = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    return (out if out @ evidence >= 0 else -out).reshape(case.features.shape[1:])


@replicates("kpca-cam")
@replicates("kpca-cam", kernel="sigmoid", gamma=0.02)
@replicates("kpca-cam", kernel="rbf")
def kpca_cam(case: Case, kernel: str = "sigmoid", gamma: float | None = None) -> Array:
    rows = as_rows(case.features)
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in rows]
    rows = rows - rows.mean(0)
    gamma = 1 / rows.shape[1] if gamma is None else gamma
    n = len(rows)
    k = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if kernel == "sigmoid":
                k[i, j] = math.tanh(gamma * float(rows[i] @ rows[j]) + 1)
            else:
                k[i, j] = math.exp(-gamma * float(((rows[i] - rows[j]) ** 2).sum()))
    away = np.eye(n) - np.ones((n, n)) / n
    values, vectors = np.linalg.eigh(away @ k @ away)
    out = vectors[:, -1] * math.sqrt(values[-1])
    return (out if out @ np.array(lengths) >= 0 else -out).reshape(case.features.shape[1:])


@replicates("fem")
@replicates("fem", k=0.5)
def fem(case: Case, k: float = 2.0) -> Array:
    out = np.zeros(case.features.shape[1:])
    for channel in case.features:
        mean = float(channel.sum()) / channel.size
        deviation = math.sqrt(sum((float(value) - mean) ** 2 for value in channel.flat) / channel.size)
        for i, j in np.ndindex(*out.shape):
            if channel.max() > channel.min() and channel[i, j] > mean + k * deviation:
                out[i, j] += mean
    return out


@replicates("dff")
@replicates("dff", parts=1)
@replicates("dff", parts=4, iterations=7)
def dff(case: Case, parts: int = 3, iterations: int = 30) -> Array:
    """Coordinate descent: each value in turn is set to the best one, given all others."""
    x = np.maximum(as_rows(case.features), 0)
    cells, channels = x.shape
    u, v = np.zeros((cells, parts)), np.zeros((parts, channels))
    rest = x.copy()
    for k in range(parts):
        lengths = [math.sqrt(float((row**2).sum())) for row in rest]
        longest = lengths.index(max(lengths))
        v[k] = x[longest]
        direction = rest[longest] / lengths[longest]
        rest = np.array([row - float(row @ direction) * direction for row in rest])
    for _ in range(iterations):
        for k in range(parts):
            for i in range(cells):
                others = x[i] - sum(u[i, p] * v[p] for p in range(parts) if p != k)
                u[i, k] = max(float(others @ v[k]) / float(v[k] @ v[k]), 0.0)
        for k in range(parts):
            for c in range(channels):
                others = x[:, c] - sum(u[:, p] * v[p, c] for p in range(parts) if p != k)
                v[k, c] = max(float(others @ u[:, k]) / float(u[:, k] @ u[:, k]), 0.0)
    lengths = [math.sqrt(float((row**2).sum())) for row in v]
    return sum(u[:, k] * lengths[k] for k in range(parts)).reshape(case.features.shape[1:]) / parts


# --- every bias ------------------------------------------------------------------------------------------------------


def terms(case: Case) -> dict[str, Array]:
    """Bias times gradient of every layer, and input times gradient; `fc` has no place on the image."""
    m, v = case.model, case.values

    def bias(module: nn.Module) -> Array:
        return norm_scale(module)[1] if isinstance(module, nn.BatchNorm2d) else module.bias.detach().double().numpy()

    at_trunk = np.zeros_like(v["trunk"])
    for k, i, j in np.ndindex(*at_trunk.shape):
        at_trunk[k, i, j] = rows_of(case)[case.target, k] / at_trunk[0].size
    at = {"bn3": relu_back(at_trunk, v["sum"], False)}
    at["conv3"] = norm_back(at["bn3"], m.bn3)
    second = at["bn3"] + conv_back(at["conv3"], m.conv3, v["bn2"].shape)
    at["bn2"] = relu_back(second, v["bn2"], False)
    at["conv2"] = norm_back(at["bn2"], m.bn2)
    at["bn1"] = relu_back(conv_back(at["conv2"], m.conv2, v["bn1"].shape), v["bn1"], False)
    at["conv1"] = norm_back(at["bn1"], m.bn1)
    found = {name: bias(getattr(m, name))[:, None, None] * gradient for name, gradient in at.items()}
    found["input"] = case.x * case.values["gradient"]
    return found


@replicates("fullgrad")
def full_grad(case: Case) -> Array:
    case = replace(case, layer=None)
    found = terms(case)
    total = sum(float(term.sum()) for term in found.values()) + float(case.model.fc.bias.detach()[case.target])
    assert math.isclose(total, float(logits_here(case)[case.target]), rel_tol=1e-9)  # the score is complete
    out = np.zeros(case.x.shape[1:])
    for term in found.values():
        size = np.abs(term)
        scaled = (size - size.min()) / (size.max() - size.min())
        for channel in scaled:
            out += bilinear(channel, *out.shape)
    return out
