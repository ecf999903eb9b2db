"""Pooling by attention maps, and what a linear classifier makes of each pooled cell."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from xattn.errors import ShapeError


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from lowering the precision of what is computed from `x`; devices without autocast need nothing."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def attention_pool(features: Tensor, maps: Tensor) -> Tensor:
    """Sum of the feature vectors weighted by each map: g_m = sum_i A_m,i f_i (BR-NPA, arXiv:2106.02566, eq. 3).

    One batched matrix product; the (N, P, C, h, w) product is never formed.

    Args:
        features: feature map (N, C, h, w).
        maps: attention maps (N, P, h, w); those of BR-NPA sum to one, so that the sum is a mean.

    Returns:
        Part vectors (N, P, C) in the dtype of `features`.
    """
    _check("attention_pool", features, maps)
    return weighted_sums(features.flatten(2), maps.flatten(2).to(features.dtype))


def weighted_sums(x: Tensor, weights: Tensor) -> Tensor:
    """Sums (N, P, C) over the cells of x (N, C, L) with weights (N, P, L).

    The product is written in the order that suits the memory: on the CPU the other one takes up to ten times as long.
    """
    if x.stride(1) == 1:  # channels last
        return torch.bmm(weights, x.transpose(1, 2))
    return torch.bmm(x, weights.transpose(1, 2)).transpose(1, 2)


def class_map(features: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """Share of each cell in a logit that is linear in pooled parts: sum_m A_m,i (W_c^(m) . f_i).

    The analogue of CAM (Zhou et al. 2016, arXiv:1512.04150, eq. 2) for a head that pools by attention maps, with the
    maps taken as constants. It sums over the cells to the logit less its bias, for sum pooling.

    Args:
        features: feature map (N, C, h, w).
        maps: attention maps (N, P, h, w).
        weight: classifier row of each image's target (N, P * C), parts first.

    Returns:
        Signed maps (N, 1, h, w), float32 (float64 is kept).
    """
    _check("class_map", features, maps)
    n, c, h, w = features.shape
    parts = maps.shape[1]
    if weight.shape != (n, parts * c):
        raise ShapeError(
            f"class_map: expected weights ({n}, {parts * c}) for {parts} parts of {c} channels but got "
            f"{tuple(weight.shape)}; pass one classifier row per image."
        )
    dtype = torch.promote_types(features.dtype, torch.float32)
    with without_autocast(features):
        evidence = torch.bmm(weight.to(dtype).view(n, parts, c), features.flatten(2).to(dtype))
        return (evidence * maps.flatten(2).to(dtype)).sum(1).view(n, 1, h, w)


def _check(name: str, features: Tensor, maps: Tensor) -> None:
    same = features.ndim == maps.ndim == 4 and features.shape[0] == maps.shape[0]
    if not same or features.shape[2:] != maps.shape[2:]:
        raise ShapeError(
            f"{name}: expected features (N, C, h, w) and maps (N, P, h, w) of the same images and grid but got "
            f"{tuple(features.shape)} and {tuple(maps.shape)}."
        )
