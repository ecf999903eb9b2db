"""Which methods differ by more than a margin, and which are shown not to: paired tests over several columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from xattn.benchmark.statistics import groups_of
from xattn.functional.statistics import ALPHA, Array, holm, table

_ALIKE = 0.99  # correlation over images from which two methods count as one
FEWEST = 8
"""Images without which nothing is said: a t test of fewer rests on how scores are distributed; any lines correlate."""


def exceeds(differences: ArrayLike, margin: float = 0.0) -> Array:
    """One-sided p values (T,) of paired t tests that a mean difference is more than a margin (Student 1908).

    Args:
        differences: (N, T), one row an image; NaN are left out.
        margin: the difference of which the hypothesis is that there is no more.

    Returns:
        (T,): NaN for fewer than two images; 0 or 1 where all differences are equal.

    >>> exceeds([[0.3], [0.1], [0.2]], margin=0.05).round(3)
    array([0.061])
    """
    d = table(differences, "exceeds")
    there = ~np.isnan(d)
    n = there.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, d, 0).sum(0) / n
        variance = np.where(there, (d - mean) ** 2, 0).sum(0) / (n - 1)
        t = (mean - margin) / np.sqrt(variance / n)
    p: Array = special.stdtr(np.maximum(n - 1, 1), -t)
    return np.where(n < 2, np.nan, np.where(variance == 0, np.where(mean > margin, 0.0, 1.0), p))


def _tested(differences: Array, margin: float) -> Array:
    """`exceeds`, NaN for fewer than `FEWEST` images."""
    return np.where((~np.isnan(differences)).sum(0) < FEWEST, np.nan, exceeds(differences, margin))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every method beside every other over several columns.

    Args:
        worse: bool (M, M), the row's method is shown worse than the column's by more than the margin in some column.
        same: bool (M, M), both are shown to lie within the margin of each other in every column.
    """

    worse: NDArray[np.bool_]
    same: NDArray[np.bool_]


def compare(tables: Sequence[Array], margin: float, alpha: float = ALPHA) -> Comparison:
    """Compare all pairs of methods in all columns, with one correction over pairs and columns (Holm 1979).

    Two one-sided tests show that a pair lies within the margin (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15); a
    column where this is not shown leaves the pair open, as few images do.

    Args:
        tables: one (N, M) for each column, turned so that higher is better; columns may have images of their own.
        margin: smaller differences do not matter.
        alpha: probability of any false statement of a kind.
    """
    methods = tables[0].shape[1]
    first, second = np.nonzero(~np.eye(methods, dtype=np.bool_))
    above = np.stack([_exceeds_of_pairs(t, first, second, margin) for t in tables])
    below = np.stack([_exceeds_of_pairs(t, first, second, -margin) for t in tables])
    worse, same = np.zeros((2, methods, methods), np.bool_)
    with np.errstate(invalid="ignore"):
        worse[second, first] = (holm(above) < alpha).any(0)
        inside = np.ones((methods, methods), np.bool_)
        inside[first, second] = (holm(below) < alpha).all(0)  # the first is not worse by the margin, in every column
    same = inside & inside.T
    return Comparison(worse, same)


def _exceeds_of_pairs(t: Array, first: NDArray[np.int64], second: NDArray[np.int64], margin: float) -> Array:
    """As `_tested`, of the differences of pairs of columns, which are in memory a group at a time."""
    groups = groups_of(len(first), len(t))
    return np.concatenate([np.zeros(0), *(_tested(t[:, first[g]] - t[:, second[g]], margin) for g in groups)])


def beats(tables: Sequence[Array], controls: Sequence[int], alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Whether each method is better than every control: bool (columns, M), corrected over methods and columns (Holm).

    A method has to be shown better than each of the controls, so the largest p value decides (Berger 1982).

    Args:
        tables: as for `compare`.
        controls: places of the controls, which beat nothing.
        alpha: probability of any false statement.
    """
    methods = tables[0].shape[1]
    p = np.full((len(tables), methods), np.nan)
    for c, t in enumerate(tables):
        known = [k for k in controls if not np.isnan(t[:, k]).all()]
        if known:
            p[c] = np.max([_tested(t - t[:, [k]], 0.0) for k in known], axis=0)
    p[:, list(controls)] = np.nan
    with np.errstate(invalid="ignore"):
        better: NDArray[np.bool_] = holm(p) < alpha
    return better


def duplicates(tables: Sequence[Array], margin: float) -> list[list[int]]:
    """Methods whose scores are the same but for noise, in groups: in each column they correlate and have one mean.

    A method joins the first group with every member of which its values correlate by 0.99 or more over eight images or
    more, with means that are no further apart than the margin.

    Args:
        tables: as for `compare`.
        margin: of the means.
    """
    groups: list[list[int]] = []
    for j in range(tables[0].shape[1]):
        for group in groups:
            if all(_alike(t[:, j], t[:, k], margin) for t in tables for k in group):
                group.append(j)
                break
        else:
            groups.append([j])
    return groups


def _alike(a: Array, b: Array, margin: float) -> bool:
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    if len(a) < FEWEST or abs(a.mean() - b.mean()) > margin:
        return False
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return bool(np.array_equal(a, b))
    return bool(np.corrcoef(a, b)[0, 1] >= _ALIKE)
