"""Oracles of relevance through attention: each rule as shares q_jk / sum_i q_ik of what comes from above, by head."""

from __future__ import annotations

import math

import numpy as np
from torch import nn
from torch.nn import functional as nnf

from tests.oracles.naive import Array, Case, conv, norm, relu, replicates
from tests.oracles.naive_propagation import Rule, through
from tests.oracles.naive_transformer import NETWORKS, Layer, Run, layer_norm, linear, values


def back_linear(x: Array, weight: Array, z: Array, r: Array) -> Array:
    """Token by token: of what output k got, input j gets its product's share."""
    below = np.zeros_like(x)
    for t, k in np.ndindex(*r.shape):
        below[t] += x[t] * weight[k] / z[t, k] * r[t, k]
    return below


def back_norm(x: Array, module: nn.LayerNorm, r: Array) -> Array:
    """A linear layer of its own for each token: the mean is taken off, the spread is a number."""
    below, n = np.zeros_like(x), x.shape[1]
    y = layer_norm(x, module)
    for t in range(len(x)):
        spread = math.sqrt(((x[t] - x[t].mean()) ** 2).mean() + module.eps)
        matrix = (np.eye(n) - 1 / n) * values(module.weight)[:, None] / spread
        below[t] = back_linear(x[t : t + 1], matrix, y[t : t + 1], r[t : t + 1])[0]
    return below


def back_attention(layer: Layer, r: Array, softmax_too: bool) -> Array:
    """Relevance (T, 3 C) of queries, keys and values from that (T, C) of what they are mixed to."""
    d = layer.q[0].shape[1]
    at_q, at_k, at_v = [], [], []
    for h, a in enumerate(layer.attention):
        mixed, above = layer.mixed[:, h * d : (h + 1) * d], r[:, h * d : (h + 1) * d]
        q, k, v = layer.q[h], layer.k[h], layer.v[h]
        r_q, r_k, r_v, r_a = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v), np.zeros_like(a)
        for t, c in np.ndindex(*mixed.shape):
            products = a[t] * v[:, c] / mixed[t, c] * above[t, c]
            r_v[:, c] += products
            r_a[t] += products
        if softmax_too:
            r_v, r_a = r_v / 2, r_a / 2
            for t, j in np.ndindex(*a.shape):
                score = layer.scores[h][t, j]
                below = score * (r_a[t, j] - a[t, j] * r_a[t].sum())
                products = q[t] * k[j] / math.sqrt(d) / score * below / 2
                r_q[t] += products
                r_k[j] += products
        at_q.append(r_q)
        at_k.append(r_k)
        at_v.append(r_v)
    return np.concatenate(at_q + at_k + at_v, axis=1)


def relevance(case: Case, softmax_too: bool) -> Array:
    run = Run(case)
    net = run.model.backbone
    y, r = layer_norm(run.out, net.norm), np.zeros_like(run.out)
    for t in range(len(y)):
        share = float(t == 0) if run.prefix else 1 / len(y)
        r[t] = y[t] * share * run.row()
    r, after = back_norm(run.out, net.norm, r), run.out
    for layer, block in zip(run.layers[::-1], net.blocks[::-1], strict=True):
        second = r * layer.second / after
        first = r * layer.middle / after
        second = back_linear(layer.active, values(block.mlp[2].weight), layer.second, second)
        second = back_linear(layer.normed2, values(block.mlp[0].weight), layer.hidden, second)
        r = first + back_norm(layer.middle, block.norm2, second)
        attended, kept = r * layer.attended / layer.middle, r * layer.x / layer.middle
        attended = back_linear(layer.mixed, values(block.attn.proj.weight), layer.attended, attended)
        attended = back_attention(layer, attended, softmax_too)
        qkv = linear(layer.normed, block.attn.qkv)
        attended = back_linear(layer.normed, values(block.attn.qkv.weight), qkv, attended)
        r, after = kept + back_norm(layer.x, block.norm1, attended), layer.x
    return at_pixels(case, run, r)


def at_pixels(case: Case, run: Run, r: Array) -> Array:
    """The positions keep their share, and the stem of convolutions has the epsilon rule without an epsilon."""
    net, cells, steps = run.model.backbone, case.x, []
    for module in net.stem:
        before = cells
        cells = {nn.Conv2d: conv, nn.BatchNorm2d: norm, nn.ReLU: lambda x, _: relu(x)}[type(module)](cells, module)
        steps.append((module, before))
    positions = values(nnf.interpolate(net.positions.detach(), run.grid, mode="bicubic", align_corners=False))[0]
    r = r[run.prefix :].T.reshape(cells.shape) * cells / (cells + positions)
    rule, bn = Rule("epsilon", epsilon=0.0), None
    for module, before in steps[::-1]:
        if isinstance(module, nn.BatchNorm2d):
            bn = module
        elif isinstance(module, nn.Conv2d):
            r, bn = through(before, r, module, bn, rule), None
    return r.sum(0)


@replicates("attnlrp", NETWORKS)
def attn_lrp(case: Case) -> Array:
    return relevance(case, softmax_too=True)


@replicates("cp-lrp", NETWORKS)
@replicates("libragrad", NETWORKS)
def cp_lrp(case: Case) -> Array:
    return relevance(case, softmax_too=False)
