"""Boxes and smooth masks in volumes (D, H, W), laid out as images are: one slice below the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def box_segments(size: Sequence[int], count: int) -> Tensor:
    """About `count` boxes of equal shares of depth, height and width: int64 (D * H, W), numbered from zero.

    >>> box_segments((2, 2, 4), 2).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    share = (count / (size[0] * size[1] * size[2])) ** (1 / 3)  # cells are cubes as far as the size allows
    cells = [min(n, max(1, round(n * share))) for n in size]
    place = [((2 * torch.arange(n) + 1) * c) // (2 * n) for n, c in zip(size, cells, strict=True)]
    labels = (place[0][:, None, None] * cells[1] + place[1][:, None]) * cells[2] + place[2]
    return labels.flatten(0, 1)


def box_masks(corners: Tensor, sides: Sequence[int], size: Sequence[int]) -> Tensor:
    """Which voxels lie in each box: bool (B, 1, D * H, W).

    Args:
        corners: first voxels (B, 3).
        sides: of the boxes.
        size: of the volume.
    """
    inside = []
    for i, n in enumerate(size):
        at = torch.arange(n, device=corners.device)
        inside.append((at >= corners[:, i, None]) & (at < corners[:, i, None] + sides[i]))
    mask = inside[0][:, :, None, None] & inside[1][:, None, :, None] & inside[2][:, None, None]
    return mask[:, None].flatten(2, 3)


def box_means(values: Tensor, starts: Sequence[Tensor], sides: Sequence[int], size: Sequence[int]) -> Tensor:
    """Mean, at each voxel, of the values of the boxes that cover it: (N, 1, D * H, W).

    Args:
        values: (N, boxes), in the order of the product of the starts.
        starts: first voxels along depth, height and width.
        sides: of the boxes.
        size: of the volume.
    """
    total = values.view(len(values), *map(len, starts))
    covers = values.new_ones(1)
    for first, side, n in zip(starts, sides, size, strict=True):
        at = torch.arange(n)
        inside = ((at >= first[:, None]) & (at < first[:, None] + side)).to(values)
        total = torch.tensordot(total, inside, dims=([1], [0]))
        covers = covers[..., None] * inside.sum(0)
    return (total / covers)[:, None].flatten(2, 3)


def smooth_masks(grid: Tensor, shift: Tensor, size: Sequence[int]) -> Tensor:
    """Smooth masks of RISE in three dimensions: coarse binary ones, upsampled and shifted by less than a cell.

    Args:
        grid: (M, s, s, s), zeros and ones.
        shift: (M, 3) in [0, 1), as shares of a cell.
        size: depth, height and width.

    Returns:
        (M, 1, D * H, W) in [0, 1].
    """
    cells = grid.shape[-1]
    cell = [-(-n // cells) for n in size]
    large = interpolate(grid[:, None], [(cells + 1) * n for n in cell], mode="trilinear", align_corners=False)
    place = (shift * torch.tensor(cell, device=shift.device)).long()
    z, y, x = (place[:, i, None] + torch.arange(size[i], device=shift.device) for i in range(3))
    own = torch.arange(len(grid), device=grid.device)[:, None, None, None]
    return large[own, 0, z[:, :, None, None], y[:, None, :, None], x[:, None, None]][:, None].flatten(2, 3)
