"""Ranks with ties and correlations of whole maps, many rows at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xattn.errors import ShapeError


def sort_values(values: Tensor) -> Tensor:
    """Values in increasing order along the last dimension, NaN last.

    On the CPU numpy does it, many times faster than torch, which keeps the order beside the values.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))
    return values.sort(dim=-1).values


def sort_with_order(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values in increasing order along the last dimension and where they were; the order of equal ones is any."""
    if values.device.type == "cpu":
        order = torch.from_numpy(np.argsort(values.detach().numpy(), axis=-1))
        return values.gather(-1, order), order
    ordered = values.sort(dim=-1)
    return ordered.values, ordered.indices


def tie_groups(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place of the run of equal values around each place of sorted rows (..., L).

    >>> [t.tolist() for t in tie_groups(torch.tensor([1.0, 2.0, 2.0, 3.0]))]
    [[0, 1, 1, 3], [0, 2, 2, 3]]
    """
    place = torch.arange(ordered.shape[-1], device=ordered.device).expand(ordered.shape)
    changes = ordered[..., 1:] != ordered[..., :-1]
    edge = torch.ones_like(changes[..., :1]) if ordered.shape[-1] > 1 else torch.ones_like(place, dtype=torch.bool)
    starts = torch.cat([edge, changes], -1)
    ends = torch.cat([changes, edge], -1)
    first = torch.where(starts, place, 0).cummax(-1).values
    last = torch.where(ends, place, ordered.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return first, last


def average_ranks(values: Tensor) -> Tensor:
    """Ranks 1 to L along the last dimension; equal values share the mean of their ranks (Spearman 1904).

    Args:
        values: (..., L).

    Returns:
        float64 of the same shape; a row with NaN is NaN as a whole.

    >>> average_ranks(torch.tensor([10.0, 30.0, 10.0, 20.0])).tolist()
    [1.5, 4.0, 1.5, 3.0]
    """
    ordered, order = sort_with_order(values)
    first, last = tie_groups(ordered)
    mean = (first + last).double() / 2 + 1
    ranks = torch.empty_like(mean).scatter_(-1, order, mean)
    return ranks.masked_fill(values.isnan().any(-1, keepdim=True), torch.nan)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Linear correlation of each row (Pearson 1895).

    Args:
        a: (N, L).
        b: (N, L).

    Returns:
        float64 (N,) in [-1, 1]; NaN where a row is constant or has NaN.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ShapeError(f"pearson: expected two tensors (N, L) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    flat = (a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)
    x, y = a.double(), b.double()
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    # Scaled first: the squares of tiny or huge rows would leave the range of the type.
    x, y = x / x.abs().amax(1, keepdim=True), y / y.abs().amax(1, keepdim=True)
    value = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    return value.clamp(-1, 1).masked_fill(flat, torch.nan)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each row, ties by their mean rank (Spearman 1904).

    Args:
        a: (N, L).
        b: (N, L).

    Returns:
        float64 (N,) in [-1, 1]; NaN where a row is constant or has NaN.

    >>> spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 4.0, 9.0]])).round(decimals=9)
    tensor([1.], dtype=torch.float64)
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ShapeError(f"spearman: expected two tensors (N, L) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    return pearson(average_ranks(a), average_ranks(b))
