"""Statistics of a table of scores (images, methods): intervals, tests, rankings and their agreement.

Every function takes one row per image and one column per method. Images are shared by the methods, so the tests are
paired unless they say otherwise. NaN is an undefined score: it is left out where it stands, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from torch import Tensor

from xattn.errors import DataError, ParameterError
from xattn.functional.statistics import (
    ALPHA,
    LEVEL,
    Array,
    Level,
    bootstrap_means,
    cliques,
    exact_signed_rank,
    holm,
    krippendorff_alpha,
    ranks_of_methods,
    table,
)

Kind = Literal["bca", "percentile"]
Test = Literal["wilcoxon", "welch"]
_CHUNK = 2**22  # values that are worked on together
_FEW, _EXACT = 13, 50  # images up to which the test is exact with and without ties, as in SciPy


@dataclass(frozen=True, eq=False)
class Intervals:
    """Means with intervals.

    Args:
        mean: (M,), NaN where there is no value.
        low: (M,).
        high: (M,).
        n: (M,), how many images have a value.
        missing: (M,), how many do not.
    """

    mean: Array
    low: Array
    high: Array
    n: NDArray[np.int64]
    missing: NDArray[np.int64]


def intervals(
    values: ArrayLike, *, level: float = LEVEL, kind: Kind = "bca", resamples: int = 5000, seed: int = 0
) -> Intervals:
    """Bootstrap intervals of the means over images (Efron 1987, JASA 82, for BCa).

    All methods share the resampled images, so differences between columns can be read from the same numbers. For the
    interval of a difference pass the differences.

    Args:
        values: (N, M), or (N,) for one method.
        level: share of such intervals that hold the true mean.
        kind: `"bca"` corrects bias and skewness, `"percentile"` takes the quantiles as they are.
        resamples: number of resamples.
        seed: of the resamples.

    Returns:
        Arrays (M,). With one value or equal values the interval has no width.

    Raises:
        ParameterError: for a level that is not between 0 and 1, or another kind.
    """
    if not 0 < level < 1:
        raise ParameterError(f"intervals: level must be between 0 and 1 but is {level}.")
    if kind not in ("bca", "percentile"):
        raise ParameterError(f"intervals: kind must be bca or percentile but is '{kind}'.")
    if resamples < 1:
        raise ParameterError(f"intervals: resamples must be at least 1 but is {resamples}.")
    x = np.asarray(values, dtype=np.float64)
    x = table(x[:, None] if x.ndim == 1 else x, "intervals")
    there = ~np.isnan(x)
    n = there.sum(0)
    mean = means_of(x)
    drawn = bootstrap_means(x, resamples, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = mean.copy(), mean.copy()
    for m in range(x.shape[1]):
        column = x[there[:, m], m]
        means = drawn[:, m][~np.isnan(drawn[:, m])]
        if len(means) == 0 or np.ptp(column) == 0:
            continue
        at = _bca(column, float(mean[m]), means, tails) if kind == "bca" else tails
        low[m], high[m] = np.quantile(means, at)
    return Intervals(mean, low, high, n, len(x) - n)


def means_of(x: Array) -> Array:
    """Mean of each column (M,) of a table (N, M) over what is there; NaN for an empty one, without a warning."""
    there = ~np.isnan(x)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(there, x, 0).sum(0) / there.sum(0)
    return mean


def _bca(column: Array, mean: float, drawn: Array, tails: Array) -> Array:
    """Corrected places of the tails among the resampled means."""
    below = ((drawn < mean).mean() + (drawn <= mean).mean()) / 2
    if not 0 < below < 1:  # the mean is outside of all resamples: there is no bias to estimate
        return tails
    bias = special.ndtri(below)
    # The jackknife of a mean moves with the values themselves.
    off = column - mean
    skew = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    z = bias + special.ndtri(tails)
    places: Array = special.ndtr(bias + z / (1 - skew * z))
    return places


@dataclass(frozen=True, eq=False)
class AgainstBest:
    """Every method beside the best one.

    Args:
        best: place of the method with the best mean.
        difference: (M,), mean over shared images of the method's value less that of the best.
        low: (M,), bootstrap interval of the difference.
        high: (M,).
        p: (M,), paired Wilcoxon test; NaN for the best itself and where fewer than one image is shared.
        adjusted: (M,), after Holm's correction.
        n: (M,), images where both have a value.
    """

    best: int
    difference: Array
    low: Array
    high: Array
    p: Array
    adjusted: Array
    n: NDArray[np.int64]


def against_best(
    values: ArrayLike, *, higher: bool = True, level: float = LEVEL, resamples: int = 5000, seed: int = 0
) -> AgainstBest:
    """Test each method against the best: paired Wilcoxon tests with Holm's correction (Demšar 2006, JMLR 7).

    The best is chosen on the same images, so a method that does not differ from it may well be as good, and one that
    does is worse with the stated confidence only roughly.

    Args:
        values: (N, M).
        higher: larger values are better.
        level: of the intervals.
        resamples: of the intervals.
        seed: of the intervals.

    Raises:
        DataError: if no method has a value.
    """
    x = table(values, "against_best")
    mean = means_of(x)
    if np.isnan(mean).all():
        raise DataError("against_best: no method has a value on any image; there is nothing to compare.")
    best = int(np.nanargmax(mean) if higher else np.nanargmin(mean))
    differences = x - x[:, best : best + 1]
    spread = intervals(differences, level=level, resamples=resamples, seed=seed)
    p = wilcoxon(differences)
    p[best] = np.nan
    return AgainstBest(best, spread.mean, spread.low, spread.high, p, holm(p), spread.n)


def wilcoxon(differences: ArrayLike) -> Array:
    """Two-sided p values of Wilcoxon's signed-rank test; zeros are ranked, then left out (Wilcoxon 1945, Pratt 1959).

    Args:
        differences: (N, T), of T pairs of methods; NaN are left out.

    Returns:
        (T,): 1 where all differences are zero, NaN where there is none.
    """
    d = table(differences, "wilcoxon")
    there = ~np.isnan(d)
    p = np.where(there.any(0), 1.0, np.nan)
    alike: dict[tuple[int, str], list[int]] = {}  # columns that one call of SciPy can test
    for t in np.flatnonzero(np.nan_to_num(d).any(0)).tolist():
        own = d[there[:, t], t]
        ties = len(np.unique(np.abs(own))) < len(own) or bool((own == 0).any())
        if ties and len(own) <= _FEW:
            p[t] = exact_signed_rank(own)
        else:
            # SciPy decides for all columns together, and by permutations that take minutes where images are few.
            method = "exact" if not ties and len(own) <= _EXACT else "asymptotic"
            alike.setdefault((len(own), method), []).append(t)
    for (_, method), columns in alike.items():
        values = np.stack([d[there[:, t], t] for t in columns], 1)
        p[columns] = stats.wilcoxon(values, zero_method="pratt", method=method).pvalue
    return p


@dataclass(frozen=True, eq=False)
class Pairwise:
    """Every method beside every other, for a dot matrix.

    Args:
        difference: (M, M), mean of the row's method less that of the column's, over the images that the test uses.
        p: (M, M), symmetric; NaN on the diagonal and where there are too few images.
        adjusted: (M, M), after Holm's correction over all pairs; equal to `p` where none was asked for.
        n: (M, M), images where both have a value.
        test: name of the test.
    """

    difference: Array
    p: Array
    adjusted: Array
    n: NDArray[np.int64]
    test: Test


def pairwise(values: ArrayLike, *, test: Test = "wilcoxon", correct: bool = True) -> Pairwise:
    """Test every method against every other.

    Images are shared, so the paired Wilcoxon test is the default. `test="welch", correct=False` is the figure of
    Gomez et al. 2022 (arXiv:2106.02566): unequal-variance t-tests, as if each method had images of its own.

    Args:
        values: (N, M).
        test: `"wilcoxon"` or `"welch"`.
        correct: apply Holm's correction over all M (M - 1) / 2 pairs.

    Raises:
        ParameterError: for another test.
    """
    if test not in ("wilcoxon", "welch"):
        raise ParameterError(f"pairwise: test must be wilcoxon or welch but is '{test}'.")
    x = table(values, "pairwise")
    m = x.shape[1]
    there = (~np.isnan(x)).astype(np.int64)
    n = there.T @ there
    difference, p = np.zeros((m, m)), np.full((m, m), np.nan)
    if test == "welch":
        mean = means_of(x)
        difference, p = mean[:, None] - mean, _welch(x)
    else:
        upper = np.triu_indices(m, 1)
        for some in groups_of(len(upper[0]), len(x)):
            first, second = upper[0][some], upper[1][some]
            d = x[:, first] - x[:, second]
            p[first, second], difference[first, second] = wilcoxon(d), means_of(d)
        p.T[upper], difference.T[upper] = p[upper], -difference[upper]
    np.fill_diagonal(p, np.nan)
    adjusted = p.copy()
    if correct:
        upper = np.triu_indices(m, 1)
        adjusted[upper] = holm(p[upper])
        adjusted.T[upper] = adjusted[upper]
    return Pairwise(difference, p, adjusted, n, test)


def groups_of(count: int, images: int) -> Iterator[slice]:
    """Slices of so many columns, such that the values of a group on all images are few enough to be in memory together.

    >>> list(groups_of(5, 2**21))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, _CHUNK // max(images, 1))
    return (slice(start, start + step) for start in range(0, count, step))


