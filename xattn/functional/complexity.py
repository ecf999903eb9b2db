"""How concentrated a map is, whatever it is on.

Each function takes maps (N, 1, h, w) and gives float64 (N,). They read the absolute values, do not change when a map is
multiplied by a number, and are NaN for a map that is all zero or not finite. None of them says that a map is right: a
single bright pixel anywhere is the least complex of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.ranking import sort_values


def _shares(maps: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Absolute values (N, L) over their largest, and which maps have one."""
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ShapeError(f"{name}: expected maps (N, 1, h, w) but got {tuple(maps.shape)}.")
    rows = maps.flatten(1).double().abs()
    peak = rows.amax(1, keepdim=True)
    return rows / torch.where(peak > 0, peak, 1.0), rows.isfinite().all(1) & (peak[:, 0] > 0)


def gini(maps: Tensor) -> Tensor:
    """Gini index of the absolute values: 0 if all are equal, near 1 if one has it all (Chalasani et al. 2020).

    Sum over the sorted cells of (2 i - L - 1) x_i / (L sum x), arXiv:1810.06583; called sparseness in Quantus.

    Args:
        maps: (N, 1, h, w).

    Returns:
        float64 (N,) in [0, 1 - 1 / (h w)]; NaN for a map that is all zero or not finite.

    >>> gini(torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    rows, valid = _shares(maps, "gini")
    cells = rows.shape[1]
    place = torch.arange(1, cells + 1, dtype=torch.float64, device=rows.device)
    value = ((2 * place - cells - 1) * sort_values(rows)).sum(1) / (cells * rows.sum(1))
    return value.masked_fill(~valid, torch.nan)


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the share of each cell in the sum of absolute values (Bhatt et al. 2020, arXiv:2005.00631).

    Called complexity there. In nats, from 0 for one cell to log(h w) for a flat map: divide by it to compare grids.

    Args:
        maps: (N, 1, h, w).

    Returns:
        float64 (N,); NaN for a map that is all zero or not finite.

    >>> entropy(torch.tensor([[[[1.0, 1.0]]], [[[0.0, 2.0]]]])).tolist()
    [0.6931471805599453, 0.0]
    """
    rows, valid = _shares(maps, "entropy")
    share = rows / rows.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).masked_fill(~valid, torch.nan)


def histogram_entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """Entropy of the histogram of the values, in nats: how many levels a map has, whatever they are.

    The complexity of efficient MPRT (Hedström et al. 2024, arXiv:2401.06465): bins of equal width over the map's own
    range, so that neither scale nor shift of the map matters.

    Args:
        maps: (N, 1, h, w).
        bins: number of bins.

    Returns:
        float64 (N,) in [0, log bins]; NaN for a map that is constant or not finite.

    >>> histogram_entropy(torch.tensor([[[[0.0, 0.0, 5.0, 9.0]]]]), bins=2).round(decimals=4)
    tensor([0.6931], dtype=torch.float64)
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ShapeError(f"histogram_entropy: expected maps (N, 1, h, w) but got {tuple(maps.shape)}.")
    rows = maps.flatten(1).double()
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    valid = rows.isfinite().all(1) & (high > low)[:, 0]
    level = torch.where(valid[:, None], (rows - low) / torch.where(high > low, high - low, 1.0), 0.0)
    place = (level * bins).long().clamp(max=bins - 1)
    counts = rows.new_zeros(len(rows), bins).scatter_add_(1, place, torch.ones_like(level))
    return torch.special.entr(counts / rows.shape[1]).sum(1).masked_fill(~valid, torch.nan)


def effective_complexity(maps: Tensor, epsilon: float = 0.05) -> Tensor:
    """Share of the cells that matter: above `epsilon` times the largest in absolute value (Nguyen, Martinez 2020).

    The count of attributions above a bound of arXiv:2007.07584 (as Quantus implements it), over the number
    of cells, so that grids compare, and with the bound relative to the map, so that its scale does not matter.

    Args:
        maps: (N, 1, h, w).
        epsilon: bound as a share of the largest absolute value, in [0, 1).

    Returns:
        float64 (N,) in (0, 1]; NaN for a map that is all zero or not finite.

    Raises:
        ParameterError: if epsilon is out of range.

    >>> effective_complexity(torch.tensor([[[[0.0, 0.1, 4.0, -2.0]]]]))
    tensor([0.5000], dtype=torch.float64)
    """
    if not 0 <= epsilon < 1:
        raise ParameterError(f"effective_complexity: epsilon must be in [0, 1) but is {epsilon}.")
    rows, valid = _shares(maps, "effective_complexity")
    return (rows > epsilon).double().mean(1).masked_fill(~valid, torch.nan)
