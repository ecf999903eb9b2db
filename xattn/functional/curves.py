"""Numbers read off a perturbation curve: area, correlation with the map, area over the curve."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError


def step_counts(cells: int, steps: int | None) -> Tensor:
    """How many of `cells` are replaced after each step: from none to all, as even as whole numbers allow.

    The published code takes `cells // steps` a step, which overruns on grids that it does not divide; the counts here
    are the rounded points of an even division instead, and the same wherever the division is exact.

    >>> step_counts(10, 4).tolist()
    [0, 3, 5, 8, 10]
    >>> step_counts(3, 196).tolist()
    [0, 1, 2, 3]

    Args:
        cells: number of cells, at least one.
        steps: number of steps; never more than there are cells. None replaces one cell a step.

    Returns:
        int64 (S + 1,), strictly increasing.

    Raises:
        ParameterError: if one of the two is less than one.
    """
    if cells < 1 or (steps is not None and steps < 1):
        raise ParameterError(f"step_counts: need at least one cell and one step but got {cells} and {steps}.")
    steps = cells if steps is None else min(steps, cells)
    return (2 * torch.arange(steps + 1) * cells + steps) // (2 * steps)


def trapezoid_auc(scores: Tensor, x: Tensor | None = None) -> Tensor:
    """Area under curves by the trapezoid rule, with the x axis stretched to [0, 1].

    >>> trapezoid_auc(torch.tensor([[1.0, 0.5, 0.0]]))
    tensor([0.5000], dtype=torch.float64)

    Args:
        scores: (M, S).
        x: increasing places (S,) or (M, S) of the points; None puts them at even distances. Equal places add nothing.

    Returns:
        float64 (M,); a curve of one point has the value of that point.
    """
    if scores.ndim != 2 or (x is not None and x.shape not in (scores.shape, scores.shape[1:])):
        came = None if x is None else tuple(x.shape)
        raise ShapeError(
            f"trapezoid_auc: scores {tuple(scores.shape)} and x {came} do not fit; expected (M, S) and (S,)."
        )
    y = scores.double()
    if y.shape[1] == 1:
        return y[:, 0]
    if x is None:
        x = torch.arange(y.shape[1], device=y.device)
    x = x.double().expand_as(y)
    span = x[:, -1] - x[:, 0]
    return torch.trapezoid(y, x, dim=1) / torch.where(span > 0, span, torch.nan)


def pearson(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pearson's correlation of each row of `a` with that of `b`.

    >>> pearson(torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]]))
    tensor([0.9820,    nan], dtype=torch.float64)

    Args:
        a: (M, S).
        b: (M, S).
        valid: bool (M, S), which entries count; None counts all.

    Returns:
        float64 (M,); NaN for fewer than two entries and for rows that are constant.
    """
    if a.shape != b.shape or a.ndim != 2 or (valid is not None and valid.shape != a.shape):
        raise ShapeError(f"pearson: expected two tensors (M, S) but got {tuple(a.shape)} and {tuple(b.shape)}.")
    keep = torch.ones_like(a, dtype=torch.bool) if valid is None else valid
    number = keep.sum(dim=1, keepdim=True).double()

    def centred(values: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.where(keep, values.double(), 0.0)
        rest = torch.where(keep, values - values.sum(dim=1, keepdim=True) / number, 0.0)
        # A mean rounds: what is constant up to the last digits has no variance, and its quotient would be noise.
        size = values.abs().amax(dim=1)
        varies = rest.abs().amax(dim=1) > 4 * torch.finfo(torch.float64).eps * size
        return rest, varies

    (p, p_varies), (q, q_varies) = centred(a), centred(b)
    norm = p.norm(dim=1) * q.norm(dim=1)
    known = p_varies & q_varies & (norm > 0)
    value = (p * q).sum(dim=1) / torch.where(known, norm, 1.0)
    value = torch.where(known, value, torch.nan)
    poisoned = torch.where(keep, a.double() + b.double(), 0.0).isnan().any(dim=1)
    return torch.where(poisoned, torch.nan, value.clamp(-1.0, 1.0))


def step_means(maps: Tensor, ranks: Tensor, counts: Tensor) -> Tensor:
    """Mean importance of the cells that each step replaces, most important first.

    Args:
        maps: (M, cells).
        ranks: (M, cells), 0 = most important.
        counts: (S + 1,), cells replaced after each step.

    Returns:
        float64 (M, S).
    """
    ordered = torch.empty_like(maps, dtype=torch.float64).scatter_(1, ranks.long(), maps.double())
    total = torch.nn.functional.pad(ordered.cumsum(dim=1), (1, 0))
    counts = counts.to(maps.device)
    return total.index_select(1, counts).diff(dim=1) / counts.diff()


def curve_correlation(saliency: Tensor, scores: Tensor, *, insertion: bool = False) -> Tensor:
    """DC and IC: correlation of a step's saliency with its change of the score (Gomez et al. 2022, arXiv:2201.13291).

    Deletion: corr(saliency removed, score before - score after); insertion: corr(saliency added, score after - before).

    Args:
        saliency: (M, S), mean saliency of the cells of each step.
        scores: (M, S + 1), with both ends.
        insertion: the curve inserts.

    Returns:
        float64 (M,) in [-1, 1]; NaN where either does not vary, such as for a constant map.
    """
    change = scores.double().diff(dim=1)
    return pearson(saliency, change if insertion else -change)


def area_over(scores: Tensor) -> Tensor:
    """Mean drop below the first point (AOPC; Samek et al. 2017, arXiv:1509.06321): mean over k of y_0 - y_k.

    >>> area_over(torch.tensor([[1.0, 0.5, 0.0]]))
    tensor([0.5000], dtype=torch.float64)

    Args:
        scores: (M, S + 1), the untouched image first.

    Returns:
        float64 (M,).
    """
    y = scores.double()
    return (y[:, :1] - y).mean(dim=1)
