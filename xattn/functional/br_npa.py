"""Bilinear representative non-parametric attention: part maps from the feature map alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.attention import weighted_sums, without_autocast

Activation = Literal["norm", "squared_norm"]
Suppress = Literal["similarity", "weight"]
Seed = Literal["activation", "random"]

_EPS = 1e-5  # added to every norm, as in all released code: an empty cell resembles nothing
_EMPTY = 1e-12  # a sum of similarities below this comes from an empty seed and has no direction


def br_npa_maps(
    features: Tensor,
    parts: int = 3,
    *,
    activation: Activation = "norm",
    suppress: Suppress = "similarity",
    refine: bool = True,
    seed: Seed = "activation",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Part maps of BR-NPA, from the most active part down (Gomez et al. 2022, arXiv:2106.02566, eqs. 1-4).

    For each part the most active cell is the seed, the map is the cosine similarity of every cell with the seed,
    divided by its sum, and the activation of similar cells is suppressed before the next part. There are no
    parameters. The gradient flows through features and seeds, not through the choice of the seeds.

    Differs from the paper as its released code does: activation is the norm and not its square, suppression is by
    the similarity and not by the weight (which has a value near 1 / (h w), so that the printed form chooses the same
    seed again). Negative similarities count as zero, and a map without any similarity is uniform: never NaN.

    Args:
        features: feature map (N, C, h, w). Half precision is computed in float32, also inside autocast.
        parts: number of maps P.
        activation: `"norm"`, or `"squared_norm"` as printed.
        suppress: the activation is multiplied by one minus the `"similarity"`, or by one minus the `"weight"` as
            printed.
        refine: False gives the seed alone, a map of one cell (ablation).
        seed: `"random"` draws a cell for each part instead of the most active one (ablation).
        generator: source of the random seeds; None is the global one.

    Returns:
        Weights (N, P, h, w), each map sums to one, float32 (float64 is kept).

    Raises:
        ShapeError: if `features` is not (N, C, h, w).
        ParameterError: for an unknown option or no part.

    >>> maps = br_npa_maps(torch.rand(2, 8, 4, 5), parts=3)
    >>> maps.shape, bool(torch.allclose(maps.sum((2, 3)), torch.ones(2, 3)))
    (torch.Size([2, 3, 4, 5]), True)
    """
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ShapeError(f"br_npa_maps: expected features (N, C, h, w) but got {tuple(features.shape)}.")
    if parts < 1:
        raise ParameterError(f"br_npa_maps: expected at least one part but got parts={parts}.")
    for name, value, known in (
        ("activation", activation, ("norm", "squared_norm")),
        ("suppress", suppress, ("similarity", "weight")),
        ("seed", seed, ("activation", "random")),
    ):
        if value not in known:
            raise ParameterError(f"br_npa_maps: {name} must be one of {', '.join(known)} but got '{value}'.")
    x = features.flatten(2).to(torch.promote_types(features.dtype, torch.float32))
    with without_autocast(x):
        seeds = None
        if seed == "random":
            n, _, cells = x.shape
            device = generator.device if generator is not None else x.device
            seeds = torch.randint(cells, (n, parts), generator=generator, device=device).to(x.device)
        maps = _Maps.apply(x, parts, activation, suppress, refine, seeds)
    return maps.unflatten(2, features.shape[2:])


def coverage_maps(maps: Tensor) -> Tensor:
    """Part maps that share every cell out among the parts, one after the other as BR-NPA suppresses.

    A part takes of each cell the share by which it resembles the part, of what the parts before have left, and the
    last part takes the rest: c_1 = s_1, c_2 = (1 - s_1) s_2, ..., c_P = (1 - s_1) ... (1 - s_P-1), where s_m = A_m /
    max A_m is the similarity with the seed. (1 - s) is the suppression of BR-NPA (arXiv:2106.02566, eq. 4). The maps
    are c_m P / (h w), so that their mean over the parts is uniform: parts pooled by them and averaged are the mean over
    the cells, each part with the weight of what it covers. Not in the paper.

    Args:
        maps: part maps (N, P, h, w) of `br_npa_maps`.

    Returns:
        Maps (N, P, h, w) whose mean over the parts is 1 / (h w) in each cell.

    >>> maps = coverage_maps(br_npa_maps(torch.rand(2, 8, 4, 5), parts=3))
    >>> bool(torch.allclose(maps.mean(1), torch.full((2, 4, 5), 1 / 20)))
    True
    """
    similar = maps[:, :-1] / maps[:, :-1].amax((2, 3), keepdim=True)
    left = torch.cat([torch.ones_like(maps[:, :1]), (1 - similar).cumprod(1)], 1)
    shares = torch.cat([left[:, :-1] * similar, left[:, -1:]], 1)
    return shares * (maps.shape[1] / maps[0, 0].numel())


