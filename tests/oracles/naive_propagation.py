"""Oracles of propagation: each layer as a matrix of its connections, and the rules on the products a_j w_jk."""

from __future__ import annotations

import numpy as np
from torch import nn

from tests.oracles.naive import bcnn_weights, part_weights, reduced, replicates
from tests.oracles.network import Array, Case, conv, conv_back, norm, norm_back, norm_scale, relu

TINY = 1e-6  # the stabilizer
EVERY_HEAD = ("tiny_cnn", "tiny_functional", "tiny_bcnn", "tiny_brnpa")


def steady(z: float, epsilon: float = TINY) -> float:
    return z + epsilon if z >= 0 else z - epsilon


def connections(module: nn.Conv2d, shape: tuple[int, ...], bn: nn.BatchNorm2d | None) -> tuple[Array, Array, Array]:
    """Weights (outputs, inputs) and biases (outputs,) of a convolution with its batch norm, and which weights exist."""
    weight, (s, _), (p, _) = module.weight.detach().double().numpy(), module.stride, module.padding
    scale, offset = norm_scale(bn) if bn is not None else (np.ones(len(weight)), np.zeros(len(weight)))
    k = weight.shape[2]
    h, w = ((n + 2 * p - k) // s + 1 for n in shape[1:])
    matrix, there = np.zeros((len(weight), h, w, *shape)), np.zeros((len(weight), h, w, *shape), bool)
    biases = np.zeros((len(weight), h, w))
    for o, i, j in np.ndindex(len(weight), h, w):
        bias = 0.0 if module.bias is None else float(module.bias.detach()[o])
        biases[o, i, j] = bias * scale[o] + offset[o]
        for a in range(k):
            for b in range(k):
                y, z = i * s + a - p, j * s + b - p
                if 0 <= y < shape[1] and 0 <= z < shape[2]:
                    matrix[o, i, j, :, y, z] = weight[o, :, a, b] * scale[o]
                    there[o, i, j, :, y, z] = True
    size = int(np.prod(shape))
    return matrix.reshape(-1, size), biases.reshape(-1), there.reshape(-1, size)


class Rule:
    """Relevance (inputs,) below a layer from that (outputs,) above it."""

    def __init__(
        self, name: str, epsilon: float = TINY, gamma: float = 0.25, bias: bool = True, box: Array | None = None
    ) -> None:
        self.name, self.epsilon, self.gamma, self.bias, self.box = name, epsilon, gamma, bias, box

    def __call__(self, x: Array, r: Array, weights: Array, biases: Array, there: Array | None = None) -> Array:
        below = np.zeros(len(x))
        for k in range(len(r)):
            products, b = x * weights[k], float(biases[k]) if self.bias else 0.0
            up, down = np.maximum(products, 0), np.minimum(products, 0)
            if self.name == "epsilon":
                below += products / steady(products.sum() + b, self.epsilon) * r[k]
            elif self.name == "plus":
                below += up / steady(up.sum() + max(b, 0)) * r[k]
            elif self.name == "alpha2-beta1":
                below += 2 * up / steady(up.sum() + max(b, 0)) * r[k]
                below -= down / steady(down.sum() + min(b, 0)) * r[k]
            elif self.name == "gamma":
                z = products.sum() + b
                favoured = products + self.gamma * (up if z > 0 else down)
                share = b + self.gamma * (max(b, 0) if z > 0 else min(b, 0))
                below += favoured / steady(favoured.sum() + share) * r[k]
            elif self.name == "flat":
                below += there[k] / steady(there[k].sum()) * r[k]
            elif self.name == "box":
                low, high = self.box
                reach = products - low * np.maximum(weights[k], 0) - high * np.minimum(weights[k], 0)
                below += reach / steady(reach.sum()) * r[k]
        return below


def through(x: Array, r: Array, module: nn.Conv2d, bn: nn.BatchNorm2d | None, rule: Rule) -> Array:
    matrix, biases, there = connections(module, x.shape, bn)
    return rule(x.reshape(-1), r.reshape(-1), matrix, biases, there).reshape(x.shape)


def in_proportion(parts: Array, r: float, excite: bool = False) -> Array:
    """A sum or a mean: each part gets what it adds; `excite` leaves out the parts that pull the other way."""
    whole = float(parts.sum())
    if excite:
        parts = np.maximum(parts, 0) if whole > 0 else np.minimum(parts, 0)
    return parts / steady(float(parts.sum())) * r


def pixel_range(case: Case) -> Array:
    """Black and white (2, inputs) in normalized space, or what the image has beyond them."""
    out = np.zeros((2, *case.x.shape))
    for c, (mean, std) in enumerate(zip(case.model.spec.mean, case.model.spec.std, strict=True)):
        out[0, c] = min((0 - mean) / std, float(case.x[c].min()))
        out[1, c] = max((1 - mean) / std, float(case.x[c].max()))
    return out.reshape(2, -1)


def top(case: Case, rule: Rule, r: float, sign: int = 1) -> Array:
    """Relevance of what the classifier reads, which is pooled."""
    classifier = case.model.fc if hasattr(case.model, "fc") else case.model.head.classifier
    row = sign * classifier.weight.detach().double().numpy()[[case.target]]
    bias = np.zeros(1) if classifier.bias is None else sign * classifier.bias.detach().double().numpy()[[case.target]]
    return rule(pooled(case).reshape(-1), np.array([r]), row, bias)


def maps_of(case: Case) -> Array:
    """The weights (P, h, w) by which the head pools; one map for a mean."""
    trunk = case.values["trunk"] if hasattr(case.model, "fc") else case.features
    h, w = trunk.shape[1:]
    if hasattr(case.model, "fc"):
        return np.full((1, h, w), 1 / (h * w))
    head = case.model.head
    return bcnn_weights(case) / (h * w) if head.name == "bcnn" else part_weights(trunk, head.parts)


def pooled(case: Case) -> Array:
    trunk, maps = case.values["trunk"] if hasattr(case.model, "fc") else case.features, maps_of(case)
    out = np.zeros((len(maps), len(trunk)))
    for p, c in np.ndindex(*out.shape):
        out[p, c] = float((maps[p] * trunk[c]).sum())
    return out


def at_features(case: Case, r: Array, excite: bool = False) -> Array:
    """From the pooled vectors to the cells, with the maps as constants."""
    trunk, maps = case.values["trunk"] if hasattr(case.model, "fc") else case.features, maps_of(case)
    below = np.zeros_like(trunk)
    for p, c in np.ndindex(len(maps), len(trunk)):
        below[c] += in_proportion(maps[p] * trunk[c], float(r.reshape(len(maps), -1)[p, c]), excite)
    return below


def split(a: Array, b: Array, r: Array, excite: bool) -> tuple[Array, Array]:
    """The residual sum."""
    parts = np.stack([a, b])
    for cell in np.ndindex(*r.shape):
        parts[:, *cell] = in_proportion(parts[:, *cell], float(r[cell]), excite)
    return parts[0], parts[1]


def down_to_pixels(case: Case, r: Array, first: Rule, others: Rule, excite: bool = False) -> Array:
    m, v = case.model, case.values
    if hasattr(m, "backbone"):
        conv1, bn1, _, conv2, _ = m.backbone
        hidden = relu(norm(conv(case.x, conv1), bn1))
        return through(case.x, through(hidden, r, conv2, None, others), conv1, bn1, first)
    second = relu(v["bn2"])
    branch, shortcut = split(v["sum"] - second, second, r, excite)
    at_second = shortcut + through(second, branch, m.conv3, m.bn3, others)
    at_first = through(relu(v["bn1"]), at_second, m.conv2, m.bn2, others)
    return through(case.x, at_first, m.conv1, m.bn1, first)


def logit(case: Case) -> float:
    classifier = case.model.fc if hasattr(case.model, "fc") else case.model.head.classifier
    row = classifier.weight.detach().double().numpy()[case.target]
    bias = 0.0 if classifier.bias is None else float(classifier.bias.detach()[case.target])
    return float(row @ pooled(case).reshape(-1)) + bias


@replicates("lrp", networks=EVERY_HEAD, composite="auto")
@replicates("lrp", networks=("tiny_cnn",), epsilon=0.3)
@replicates("lrp", networks=("tiny_bcnn",), gamma=0.7)
@replicates("lrp", networks=EVERY_HEAD, composite="epsilon-plus")
@replicates("lrp", networks=EVERY_HEAD, composite="epsilon-plus-flat")
@replicates("lrp", networks=EVERY_HEAD, composite="epsilon-gamma-box")
@replicates("lrp", networks=EVERY_HEAD, composite="epsilon-alpha2-beta1")
@replicates("lrp", networks=EVERY_HEAD, composite="epsilon-alpha2-beta1-flat")
def lrp(case: Case, composite: str = "auto", epsilon: float = TINY, gamma: float = 0.25) -> Array:
    if composite == "auto":
        composite = "epsilon-plus-flat" if hasattr(case.model, "fc") else "epsilon-gamma-box"
    middle, _, first = composite.removeprefix("epsilon-").partition("-")
    if middle == "alpha2":
        middle, first = "alpha2-beta1", first.removeprefix("beta1").removeprefix("-")
    others = Rule(middle, gamma=gamma)
    r = at_features(case, top(case, Rule("epsilon", epsilon), logit(case)))
    return down_to_pixels(case, r, Rule(first, box=pixel_range(case)) if first else others, others).sum(0)


@replicates("deep-taylor", networks=EVERY_HEAD)
def deep_taylor(case: Case) -> Array:
    plus = Rule("plus", bias=False)
    r = at_features(case, top(case, plus, logit(case)), excite=True)
    return down_to_pixels(case, r, Rule("box", box=pixel_range(case)), plus, excite=True).sum(0)


@replicates("excitation-backprop", contrastive=False)
@replicates("excitation-backprop", contrastive=True)
@replicates("excitation-backprop", networks=("tiny_bcnn", "tiny_brnpa"))
@replicates("excitation-backprop", networks=("tiny_bcnn", "tiny_brnpa"), contrastive=True)
def excitation_backprop(case: Case, contrastive: bool = False) -> Array:
    plus = Rule("plus", bias=False)
    vector = top(case, plus, 1.0)
    if contrastive:
        vector = vector - top(case, plus, 1.0, sign=-1)
    r = at_features(case, vector, excite=True)
    if case.layer == "conv3":
        second = relu(case.values["bn2"])
        r = split(case.values["sum"] - second, second, r, excite=True)[0]
        for k, scale in enumerate(norm_scale(case.model.bn3)[0]):  # a layer of its own, whose offset takes nothing
            for cell in np.ndindex(*r.shape[1:]):
                part = np.array([scale * case.values["conv3"][k, *cell]])
                r[k, *cell] = in_proportion(part, float(r[k, *cell]), excite=True)[0]
    return np.maximum(r.sum(0), 0) if contrastive else r.sum(0)


@replicates("deconvolution")
@replicates("deconvolution", reduce="max")
@replicates("deconvolution", reduce="sum")
@replicates("deconvolution", reduce="mean_abs")
@replicates("deconvolution", reduce="norm")
def deconvolution(case: Case, reduce: str = "max") -> Array:
    m, v = case.model, case.values
    row = m.fc.weight[case.target].detach().double().numpy()
    at_trunk = np.zeros_like(v["trunk"])
    for cell in np.ndindex(*at_trunk.shape):
        at_trunk[cell] = row[cell[0]] / at_trunk[0].size
    at_sum = relu(at_trunk)
    at_second = at_sum + conv_back(norm_back(at_sum, m.bn3), m.conv3, v["bn2"].shape)
    at_first = conv_back(norm_back(relu(at_second), m.bn2), m.conv2, v["bn1"].shape)
    return reduced(conv_back(norm_back(relu(at_first), m.bn1), m.conv1, case.x.shape), reduce)
