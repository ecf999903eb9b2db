"""Sparsity of attention: how small a share of the image the maps light up."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ShapeError

_EPS = 1e-5  # beside the largest value of a map, as in the released code of BR-NPA


def attention_density(maps: Tensor, features: Tensor) -> Tensor:
    """Mean brightness of attention maps weighted by the feature norm (BR-NPA, Gomez et al. 2022, arXiv:2106.02566).

    B_m = A_m n / max(n) with n_i = |f_i|; each B_m is divided by its own largest value (plus 1e-5), then the mean is
    taken over maps and cells. What the paper calls sparsity is the inverse of this number: high is sparse.

    Args:
        maps: attention maps (N, P, h, w), not negative.
        features: feature map (N, C, h, w) that they belong to.

    Returns:
        Density (N,) in [0, 1], float32 (float64 is kept); 0 for maps or features that are all zero.

    >>> attention_density(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3)).round(decimals=3)
    tensor([1.])
    """
    same = maps.ndim == features.ndim == 4 and maps.shape[0] == features.shape[0]
    if not same or maps.shape[2:] != features.shape[2:]:
        raise ShapeError(
            "attention_density: expected maps (N, P, h, w) and features (N, C, h, w) of the same images and grid but "
            f"got {tuple(maps.shape)} and {tuple(features.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(maps.dtype, features.dtype), torch.float32)
    norm = torch.linalg.vector_norm(features.to(dtype), dim=1, keepdim=True)
    peak = norm.amax((2, 3), keepdim=True)
    bright = maps.to(dtype) * norm / torch.where(peak > 0, peak, torch.ones_like(peak))
    return (bright / (bright.amax((2, 3), keepdim=True) + _EPS)).mean((1, 2, 3))


def map_density(maps: Tensor) -> Tensor:
    """Mean of one saliency map after min-max scaling (BR-NPA, Gomez et al. 2022, arXiv:2106.02566, for post-hoc maps).

    Args:
        maps: saliency maps (N, 1, h, w), any scale.

    Returns:
        Density (N,) in [0, 1], float32 (float64 is kept); NaN for a constant map, which has no scale.

    Raises:
        ShapeError: if there is more than one map per image.

    >>> map_density(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    tensor([0.5000])
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ShapeError(f"map_density: expected maps (N, 1, h, w) but got {tuple(maps.shape)}.")
    x = maps.to(torch.promote_types(maps.dtype, torch.float32))
    low, high = x.amin((1, 2, 3)), x.amax((1, 2, 3))
    span = torch.where(high > low, high - low, torch.full_like(low, torch.nan))
    return (x.mean((1, 2, 3)) - low) / span