class _Maps(torch.autograd.Function):
    """Part maps (N, P, L) of features (N, C, L), with a backward pass that reads the features twice.

    Autograd would form one (N, C, L) gradient per part and add them up; by hand all parts are one matrix product.
    With r = |f|, n = r + eps, s_m,i = f_i . f_j / (n_i n_j) and G_m,i the gradient of s_m,i (zero where clamped), the
    gradient of f_i is sum_m (f_j / n_j) G_m,i / n_i - f_i sum_m G_m,i s_m,i / (n_i r_i), and that of the seed f_j is
    sum_i (G_m,i / n_i) f_i / n_j - f_j sum_i G_m,i s_m,i / (n_j r_j).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parts: int, activation: str, suppress: str, refine: bool, drawn: Tensor | None
    ) -> Tensor:
        radius = _radius(x)
        norm = radius + _EPS
        level = norm.square() if activation == "squared_norm" else norm
        images = torch.arange(x.shape[0], device=x.device)
        seeds, similarities, maps = [], [], []
        for part in range(parts):
            j = level.argmax(1) if drawn is None else drawn[:, part]
            s = torch.bmm(x[images, :, j].unsqueeze(1), x).squeeze(1)
            s = s.div_(norm).div_(norm[images, j, None])
            s = s.masked_fill_(s < 0, 0)  # no clamp: guided backpropagation would count it as an activation
            w = _weights(s)
            level = level * (1 - (s if suppress == "similarity" else w))
            seeds.append(j)
            similarities.append(s)
            maps.append(w if refine else torch.zeros_like(w).scatter_(1, j[:, None], 1.0))
        if refine:
            ctx.save_for_backward(x, radius, torch.stack(seeds, 1), torch.stack(similarities, 1))
        else:
            ctx.mark_non_differentiable(out := torch.stack(maps, 1))
            return out
        return torch.stack(maps, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, radius, seeds, s = ctx.saved_tensors
        with without_autocast(x):  # the caller may run backward inside autocast
            if torch.is_grad_enabled():  # create_graph=True: leave second derivatives to autograd
                (g_x,) = torch.autograd.grad(_plain(x, seeds), x, g, create_graph=True)
            else:
                g_x = _gradient(g, x, radius, seeds, s)
        return g_x, None, None, None, None, None


def _gradient(g: Tensor, x: Tensor, radius: Tensor, seeds: Tensor, s: Tensor) -> Tensor:
    """Gradient (N, C, L) of the features for the gradient g (N, P, L) of the maps; the formula is that of `_Maps`."""
    norm = radius + _EPS
    images = torch.arange(x.shape[0], device=x.device)
    total = s.sum(2, keepdim=True)
    g_s = (g - (g * s).sum(2, keepdim=True) / total) / total
    g_s = g_s.masked_fill_((s == 0) | (total <= _EMPTY), 0)
    share = g_s / norm.unsqueeze(1)
    pull = g_s.mul_(s)  # what shortens a vector: its own part of the normalization
    lengths = torch.where(radius > 0, norm * radius, torch.inf)
    f = x.gather(2, seeds.unsqueeze(1).expand(-1, x.shape[1], -1))
    scale = norm.gather(1, seeds).unsqueeze(1)
    g_f = weighted_sums(x, share).transpose(1, 2) / scale
    g_f -= f * (pull.sum(2) / lengths.gather(1, seeds)).unsqueeze(1)
    g_x = x * (pull.sum(1) / -lengths).unsqueeze(1)
    g_x.baddbmm_(f / scale, share)
    for part in range(seeds.shape[1]):  # one after the other: two parts may have the same seed
        g_x[images, :, seeds[:, part]] += g_f[:, :, part]
    return g_x


def _radius(x: Tensor) -> Tensor:
    """Euclidean norms (N, L) of the vectors in x (N, C, L).

    On the CPU the reduction over an outer dimension is slow in `vector_norm`, but fast in `sum`; a few channels at a
    time keep the squares in the cache.
    """
    if x.device.type != "cpu" or x.stride(1) == 1:
        return torch.linalg.vector_norm(x, dim=1)
    channels = max(32, 2**16 // x.shape[2])  # depends on no other image
    squares = x.new_zeros(x.shape[0], x.shape[2])
    for first in range(0, x.shape[1], channels):
        squares += x[:, first : first + channels].square().sum(1)
    return squares.sqrt_()


def _weights(s: Tensor) -> Tensor:
    """Similarities (..., L) divided by their sum; uniform where there is none."""
    total = s.sum(-1, keepdim=True)
    return torch.where(total <= _EMPTY, 1 / s.shape[-1], s / total)


def _plain(x: Tensor, seeds: Tensor) -> Tensor:
    """Part maps (N, P, L) for known seeds (N, P), in operations that autograd differentiates any number of times."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS
    index = seeds.unsqueeze(1)
    f = x.gather(2, index.expand(-1, x.shape[1], -1)) / norm.gather(2, index)
    s = (torch.bmm(f.transpose(1, 2), x) / norm).relu()
    return _weights(s)
