"""Formulas of statistics: naive loops, scipy and published examples as witnesses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xattn.functional.statistics import (
    bootstrap_means,
    cliques,
    holm,
    kendall,
    krippendorff_alpha,
    ranks_of_methods,
)


def scores(n: int = 40, m: int = 5, seed: int = 0, holes: float = 0.0) -> np.ndarray:
    """Images of different difficulty, methods of different quality, ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1)) + 0.3 * np.arange(m) + rng.normal(size=(n, m))
    x = np.round(x, 1)
    x[rng.random((n, m)) < holes] = np.nan
    return x


# Ranks, Holm, cliques


def test_ranks_oracle() -> None:
    x = scores(holes=0.05)
    got = ranks_of_methods(x)
    low = ranks_of_methods(x, higher=False)
    for row, mine, other in zip(x, got, low, strict=True):
        if np.isnan(row).any():
            assert np.isnan(mine).all()
            continue
        np.testing.assert_array_equal(mine, stats.rankdata(-row))
        np.testing.assert_array_equal(other, stats.rankdata(row))
        assert mine.sum() == 15


def naive_holm(p: list[float]) -> list[float]:
    found = []
    for a in p:
        steps = [(len(p) - sum(c < b for c in p)) * b for b in p if b <= a]
        found.append(min(1.0, max(steps)))
    return found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True))
@settings(deadline=None, max_examples=50)
def test_holm_oracle(p: list[float]) -> None:
    got = holm(p)
    np.testing.assert_allclose(got, naive_holm(p))
    assert (got >= np.array(p)).all()
    with_hole = holm([p[0], math.nan, *p[1:]])
    np.testing.assert_allclose(np.delete(with_hole, 1), got)
    assert np.isnan(with_hole[1])


def test_holm_of_nothing_and_of_a_matrix() -> None:
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan, math.nan])).all()
    p = np.array([[0.01, 0.2], [0.03, 0.04]])
    np.testing.assert_allclose(holm(p), holm(p.ravel()).reshape(2, 2))


def naive_cliques(ranks: list[float], cd: float) -> set[frozenset[int]]:
    """All maximal sets of two or more methods no two of which differ by more."""
    m = len(ranks)
    groups = [
        frozenset(c) for size in range(2, m + 1) for c in itertools.combinations(range(m), size)
        if max(ranks[i] for i in c) - min(ranks[i] for i in c) <= cd + 1e-12
    ]  # fmt: skip
    return {g for g in groups if not any(g < other for other in groups)}


@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.integers(0, 6))
@settings(deadline=None, max_examples=100)
def test_cliques_oracle(ranks: list[int], cd: int) -> None:
    assert {frozenset(g) for g in cliques(ranks, cd)} == naive_cliques([float(r) for r in ranks], cd)


# Bootstrap


def test_bootstrap_means_are_paired_and_do_not_depend_on_the_chunk() -> None:
    x = scores(17, 3)
    got = bootstrap_means(x, 50, seed=1)
    np.testing.assert_array_equal(got, bootstrap_means(x, 50, seed=1, chunk=40))
    np.testing.assert_allclose(bootstrap_means(x + np.arange(1, 4), 50, seed=1) - got, np.tile([1, 2, 3], (50, 1)))
    drawn = np.random.default_rng(1).integers(0, 17, (50, 17))
    np.testing.assert_allclose(got, [[x[rows, m].mean() for m in range(3)] for rows in drawn])
    assert not np.array_equal(got, bootstrap_means(x, 50, seed=2))


def test_bootstrap_means_leave_out_nan() -> None:
    x = scores(12, 2, holes=0.3)
    drawn = np.random.default_rng(0).integers(0, 12, (30, 12))
    np.testing.assert_allclose(bootstrap_means(x, 30), [np.nanmean(x[rows], 0) for rows in drawn])
    assert np.isnan(bootstrap_means(np.zeros((0, 2)), 3)).all()


# Rankings and raters


def test_kendall_oracle() -> None:
    x = scores(4, 8, seed=9, holes=0.1)
    tau, n = kendall(x)
    for i, j in itertools.product(range(4), repeat=2):
        both = ~np.isnan(x[i]) & ~np.isnan(x[j])
        u, v = x[i, both], x[j, both]
        pairs = list(itertools.combinations(range(len(u)), 2))
        signs = [(np.sign(u[a] - u[b]), np.sign(v[a] - v[b])) for a, b in pairs]
        top = sum(s * t for s, t in signs)
        bottom = math.sqrt(sum(s != 0 for s, _ in signs) * sum(t != 0 for _, t in signs))
        assert tau[i, j] == pytest.approx(top / bottom)
        assert n[i, j] == both.sum()
    assert np.isnan(kendall([[1.0, 1.0], [1.0, 2.0]])[0][0]).all()


def naive_alpha(x: np.ndarray, level: str) -> float:
    """Krippendorff's coincidence matrix, value by value, with his sum for ordinal distances."""
    units = [[v for v in column if not math.isnan(v)] for column in x.T]
    units = [u for u in units if len(u) >= 2]
    values = sorted({v for u in units for v in u})
    matrix = {(c, k): 0.0 for c in values for k in values}
    for u in units:
        for i, c in enumerate(u):
            for j, k in enumerate(u):
                if i != j:
                    matrix[c, k] += 1 / (len(u) - 1)
    count = {c: sum(matrix[c, k] for k in values) for c in values}
    n = sum(count.values())

    def distance(c: float, k: float) -> float:
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        return (sum(count[g] for g in values if low <= g <= high) - (count[c] + count[k]) / 2) ** 2

    observed = sum(matrix[c, k] * distance(c, k) for c in values for k in values)
    expected = sum(count[c] * count[k] * distance(c, k) for c in values for k in values if c != k) / (n - 1)
    return 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_krippendorff_oracle(level: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, size=(1, 9)) + rng.integers(-1, 2, size=(4, 9))
    x = np.where(rng.random((4, 9)) < 0.25, np.nan, x)
    assert krippendorff_alpha(x, level) == pytest.approx(naive_alpha(x, level))  # type: ignore[arg-type]


def test_krippendorff_of_the_published_example() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, missing data."""
    hole = math.nan
    x = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, hole, hole, hole],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, hole, 3],
        [hole, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, hole],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, hole],
    ]
    assert krippendorff_alpha(x, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(x, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(x, "interval") == pytest.approx(0.849, abs=5e-4)


def test_krippendorff_properties() -> None:
    x = scores(6, 9, seed=1)
    assert krippendorff_alpha(np.tile(x[:1], (5, 1)), "interval") == pytest.approx(1)
    assert krippendorff_alpha(x * 1e6 + 1e9, "interval") == pytest.approx(krippendorff_alpha(x, "interval"), abs=1e-6)
    assert krippendorff_alpha(np.exp(x)) == pytest.approx(krippendorff_alpha(x))  # order alone
    noise = np.random.default_rng(0).normal(size=(50, 40))
    assert abs(krippendorff_alpha(noise)) < 0.02
    assert math.isnan(krippendorff_alpha(np.ones((3, 4))))
    assert math.isnan(krippendorff_alpha(np.zeros((1, 4))))
    assert math.isnan(krippendorff_alpha(np.zeros((0, 0))))
