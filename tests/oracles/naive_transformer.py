"""The methods for vision transformers, from their papers, in float64 numpy; see `naive` for what an oracle is.

`Run` takes `tiny_models.TinyViT` forwards and backwards by hand, head by head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf

from tests.oracles.naive import replicates
from tests.oracles.network import Array, Case, conv, norm, relu

NETWORKS = ("tiny_vit", "tiny_vit_mean")


def values(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def linear(x: Array, module: nn.Linear) -> Array:
    return x @ values(module.weight).T + values(module.bias)


def layer_norm(x: Array, module: nn.LayerNorm) -> Array:
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        spread = math.sqrt(((row - row.mean()) ** 2).mean() + module.eps)
        out[t] = (row - row.mean()) / spread * values(module.weight) + values(module.bias)
    return out


def layer_norm_back(r: Array, x: Array, module: nn.LayerNorm) -> Array:
    out = np.zeros_like(x)
    for t, row in enumerate(x):
        spread = math.sqrt(((row - row.mean()) ** 2).mean() + module.eps)
        unit, g = (row - row.mean()) / spread, r[t] * values(module.weight)
        out[t] = (g - g.mean() - unit * (g * unit).mean()) / spread
    return out


def gelu(x: Array) -> Array:
    return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.flat]).reshape(x.shape)


def gelu_slope(x: Array) -> Array:
    def slope(v: float) -> float:
        return (1 + math.erf(v / math.sqrt(2))) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)

    return np.array([slope(v) for v in x.flat]).reshape(x.shape)


def softmax(scores: Array) -> Array:
    out = np.zeros_like(scores)
    for i, row in enumerate(scores):
        powers = [math.exp(v - row.max()) for v in row]
        out[i] = np.array(powers) / sum(powers)
    return out


@dataclass
class Layer:
    """What one block computed, per head where it matters."""

    x: Array
    q: list[Array] = field(default_factory=list)
    k: list[Array] = field(default_factory=list)
    v: list[Array] = field(default_factory=list)
    scores: list[Array] = field(default_factory=list)
    attention: list[Array] = field(default_factory=list)


class Run:
    """One image in a `TinyViT`."""

    def __init__(self, case: Case) -> None:
        self.model, self.target = case.model, case.target
        net = case.model.backbone
        cells = case.x
        for module in net.stem:
            cells = {nn.Conv2d: conv, nn.BatchNorm2d: norm, nn.ReLU: lambda x, _: relu(x)}[type(module)](cells, module)
        self.grid = cells.shape[1:]
        positions = nnf.interpolate(net.positions.detach(), self.grid, mode="bicubic", align_corners=False)
        tokens = (cells + values(positions)[0]).reshape(len(cells), -1).T
        self.prefix = 0
        if net.class_token is not None:
            tokens, self.prefix = np.concatenate([values(net.class_token)[None], tokens]), 1
        self.layers: list[Layer] = []
        for block in net.blocks:
            tokens = self.block(tokens, block)
        self.out = tokens

    def block(self, x: Array, block: nn.Module) -> Array:
        layer = Layer(x)
        self.layers.append(layer)
        layer.normed = layer_norm(x, block.norm1)
        qkv = linear(layer.normed, block.attn.qkv)
        width, heads = x.shape[1], block.attn.heads
        d = width // heads
        for h in range(heads):
            layer.q.append(qkv[:, h * d : (h + 1) * d])
            layer.k.append(qkv[:, width + h * d : width + (h + 1) * d])
            layer.v.append(qkv[:, 2 * width + h * d : 2 * width + (h + 1) * d])
            layer.scores.append(layer.q[h] @ layer.k[h].T / math.sqrt(d))
            layer.attention.append(softmax(layer.scores[h]))
        layer.mixed = np.concatenate([a @ v for a, v in zip(layer.attention, layer.v, strict=True)], axis=1)
        layer.attended = linear(layer.mixed, block.attn.proj)
        layer.middle = x + layer.attended
        layer.normed2 = layer_norm(layer.middle, block.norm2)
        layer.hidden = linear(layer.normed2, block.mlp[0])
        layer.active = gelu(layer.hidden)
        layer.second = linear(layer.active, block.mlp[2])
        return layer.middle + layer.second

    def row(self) -> Array:
        """The classifier's weights of the target."""
        return values(self.model.head.classifier.weight)[self.target]

    def at_end(self, x: Array) -> Array:
        """Gradient of the logit by the tokens of the last block."""
        r = np.zeros_like(x)
        if self.prefix:
            r[0] = self.row()
        else:
            r[:] = self.row() / len(x)
        return layer_norm_back(r, x, self.model.backbone.norm)

    def back(self, i: int, r: Array, detach: bool = False) -> tuple[Array, list[Array]]:
        """Gradients by what enters block `i`, and by its probabilities, when `r` arrives behind it."""
        layer, block = self.layers[i], self.model.backbone.blocks[i]
        at_hidden = r @ values(block.mlp[2].weight) * gelu_slope(layer.hidden)
        r = r + layer_norm_back(at_hidden @ values(block.mlp[0].weight), layer.middle, block.norm2)
        at_mixed = r @ values(block.attn.proj.weight)
        d = layer.q[0].shape[1]
        at_attention, at_q, at_k, at_v = [], [], [], []
        for h, a in enumerate(layer.attention):
            g = at_mixed[:, h * d : (h + 1) * d]
            at_attention.append(g @ layer.v[h].T)
            at_scores = np.zeros_like(a)
            for t in range(len(a)):
                at_scores[t] = a[t] * (at_attention[h][t] - (a[t] * at_attention[h][t]).sum())
            at_q.append(at_scores @ layer.k[h] / math.sqrt(d))
            at_k.append(at_scores.T @ layer.q[h] / math.sqrt(d))
            at_v.append(a.T @ g)
        if not detach:
            at_normed = np.concatenate(at_q + at_k + at_v, axis=1) @ values(block.attn.qkv.weight)
            r = r + layer_norm_back(at_normed, layer.x, block.norm1)
        return r, at_attention

    def gradients(self, detach: bool = False) -> list[list[Array]]:
        """Of the logit by the probabilities, per layer and head."""
        r, found = self.at_end(self.out), []
        for i in reversed(range(len(self.layers))):
            r, at_attention = self.back(i, r, detach)
            found.append(at_attention)
        return found[::-1]

    def read(self, matrix: Array) -> Array:
        """The row of the class token, or the mean of all rows."""
        row = matrix[0, 1:] if self.prefix else sum(matrix[t] for t in range(len(matrix))) / len(matrix)
        return row.reshape(self.grid)


