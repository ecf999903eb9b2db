"""Statistics in numpy alone: ranks of methods, correction for many tests, agreement of raters."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xattn.errors import ParameterError, ShapeError

Array: TypeAlias = NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]
LEVEL = 0.95
"""Share of the intervals that hold the true value."""
INTERVAL = f"{100 * LEVEL:.0f} %"
"""The same in words."""
ALPHA = 0.05
"""Probability of a false difference that tests allow."""


def table(values: ArrayLike, what: str) -> Array:
    """Values as a float64 table (N images, M methods)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise ShapeError(f"{what}: expected a table (images, methods) but got shape {x.shape}.")
    return x


def ranks_of_methods(values: ArrayLike, *, higher: bool = True) -> Array:
    """Rank of each method in each image, 1 is best; equal values share the mean of their ranks (Demšar 2006, JMLR 7).

    Args:
        values: (N, M).
        higher: larger values are better.

    Returns:
        (N, M); an image where a method has no value is NaN as a whole, since its ranks would not compare.

    >>> ranks_of_methods([[0.2, 0.9, 0.2]]).tolist()
    [[2.5, 1.0, 2.5]]
    """
    x = table(values, "ranks_of_methods")
    x = -x if higher else x
    ranks = np.empty_like(x)
    for column in range(x.shape[1]):  # methods are few, images many
        own = x[:, column : column + 1]
        ranks[:, column] = (x < own).sum(1) + ((x == own).sum(1) + 1) / 2
    ranks[np.isnan(x).any(1)] = np.nan
    return ranks


def holm(p: ArrayLike) -> Array:
    """P values corrected for their number, so that the probability of any false discovery is bounded (Holm 1979).

    Args:
        p: any shape; NaN are no tests: they stay, and do not count.

    Returns:
        Of the same shape, never smaller than `p`, at most 1.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p, dtype=np.float64)
    flat = raw.ravel()
    adjusted = np.full_like(flat, np.nan)
    tests = np.flatnonzero(~np.isnan(flat))
    order = tests[np.argsort(flat[tests], kind="stable")]
    steps = flat[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return adjusted.reshape(raw.shape)


def exact_signed_rank(differences: ArrayLike) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test by counting all signs, with ties and zeros (Pratt 1959).

    Args:
        differences: (N,), without NaN; equal sizes share the mean of their ranks, zeros are ranked, then left out.

    >>> exact_signed_rank([1.0, 2.0, 3.0, -1.0])
    0.375
    """
    d = np.asarray(differences, dtype=np.float64)
    size = np.abs(d)
    twice = (size < size[:, None]).sum(1) * 2 + (size == size[:, None]).sum(1) + 1  # ranks with halves, as integers
    observed = int(twice[d > 0].sum())
    ways = np.ones(1)  # to reach each sum
    for rank in twice[d != 0].tolist():
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return min(1.0, 2 * float(min(ways[: observed + 1].sum(), ways[observed:].sum()) / ways.sum()))