def _welch(x: Array) -> Array:
    """Two-sided p values (M, M) of Welch's unequal-variance t-test (Welch 1947)."""
    there = ~np.isnan(x)
    n = there.sum(0)
    mean = means_of(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(there, (x - mean) ** 2, 0).sum(0) / (n - 1) / n  # variance of the mean
        both = share[:, None] + share
        t = (mean[:, None] - mean) / np.sqrt(both)
        freedom = both**2 / (share[:, None] ** 2 / (n[:, None] - 1) + share**2 / (n - 1))
        p: Array = 2 * special.stdtr(freedom, -np.abs(t))
    equal = (both == 0) & (mean[:, None] == mean)
    return np.where(equal, 1.0, np.where((both == 0) & ~equal & ~np.isnan(mean[:, None] - mean), 0.0, p))


@dataclass(frozen=True, eq=False)
class Friedman:
    """Whether methods differ at all, by their ranks.

    Args:
        statistic: chi-squared with ties taken into account.
        p: of the hypothesis that all methods are equal.
        mean_ranks: (M,), 1 is best.
        n: images where every method has a value.
        missing: images that were left out.
    """

    statistic: float
    p: float
    mean_ranks: Array
    n: int
    missing: int

    def groups(self, alpha: float = ALPHA) -> list[tuple[int, ...]]:
        """Groups of methods that the Nemenyi test does not tell apart, from best to worst."""
        return cliques(self.mean_ranks, critical_difference(len(self.mean_ranks), self.n, alpha))


def friedman(values: ArrayLike, *, higher: bool = True) -> Friedman:
    """Friedman's test over the ranks of methods in each image (Friedman 1937; Demšar 2006, JMLR 7, sec. 3.2.2).

    Args:
        values: (N, M); images where a method has no value are left out and counted.
        higher: larger values are better.

    Returns:
        The test with mean ranks. With fewer than two methods or images all but the counts is NaN.
    """
    ranks = ranks_of_methods(values, higher=higher)
    kept = ranks[~np.isnan(ranks).any(1)]
    n, m = kept.shape
    missing = len(ranks) - n
    if n < 2 or m < 2:
        mean = kept.mean(0) if n else np.full(m, np.nan)
        return Friedman(math.nan, math.nan, mean, n, missing)
    mean = kept.mean(0)
    spread = ((kept - (m + 1) / 2) ** 2).sum()  # n m (m^2 - 1) / 12 without ties
    if spread == 0:
        return Friedman(0.0, 1.0, mean, n, missing)
    statistic = float((m - 1) * n**2 * ((mean - (m + 1) / 2) ** 2).sum() / spread)
    return Friedman(statistic, float(special.chdtrc(m - 1, statistic)), mean, n, missing)


def critical_difference(methods: int, images: int, alpha: float = ALPHA) -> float:
    """Mean ranks that differ by more than this differ (Nemenyi 1963; Demšar 2006, JMLR 7, sec. 3.2.2).

    q sqrt(M (M + 1) / (6 N)), q the quantile of the studentized range over sqrt(2).

    Args:
        methods: M, at least 2.
        images: N, at least 1.
        alpha: probability of any false difference.

    Raises:
        ParameterError: for a number out of range.

    >>> round(critical_difference(4, 14), 2)  # the example of Demšar, with q = 2.569
    1.25
    """
    if methods < 2 or images < 1 or not 0 < alpha < 1:
        raise ParameterError(
            f"critical_difference: expected 2 or more methods, 1 or more images and alpha in (0, 1) but got {methods}, "
            f"{images} and {alpha}."
        )
    q = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * images))