def through(matrices: list[Array], start: int) -> Array:
    """The product of the later matrices with the earlier ones."""
    joint = np.eye(len(matrices[0]))
    for matrix in matrices[start:]:
        joint = matrix @ joint
    return joint


def head_mean(matrices: list[Array]) -> Array:
    return sum(matrices) / len(matrices)


@replicates("raw-attention", NETWORKS)
@replicates("raw-attention", NETWORKS, which="last")
@replicates("raw-attention", NETWORKS, which="mean")
def raw_attention(case: Case, which: str = "last") -> Array:
    run = Run(case)
    layers = [head_mean(layer.attention) for layer in run.layers]
    return run.read(layers[-1] if which == "last" else sum(layers) / len(layers))


@replicates("rollout", NETWORKS)
@replicates("rollout", NETWORKS, start_layer=1)
def rollout(case: Case, start_layer: int = 0) -> Array:
    run, matrices = Run(case), []
    for layer in run.layers:
        matrix = (head_mean(layer.attention) + np.eye(len(run.out))) / 2
        for row in matrix:
            row /= row.sum()
        matrices.append(matrix)
    return run.read(through(matrices, start_layer))


def positive(value: list[Array], gradient: list[Array]) -> Array:
    """I plus the mean over the heads of the positive products."""
    return np.eye(len(value[0])) + head_mean([relu(a * g) for a, g in zip(value, gradient, strict=True)])


@replicates("attention-x-gradient", NETWORKS)
@replicates("attention-x-gradient", NETWORKS, start_layer=1)
def attention_x_gradient(case: Case, start_layer: int = 0) -> Array:
    run = Run(case)
    pairs = zip(run.layers, run.gradients(), strict=True)
    return run.read(through([positive(layer.attention, gradient) for layer, gradient in pairs], start_layer))


@replicates("agcam", NETWORKS)
@replicates("agcam", NETWORKS, detach=True)
@replicates("agcam", NETWORKS, detach=False)
def agcam(case: Case, detach: bool = True) -> Array:
    run = Run(case)
    total = np.zeros((len(run.out), len(run.out)))
    for layer, alphas in zip(run.layers, run.gradients(detach), strict=True):
        for scores, alpha in zip(layer.scores, alphas, strict=True):
            for t, j in np.ndindex(*total.shape):
                total[t, j] += max(alpha[t, j], 0) / (1 + math.exp(-scores[t, j]))
    return run.read(total)