def kendall(scores: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Kendall's tau-b between rankings of the same methods (Kendall 1945).

    Args:
        scores: (A, M): in each of A protocols, images or metrics, the score of each of M methods. Turn the sign of
            those where lower is better.

    Returns:
        Tau (A, A), NaN where fewer than two methods are shared or one of the two has all equal; and the number of
        shared methods (A, A).

    >>> kendall([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])[0].tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """
    x = table(scores, "kendall")
    there = (~np.isnan(x)).astype(np.int64)
    first, second = np.triu_indices(x.shape[1], 1)
    both = (there[:, first] * there[:, second]).astype(np.float64)  # (A, pairs)
    order = np.where(both > 0, np.sign(np.nan_to_num(x[:, first] - x[:, second])), 0.0)
    untied = np.abs(order) @ both.T  # pairs that the row's protocol orders, of those that both have
    with np.errstate(invalid="ignore"):
        tau = (order @ order.T) / np.sqrt(untied * untied.T)
    return tau, there @ there.T


def krippendorff_alpha(values: ArrayLike, level: Level = "ordinal") -> float:
    """Agreement of raters, 1 is perfect and 0 random (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability).

    One less the observed over the expected disagreement. Units with fewer than two ratings do not count. Ordinal
    distances are differences between the middles of the values in the cumulative distribution of all ratings, which is
    the published formula written without a sum.

    Args:
        values: ratings (raters, units), NaN where there is none.
        level: `"nominal"`, `"ordinal"` or `"interval"`.

    Returns:
        Alpha, at most 1; NaN where no unit has two ratings or all ratings are equal.

    Raises:
        ParameterError: for another level.

    >>> krippendorff_alpha([[1, 2, 3], [1, 2, 3]])
    1.0
    """
    if level not in get_args(Level):
        raise ParameterError(f"krippendorff_alpha: level must be one of {', '.join(get_args(Level))} but is '{level}'.")
    x = table(values, "krippendorff_alpha")
    there = ~np.isnan(x)
    there &= there.sum(0) >= 2
    unit = np.broadcast_to(np.arange(x.shape[1]), x.shape)[there]
    rating = x[there]
    n = len(rating)
    if n == 0:
        return float("nan")
    per_unit = np.bincount(unit, minlength=x.shape[1]).astype(np.float64)
    distinct, code, counts = np.unique(rating, return_inverse=True, return_counts=True)
    if len(distinct) == 1:
        return float("nan")
    others = np.maximum(per_unit - 1, 1)
    if level == "nominal":
        cells, same = np.unique(unit * len(distinct) + code, return_counts=True)
        observed = n - float((same * (same - 1) / others[cells // len(distinct)]).sum())
        expected = (n * n - float((counts.astype(np.float64) ** 2).sum())) / (n - 1)
        return 1 - observed / expected
    place = np.cumsum(counts) - counts / 2 if level == "ordinal" else distinct
    y = (place - place.mean())[code]
    y = y / np.abs(y).max()
    sums = np.bincount(unit, y, minlength=x.shape[1])
    squares = np.bincount(unit, y * y, minlength=x.shape[1])
    observed = float((2 * (per_unit * squares - sums**2) / others).sum())
    expected = float(2 * (n * squares.sum() - sums.sum() ** 2)) / (n - 1)
    return 1 - observed / expected


def cliques(mean_ranks: ArrayLike, critical_difference: float) -> list[tuple[int, ...]]:
    """Groups of methods that do not differ, for the bars of a critical-difference diagram (Demšar 2006, JMLR 7).

    Args:
        mean_ranks: (M,), smaller is better.
        critical_difference: ranks that differ by less than this, or just this, belong together.

    Returns:
        Places of the methods from best to worst, only groups of two or more that lie in no larger one.

    >>> cliques([1.0, 3.0, 1.5, 2.4], 1.0)
    [(0, 2), (2, 3), (3, 1)]
    """
    ranks = np.asarray(mean_ranks, dtype=np.float64)
    order = np.argsort(ranks, kind="stable")
    ordered = ranks[order]
    groups: list[tuple[int, ...]] = []
    furthest = 0
    for start in range(len(order)):
        stop = int(np.searchsorted(ordered, ordered[start] + critical_difference + 1e-12, side="right"))
        if stop > furthest and stop - start > 1:
            groups.append(tuple(int(i) for i in order[start:stop]))
            furthest = stop
    return groups


def bootstrap_means(values: ArrayLike, resamples: int, seed: int = 0, *, chunk: int = 1 << 22) -> Array:
    """Means of resampled images; all methods share the images of a resample (Efron, Tibshirani 1993, ch. 6).

    Args:
        values: (N, M); NaN are left out of each mean.
        resamples: B.
        seed: of the choice.
        chunk: images drawn at a time; changes nothing but the memory.

    Returns:
        (B, M); NaN where a resample has no value of a method.
    """
    x = table(values, "bootstrap_means")
    there = ~np.isnan(x)
    both: NDArray[Any] = np.concatenate([np.where(there, x, 0), there], 1, dtype=np.float64)
    rng = np.random.default_rng(seed)
    n, methods = x.shape
    means = np.full((resamples, methods), np.nan)
    if n == 0:
        return means
    step = max(1, chunk // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        sums = weights @ both
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + rows] = sums[:, :methods] / sums[:, methods:]
    return means
