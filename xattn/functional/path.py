"""Paths from a baseline to the image, and the sums along them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from xattn.errors import ParameterError
from xattn.functional.baselines import gaussian_kernel

Rule = Literal["midpoint", "gauss-legendre"]


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Where to take the values of a function on [0, 1] and how to weigh them, so that their sum is its integral.

    >>> [t.tolist() for t in quadrature("midpoint", 2)]
    [[0.25, 0.75], [0.5, 0.5]]

    Args:
        rule: `"midpoint"`: equal steps, each by its middle. `"gauss-legendre"`: exact for polynomials of degree
            2 steps - 1.
        steps: number S of values.

    Returns:
        Nodes (S,) and weights (S,), float64.

    Raises:
        ParameterError: for another rule.
    """
    if rule == "midpoint":
        weight = torch.full((steps,), 1 / steps, dtype=torch.float64)
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, weight
    if rule == "gauss-legendre":
        nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(steps))
        return (nodes + 1) / 2, weights / 2
    raise ParameterError(f"quadrature: rule must be one of {', '.join(get_args(Rule))} but is '{rule}'.")


def blur_matrix(size: int, sigma: float) -> Tensor:
    """Gaussian filter of a line of `size` pixels as a matrix (size, size), float64; the border pixel is repeated.

    >>> blur_matrix(3, 0.0).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    matrix = torch.zeros(size, size, dtype=torch.float64)
    if sigma == 0:
        return matrix.fill_diagonal_(1)
    radius = math.ceil(3 * sigma)
    at = (torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, size - 1)
    return matrix.scatter_add_(1, at, gaussian_kernel(sigma, radius).expand(size, -1))


def blurred(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images through several Gaussians, given as matrices from `blur_matrix`.

    Args:
        x: (N, C, H, W).
        rows: (S, H, H).
        columns: (S, W, W).

    Returns:
        (N, S, C, H, W).
    """
    with torch.autocast(x.device.type, enabled=False):
        return rows[:, None] @ x[:, None] @ columns[:, None].transpose(-1, -2)


def guided_step(place: Tensor, cost: Tensor, length: Tensor, alpha: float, fraction: float, reach: float) -> Tensor:
    """Next point of the path of guided integrated gradients (Kapishnikov et al. 2021, arXiv:2106.09788).

    Features go from 0 to 1, those with the least cost first, until the path has covered the share `alpha` of the whole
    L1 distance. They move in groups of a `fraction` of all; the last group moves part of its way. Features of equal
    cost are never told apart.

    Args:
        place: how far each feature has come (N, F), in [0, 1].
        cost: absolute gradients (N, F).
        length: |x - baseline| of each feature (N, F).
        alpha: share of the distance to be covered after this step.
        fraction: share of the features in a group.
        reach: how far a feature may be ahead of or behind `alpha`.

    Returns:
        New places (N, F).
    """
    limit = min(alpha + reach, 1.0)
    place = torch.where(length > 0, place.clamp(min=max(alpha - reach, 0.0)), limit)
    capacity = (limit - place).clamp(min=0) * length
    need = (length * (alpha - place)).sum(1, keepdim=True)
    ordered, order = cost.masked_fill(capacity <= 0, torch.inf).sort(dim=1)
    index = torch.arange(cost.shape[1], device=cost.device)
    new = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True)
    first = torch.where(new, index, 0).cummax(dim=1).values  # of those of equal cost
    group = first // (math.floor(fraction * (cost.shape[1] - 1)) + 1)
    groups = torch.empty_like(group).scatter_(1, order, group)
    total = torch.zeros_like(capacity).scatter_add_(1, groups, capacity)
    before = total.cumsum(1) - total
    share = ((need - before) / total.masked_fill(total == 0, 1)).clamp(0, 1)
    return place + share.gather(1, groups) * (limit - place).clamp(min=0)