@replicates("legrad", NETWORKS)
def legrad(case: Case) -> Array:
    run = Run(case)
    formed = [*(layer.x for layer in run.layers[1:]), run.out]
    found = []
    for i, tokens in enumerate(formed):
        pooled = tokens.mean(axis=0, keepdims=True)
        at_pooled = layer_norm_back(run.row()[None], pooled, run.model.backbone.norm)
        at_attention = run.back(i, np.repeat(at_pooled, len(tokens), axis=0) / len(tokens))[1]
        rows = [sum(relu(g)[t] for t in range(len(g))) / len(g) for g in at_attention]
        found.append(sum(rows) / len(rows))
    return (sum(found) / len(found))[run.prefix :].reshape(run.grid)


# --- relevance ---------------------------------------------------------------------------------------------------


def linear_relevance(r: Array, x: Array, module: nn.Linear) -> Array:
    """Each output hands its relevance to the inputs whose products with their weights are positive."""
    weight, out = values(module.weight), np.zeros_like(x)
    for t in range(len(x)):
        for i, row in enumerate(weight):
            products = [max(float(a * w), 0.0) for a, w in zip(x[t], row, strict=True)]
            whole = sum(products)
            if whole > 0:
                out[t] += np.array(products) / whole * r[t, i]
    return out


def sum_relevance(r: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """In proportion to the values, then each operand as a whole to its share of the absolute sums."""
    first, second = r * a / (a + b), r * b / (a + b)
    one, two = abs(first.sum()), abs(second.sum())
    return (
        first * (one / (one + two) * r.sum() / first.sum()),
        second * (two / (one + two) * r.sum() / second.sum()),
    )


def product_relevance(r: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Each term a_ik b_kj of a product gets its part of the relevance of the cell; half of it goes to each factor."""
    first, second, product = np.zeros_like(a), np.zeros_like(b), a @ b
    for i, j in np.ndindex(*product.shape):
        for k in range(a.shape[1]):
            part = a[i, k] * b[k, j] / product[i, j] * r[i, j] / 2
            first[i, k] += part
            second[k, j] += part
    return first, second


def relevance(run: Run) -> list[list[Array]]:
    """Of the probabilities, per layer and head; the logit of the target has 1."""
    head, last = run.model.head.classifier, layer_norm(run.out, run.model.backbone.norm)
    one = np.zeros((1, head.out_features))
    one[0, run.target] = 1
    r = np.zeros_like(last)
    if run.prefix:
        r[0] = linear_relevance(one, last[:1], head)[0]
    else:
        pooled = last.mean(axis=0, keepdims=True)
        r[:] = linear_relevance(one, pooled, head) * last / (len(last) * pooled)
    found = []
    for layer, block in zip(reversed(run.layers), reversed(run.model.backbone.blocks), strict=True):
        r, inside = sum_relevance(r, layer.middle, layer.second)
        inside = linear_relevance(inside, layer.active, block.mlp[2])
        r = r + linear_relevance(inside, layer.normed2, block.mlp[0])
        r, inside = sum_relevance(r, layer.x, layer.attended)
        inside = linear_relevance(inside, layer.mixed, block.attn.proj)
        d = layer.q[0].shape[1]
        of_attention, of_q, of_k, of_v = [], [], [], []
        for h, a in enumerate(layer.attention):
            first, second = product_relevance(inside[:, h * d : (h + 1) * d], a, layer.v[h])
            of_attention.append(first)
            of_v.append(second)
            first, second = product_relevance(first, layer.q[h], layer.k[h].T)
            of_q.append(first)
            of_k.append(second.T)
        found.append(of_attention)
        r = r + linear_relevance(np.concatenate(of_q + of_k + of_v, axis=1), layer.normed, block.attn.qkv)
    assert abs(r.sum() - 1) < 1e-9  # all of it arrives at the tokens that enter the first block
    return found[::-1]


@replicates("transformer-attribution", NETWORKS)
@replicates("transformer-attribution", NETWORKS, start_layer=1)
def transformer_attribution(case: Case, start_layer: int = 0) -> Array:
    run = Run(case)
    pairs = zip(relevance(run), run.gradients(), strict=True)
    return run.read(through([positive(r, gradient) for r, gradient in pairs], start_layer))