@dataclass(frozen=True, eq=False)
class Reliability:
    """How far images agree on the order of methods.

    Args:
        alpha: Krippendorff's alpha.
        low: bootstrap interval over images (percentile).
        high: its other end.
        n: images with at least two values.
    """

    alpha: float
    low: float
    high: float
    n: int


def reliability(
    values: ArrayLike, *, level: Level = "ordinal", interval: float = LEVEL, resamples: int = 500, seed: int = 0
) -> Reliability:
    """Inter-rater reliability of a metric: images rate methods (Tomsett et al. 2020, arXiv:1912.01451).

    Ordinal: each image's values are replaced by the ranks of the methods in it, so that a difficult image does not
    count as disagreement; images where a method has no value are left out. Nominal and interval take values as they
    are.

    Args:
        values: (N, M).
        level: of Krippendorff's alpha.
        interval: of the bootstrap over images.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    x = table(values, "reliability")
    if level == "ordinal":
        x = ranks_of_methods(x)
    x = x[(~np.isnan(x)).sum(1) >= 2]
    alpha = krippendorff_alpha(x, level)
    if len(x) < 2 or math.isnan(alpha):
        return Reliability(alpha, math.nan, math.nan, len(x))
    rng = np.random.default_rng(seed)
    found = []
    for group in groups_of(resamples, len(x)):
        rows = len(range(resamples)[group])
        drawn = rng.integers(0, len(x), (rows, len(x))) + np.arange(rows)[:, None] * len(x)
        weights = np.bincount(drawn.ravel(), minlength=rows * len(x)).reshape(rows, len(x))
        found.append(
            _alphas(x, weights.astype(np.float64))
            if level == "ordinal"
            else np.array([krippendorff_alpha(np.repeat(x, own, axis=0), level) for own in weights])
        )
    alphas = np.concatenate(found)
    alphas = alphas[~np.isnan(alphas)]
    if len(alphas) == 0:
        return Reliability(alpha, math.nan, math.nan, len(x))
    low, high = np.quantile(alphas, [(1 - interval) / 2, (1 + interval) / 2])
    return Reliability(alpha, float(low), float(high), len(x))


def _alphas(ranks: Array, weights: Array) -> Array:
    """Ordinal alpha (B,) of resampled images (Krippendorff 2011), all resamples at once.

    Ranks are few different numbers, so counts of them in each method say all: alpha needs no image.

    Args:
        ranks: (N, M), without NaN.
        weights: (B, N), how often each image was drawn.
    """
    n, m = ranks.shape
    distinct, code = np.unique(ranks, return_inverse=True)
    code = code.reshape(n, m, 1)
    counts = np.zeros((len(weights), m, len(distinct)))
    # Whole numbers, whose sums are exact in any order, and in half as many bytes up to 2 ** 24.
    kind = np.float32 if n < 2**20 else np.float64
    weights = weights.astype(kind)
    for some in groups_of(n, m * len(distinct)):
        one = np.zeros((len(code[some]), m, len(distinct)), kind)
        np.put_along_axis(one, code[some], 1, axis=2)
        counts += (weights[:, some] @ one.reshape(len(one), -1)).reshape(counts.shape)
    per_rank = counts.sum(1)
    place = np.cumsum(per_rank, 1) - per_rank / 2
    y = (place - n * m / 2) / (n * m)
    sums, squares = np.einsum("bmd,bd->bm", counts, y), np.einsum("bmd,bd->bm", counts, y * y)
    observed = (2 * (n * squares - sums**2)).sum(1) / (n - 1)
    expected = 2 * (n * m * squares.sum(1) - sums.sum(1) ** 2) / (n * m - 1)
    with np.errstate(invalid="ignore"):
        alphas: Array = np.where(expected > 0, 1 - observed / expected, np.nan)
    return alphas


def pooled_intervals(
    pool: Callable[[Mapping[str, Tensor]], dict[str, float]],
    columns: Mapping[str, ArrayLike],
    *,
    level: float = LEVEL,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Values of a whole data set with percentile intervals over its images, for metrics that pool (MaxBoxAcc, PxAP).

    Each resample chooses its own threshold, so the interval holds the doubt about the threshold too.

    Args:
        pool: `Metric.pool`.
        columns: the rows (N,) of one method, by the names of the metric's columns.
        level: share of such intervals that hold the true value.
        resamples: of the images.
        seed: of the resamples.

    Returns:
        For each pooled value itself, the low and the high end of its interval; NaN where there are too few images.
    """
    names = list(columns)
    x = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], 1)

    def values(rows: Array) -> dict[str, float]:
        return pool({name: torch.from_numpy(rows[:, i].copy()) for i, name in enumerate(names)})

    whole = values(x)
    result: dict[str, tuple[float, float, float]] = {}
    rng = np.random.default_rng(seed)
    drawn = [values(x[rng.integers(0, len(x), len(x))]) for _ in range(resamples if len(x) > 1 else 0)]
    for name, value in whole.items():
        ends = np.array([d[name] for d in drawn if not math.isnan(d[name])])
        low, high = np.quantile(ends, [(1 - level) / 2, (1 + level) / 2]) if len(ends) else (math.nan, math.nan)
        result[name] = value, float(low), float(high)
    return result
