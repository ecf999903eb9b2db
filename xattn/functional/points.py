"""Named points beside part maps: which part each point lies in, and whether it is the same one in every image."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ShapeError


def parts_at(maps: Tensor, points: Tensor) -> Tensor:
    """The part whose map is the strongest where a point lies.

    Each map is divided by its own largest value first, so that a part that is spread over many cells is not beaten
    everywhere by one that is small. The first of equal parts counts.

    Args:
        maps: part maps (N, P, h, w), not negative.
        points: x and y (N, K, 2) as shares of the width and the height of what the maps cover, 0 its left or upper
            edge; NaN for points that are not seen.

    Returns:
        Number of a part, int64 (N, K), from 0; -1 for a point that is not seen, lies outside, or where all maps are
        zero.

    >>> maps = torch.tensor([[[[4.0, 0.0]], [[0.0, 1.0]]]])
    >>> parts_at(maps, torch.tensor([[[0.2, 0.5], [0.9, 0.5], [1.2, 0.5]]]))
    tensor([[ 0,  1, -1]])
    """
    if maps.ndim != 4 or points.ndim != 3 or points.shape[0] != maps.shape[0] or points.shape[2] != 2:
        raise ShapeError(
            "parts_at: expected maps (N, P, h, w) and points (N, K, 2) of the same images but got "
            f"{tuple(maps.shape)} and {tuple(points.shape)}."
        )
    peak = maps.amax((2, 3), keepdim=True)
    scaled = (maps / torch.where(peak > 0, peak, torch.ones_like(peak))).flatten(2)
    height, width = maps.shape[2:]
    inside = ((points >= 0) & (points < 1)).all(2)
    known = torch.where(inside[..., None], points, torch.zeros_like(points))
    cells = (known[..., 1] * height).long() * width + (known[..., 0] * width).long()
    at = scaled.gather(2, cells[:, None].expand(-1, maps.shape[1], -1))
    strength, part = at.max(1)
    return part.masked_fill(~inside | (strength <= 0), -1)


def part_counts(assigned: Tensor, parts: int) -> Tensor:
    """In how many images each point lies in each part.

    Args:
        assigned: part of each point (N, K) as of `parts_at`.
        parts: number P of parts.

    Returns:
        Counts (K, P), int64; what is -1 is not counted.

    >>> part_counts(torch.tensor([[0, 1], [0, -1]]), 2)
    tensor([[2, 0],
            [0, 1]])
    """
    if assigned.ndim != 2:
        raise ShapeError(f"part_counts: expected parts (N, K) but got {tuple(assigned.shape)}.")
    return (assigned[..., None] == torch.arange(parts, device=assigned.device)).sum(0)


def part_entropy(counts: Tensor) -> Tensor:
    """How far a point changes its part: entropy of the parts that it lies in, over the largest one, log P.

    Args:
        counts: (K, P) as of `part_counts`.

    Returns:
        (K,), float64: 0 for a point that is always in the same part, 1 for one that is in all of them equally often,
        NaN for one that is in none, and for a single part.

    >>> part_entropy(torch.tensor([[9, 0], [3, 3]]))
    tensor([0., 1.], dtype=torch.float64)
    """
    if counts.ndim != 2:
        raise ShapeError(f"part_entropy: expected counts (K, P) but got {tuple(counts.shape)}.")
    share = counts.double() / counts.sum(1, keepdim=True)
    found: Tensor = -torch.special.xlogy(share, share).sum(1) / torch.tensor(counts.shape[1]).double().log()
    return found.abs()  # no -0


def part_information(counts: Tensor) -> Tensor:
    """How much the part tells of the point: normalized mutual information of points and parts.

    2 I(point; part) / (H(point) + H(part)), over all sightings (Strehl and Ghosh 2002, JMLR 3, with the arithmetic
    mean in place of the geometric one).

    Args:
        counts: (K, P) as of `part_counts`.

    Returns:
        A scalar, float64: 0 where parts and points have nothing to do with each other, 1 where each part is a point;
        NaN without any sighting, and where there is one point and one part only. With few sightings chance alone
        gives more than 0: compare with parts that were exchanged at random in each image.

    >>> part_information(torch.tensor([[5, 0], [0, 5]])), part_information(torch.tensor([[5, 5], [5, 5]]))
    (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    if counts.ndim != 2:
        raise ShapeError(f"part_information: expected counts (K, P) but got {tuple(counts.shape)}.")
    joint = counts.double() / counts.sum()
    entropies = [-torch.special.xlogy(p, p).sum() for p in (joint.sum(1), joint.sum(0), joint)]
    shared = (entropies[0] + entropies[1] - entropies[2]).clamp(min=0)
    return 2 * shared / (entropies[0] + entropies[1])
