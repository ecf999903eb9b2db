"""Statistics of tables: naive loops, scipy and published examples as witnesses."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.functional.test_statistics import naive_alpha, naive_holm, scores
from xattn.benchmark import statistics
from xattn.benchmark.equivalence import compare
from xattn.benchmark.statistics import (
    _alphas,
    against_best,
    critical_difference,
    friedman,
    intervals,
    pairwise,
    pooled_intervals,
    reliability,
    wilcoxon,
)
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.functional.statistics import (
    bootstrap_means,
    exact_signed_rank,
    krippendorff_alpha,
    ranks_of_methods,
)
from xattn.metrics import metrics


@pytest.mark.parametrize(("kind", "theirs"), [("bca", "BCa"), ("percentile", "percentile")])
def test_intervals_beside_scipy(kind: str, theirs: str) -> None:
    x = np.random.default_rng(3).exponential(size=60)  # skewed, so that the correction matters
    got = intervals(x, kind=kind, resamples=20_000)  # type: ignore[arg-type]
    expected = stats.bootstrap(
        (x,), np.mean, method=theirs, n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    width = expected.high - expected.low
    assert got.low[0] == pytest.approx(expected.low, abs=0.02 * width)
    assert got.high[0] == pytest.approx(expected.high, abs=0.02 * width)
    assert got.mean[0] == pytest.approx(x.mean())
    if kind == "bca":
        plain = intervals(x, kind="percentile", resamples=20_000)
        assert got.high[0] > plain.high[0] + 0.02 * width


def test_bca_oracle() -> None:
    """The formula written out, with a jackknife that leaves out one value after the other."""
    x = np.random.default_rng(4).exponential(size=25)
    drawn = bootstrap_means(x[:, None], 3000, 0)[:, 0]
    normal = stats.norm()
    z0 = normal.ppf((drawn < x.mean()).mean())
    jack = np.array([np.delete(x, i).mean() for i in range(25)])
    off = jack.mean() - jack
    a = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    places = [normal.cdf(z0 + (z0 + normal.ppf(t)) / (1 - a * (z0 + normal.ppf(t)))) for t in (0.05, 0.95)]
    got = intervals(x, level=0.9, resamples=3000)
    np.testing.assert_allclose([got.low[0], got.high[0]], np.quantile(drawn, places), rtol=1e-9)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(80, 400))  # 400 experiments of 80 images
    got = intervals(x, level=0.9, resamples=1000)
    covered = ((got.low <= 1) & (got.high >= 1)).mean()
    assert abs(covered - 0.9) < 0.05


def test_intervals_count_what_is_missing() -> None:
    x = np.array([[1.0, np.nan, 2.0, np.nan], [3.0, np.nan, 2.0, 5.0], [4.0, np.nan, 2.0, np.nan]])
    got = intervals(x, resamples=200)
    assert got.n.tolist() == [3, 0, 3, 1]
    assert got.missing.tolist() == [0, 3, 0, 2]
    np.testing.assert_allclose(got.mean, [8 / 3, np.nan, 2, 5])
    np.testing.assert_allclose(got.low[1:], [np.nan, 2, 5])  # no width without variation
    np.testing.assert_allclose(got.high[1:], [np.nan, 2, 5])
    assert got.low[0] < got.mean[0] < got.high[0]
    empty = intervals(np.zeros((0, 2)), resamples=10)
    assert np.isnan(empty.mean).all()
    assert empty.n.tolist() == [0, 0]


# Tests between methods


def test_against_best_beside_scipy() -> None:
    x = scores(60, 4, seed=2)
    x[:, 1] = x[:, 3]  # an equal of the best
    got = against_best(x, resamples=500)
    best = int(x.mean(0).argmax())
    assert got.best == best
    raw = {m: stats.wilcoxon(x[:, m], x[:, best], zero_method="pratt").pvalue for m in range(4) if m not in (1, 3)}
    for m, p in raw.items():
        assert got.p[m] == pytest.approx(p)
        assert got.difference[m] == pytest.approx((x[:, m] - x[:, best]).mean())
        assert got.low[m] < got.difference[m] < got.high[m]
    equal = 4 - best  # the other one of methods 1 and 3
    assert np.isnan(got.p[best])
    assert (got.p[equal], got.adjusted[equal], got.difference[equal]) == (1.0, 1.0, 0.0)
    tests = [m for m in range(4) if m != best]
    np.testing.assert_allclose(got.adjusted[tests], naive_holm(list(got.p[tests])))
    assert against_best(-x, higher=False, resamples=10).best == best


def test_against_best_uses_shared_images_and_counts_them() -> None:
    x = scores(50, 3, seed=3, holes=0.2)
    got = against_best(x, resamples=100)
    for m in range(3):
        both = ~np.isnan(x[:, m]) & ~np.isnan(x[:, got.best])
        assert got.n[m] == both.sum()
        if m != got.best:
            expected = stats.wilcoxon(x[both, m], x[both, got.best], zero_method="pratt").pvalue
            assert got.p[m] == pytest.approx(expected)
    x[:, 0] = np.nan
    empty = against_best(x, resamples=100)
    assert np.isnan([empty.p[0], empty.adjusted[0], empty.difference[0]]).all()
    assert empty.n[0] == 0
    with pytest.raises(DataError, match="no method has a value"):
        against_best(np.full((3, 2), np.nan))


def test_wilcoxon_oracle() -> None:
    """Six images without ties: the exact test counts all 64 signs."""
    d = np.array([0.3, -0.1, 0.8, 0.5, -0.2, 1.3])
    x = np.stack([d, np.zeros(6)], 1)
    rank = stats.rankdata(np.abs(d))
    observed = abs((np.sign(d) * rank).sum())
    all_signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    expected = (np.abs(all_signs @ rank) >= observed).mean()
    assert pairwise(x, correct=False).p[0, 1] == pytest.approx(expected)


@pytest.mark.parametrize("holes", [0.0, 0.15])
def test_welch_matrix_beside_scipy(holes: float) -> None:
    x = scores(30, 4, seed=5, holes=holes)
    got = pairwise(x, test="welch", correct=False)
    for i, j in itertools.permutations(range(4), 2):
        expected = stats.ttest_ind(x[:, i], x[:, j], equal_var=False, nan_policy="omit").pvalue
        assert got.p[i, j] == pytest.approx(expected)
        assert got.difference[i, j] == pytest.approx(np.nanmean(x[:, i]) - np.nanmean(x[:, j]))
    assert np.isnan(np.diag(got.p)).all()
    np.testing.assert_array_equal(got.p, got.adjusted)


def test_welch_of_values_without_variation() -> None:
    x = np.array([[1.0, 1.0, 2.0]] * 5)
    p = pairwise(x, test="welch").p
    assert (p[0, 1], p[0, 2]) == (1.0, 0.0)
    assert np.isnan(pairwise(x[:1], test="welch").p).all()  # one image has no variance


def test_pairwise_wilcoxon() -> None:
    x = scores(40, 4, seed=6, holes=0.1)
    got = pairwise(x)
    pairs = list(itertools.combinations(range(4), 2))
    for i, j in pairs:
        both = ~np.isnan(x[:, [i, j]]).any(1)
        assert got.n[i, j] == both.sum()
        assert got.p[i, j] == got.p[j, i] == stats.wilcoxon(x[both, i] - x[both, j], zero_method="pratt").pvalue
        assert got.difference[i, j] == pytest.approx((x[both, i] - x[both, j]).mean())
        assert got.difference[i, j] == -got.difference[j, i]
    np.testing.assert_allclose([got.adjusted[p] for p in pairs], naive_holm([got.p[p] for p in pairs]))
    np.testing.assert_array_equal(got.adjusted, got.adjusted.T)


def test_the_paired_test_sees_what_the_unpaired_one_misses() -> None:
    """Images differ far more than methods: the reason for the default."""
    rng = np.random.default_rng(0)
    image = rng.normal(0, 10, size=(100, 1))
    x = image + np.array([0.0, 0.5]) + rng.normal(0, 0.2, size=(100, 2))
    assert pairwise(x).p[0, 1] < 1e-6
    assert pairwise(x, test="welch").p[0, 1] > 0.5


def test_no_false_alarms_under_the_null() -> None:
    """Equal methods: Holm's correction finds any difference in at most 5 % of experiments."""
    rng = np.random.default_rng(1)
    false = sum((np.nan_to_num(pairwise(rng.normal(size=(25, 3))).adjusted, nan=1) < 0.05).any() for _ in range(200))
    assert false / 200 < 0.09


# Friedman and Nemenyi


def test_friedman_beside_scipy() -> None:
    x = scores(30, 5, seed=7)
    got = friedman(x)
    expected = stats.friedmanchisquare(*x.T)
    assert got.statistic == pytest.approx(expected.statistic)
    assert got.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(got.mean_ranks, stats.rankdata(-x, axis=1).mean(0))
    assert (got.n, got.missing) == (30, 0)
    np.testing.assert_allclose(friedman(-x, higher=False).mean_ranks, got.mean_ranks)


def test_friedman_leaves_out_incomplete_images_and_counts_them() -> None:
    x = scores(30, 3, seed=8, holes=0.1)
    whole = ~np.isnan(x).any(1)
    got = friedman(x)
    assert (got.n, got.missing) == (whole.sum(), 30 - whole.sum())
    assert got.statistic == pytest.approx(stats.friedmanchisquare(*x[whole].T).statistic)
    equal = friedman(np.ones((4, 3)))
    assert (equal.statistic, equal.p) == (0.0, 1.0)
    one = friedman(x[whole][:1])
    assert math.isnan(one.p)
    assert one.n == 1
    assert np.isnan(friedman(np.full((2, 3), np.nan)).mean_ranks).all()


def test_critical_difference_of_the_paper() -> None:
    """Table 5 of Demšar 2006: q at 0.05 and 0.10 for the two-tailed Nemenyi test."""
    table = {2: (1.960, 1.645), 3: (2.343, 2.052), 4: (2.569, 2.291), 5: (2.728, 2.459), 10: (3.164, 2.920)}
    for methods, (q05, q10) in table.items():
        scale = math.sqrt(methods * (methods + 1) / (6 * 100))
        assert critical_difference(methods, 100) == pytest.approx(q05 * scale, abs=1e-3 * scale)
        assert critical_difference(methods, 100, 0.10) == pytest.approx(q10 * scale, abs=1e-3 * scale)


def nemenyi(mean_ranks: object, images: int) -> np.ndarray:
    """P values (M, M) of the Nemenyi test between mean ranks (M,); NaN on the diagonal (Nemenyi 1963)."""
    ranks = np.asarray(mean_ranks)
    m = len(ranks)
    q = np.abs(ranks[:, None] - ranks) / math.sqrt(m * (m + 1) / (6 * images)) * math.sqrt(2)
    p = np.full((m, m), np.nan)
    upper = np.triu_indices(m, 1)
    p[upper] = stats.studentized_range.sf(q[upper], m, np.inf)
    p.T[upper] = p[upper]
    return p


def test_nemenyi_agrees_with_the_critical_difference() -> None:
    ranks = np.array([1.0, 2.0, 3.2, 3.8])
    p = nemenyi(ranks, 14)
    cd = critical_difference(4, 14)
    for i, j in itertools.combinations(range(4), 2):
        assert (p[i, j] < 0.05) == (abs(ranks[i] - ranks[j]) > cd)
        assert p[i, j] == p[j, i]
    at = nemenyi([1.0, 1.0 + critical_difference(2, 14)], 14)[0, 1]
    assert at == pytest.approx(0.05, abs=1e-6)


def test_groups() -> None:
    x = np.tile([3.0, 2.9, 1.0], (200, 1)) + np.random.default_rng(0).normal(0, 0.5, (200, 3))
    assert friedman(x).groups() == [(0, 1)] or friedman(x).groups() == [(1, 0)]


def test_reliability_of_a_metric() -> None:
    clear = reliability(np.arange(5.0) + np.random.default_rng(0).normal(0, 0.4, (80, 5)), resamples=100)
    noise = reliability(np.random.default_rng(0).normal(size=(80, 5)), resamples=100)
    assert clear.alpha > 0.9
    assert clear.low < clear.alpha < clear.high
    assert abs(noise.alpha) < 0.1
    assert noise.low < 0.05
    x = scores(40, 4, seed=3, holes=0.1)
    whole = x[~np.isnan(x).any(1)]
    got = reliability(x, resamples=20)
    assert got.n == len(whole)
    assert got.alpha == pytest.approx(naive_alpha(ranks_of_methods(whole), "ordinal"))
    difficult = whole + 100 * np.arange(len(whole))[:, None]
    assert reliability(difficult, resamples=20).alpha == pytest.approx(got.alpha)
    again = reliability(x, resamples=20)
    assert (got.low, got.high) == (again.low, again.high)
    assert math.isnan(reliability(x[:1], resamples=5).low)


def test_pooled_intervals_of_a_score_of_the_whole_data_set() -> None:
    rng = np.random.default_rng(0)
    metric = metrics.create("max_box_accuracy")
    curves = {name: rng.uniform(0, 0.5 + i / 40, 150) for i, name in enumerate(metric.columns)}
    got = pooled_intervals(metric.pool, curves, resamples=200)
    whole = metric.pool({name: torch.from_numpy(v) for name, v in curves.items()})
    for name in metric.pooled:
        value, low, high = got[name]
        assert value == whole[name]
        assert low <= value <= high + 1e-9 or name == "max_box_acc_70"
        assert 0 < high - low < 0.3
    assert got == pooled_intervals(metric.pool, curves, resamples=200)
    one = pooled_intervals(metric.pool, {name: v[:1] for name, v in curves.items()})
    assert math.isnan(one["max_box_acc_v2"][1])


def test_wrong_input_is_refused() -> None:
    x = scores(5, 3)
    for parameters in ({"level": 1.0}, {"kind": "normal"}, {"resamples": 0}):
        with pytest.raises(ParameterError, match="intervals"):
            intervals(x, **parameters)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="wilcoxon or welch"):
        pairwise(x, test="student")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="level must be"):
        krippendorff_alpha(x, "ratio")  # type: ignore[arg-type]
    for arguments in ((1, 5, 0.05), (3, 0, 0.05), (3, 5, 1.0)):
        with pytest.raises(ParameterError, match="critical_difference"):
            critical_difference(*arguments)
    with pytest.raises(ShapeError, match="expected a table"):
        friedman(x[0])


@pytest.mark.parametrize("ties", [False, True])
def test_reliability_of_all_resamples_at_once_is_that_of_each(ties: bool) -> None:
    x = scores(25, 5, seed=3)
    x = np.round(x) if ties else x
    ranks = ranks_of_methods(x)
    weights = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), size=30).astype(float)
    expected = [krippendorff_alpha(np.repeat(ranks, w.astype(int), axis=0)) for w in weights]
    np.testing.assert_allclose(_alphas(ranks, weights), expected, rtol=1e-9)
    got = reliability(x, resamples=300, interval=0.9)
    assert got.alpha == pytest.approx(krippendorff_alpha(ranks))
    assert got.low < got.alpha < got.high


def test_wilcoxon_of_many_pairs_is_that_of_each() -> None:
    d = np.random.default_rng(0).normal(0.2, 1, (30, 6))  # few enough images for the exact test
    d[:4, 1] = 0  # which zeros rule out
    d[3, 2] = np.nan
    d[:, 3] = 0
    d[:, 4] = np.nan
    got = wilcoxon(d)
    for t in (0, 1, 2, 5):
        own = d[~np.isnan(d[:, t]), t]
        assert got[t] == stats.wilcoxon(own, zero_method="pratt").pvalue
    assert got[3] == 1
    assert np.isnan(got[4])


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8).filter(any))
@settings(deadline=None, max_examples=60)
def test_signed_ranks_with_ties_beside_permutations(d: list[int]) -> None:
    """SciPy counts the same signs, one after the other."""
    x = np.array(d, float)
    every = stats.PermutationMethod(n_resamples=2 ** len(d))
    expected = stats.wilcoxon(x, zero_method="pratt", method=every).pvalue
    assert exact_signed_rank(x) == pytest.approx(expected)
    assert wilcoxon(x[:, None])[0] == pytest.approx(expected)


def test_each_pair_is_tested_as_if_it_were_alone_and_at_once() -> None:
    """Ties in one column change nothing in the others; twelve images with ties took minutes."""
    rng = np.random.default_rng(0)
    d = np.concatenate([rng.normal(size=(12, 30)), rng.integers(-2, 3, (12, 900))], axis=1)
    start = time.perf_counter()
    got = wilcoxon(d)
    assert time.perf_counter() - start < 5
    for t in (0, 7):
        assert got[t] == stats.wilcoxon(d[:, t], method="exact").pvalue


def test_groups_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(60, 7)).round(1)
    x[::9, 2] = np.nan
    before = pairwise(x), reliability(x, resamples=40), compare([x], 0.1)
    monkeypatch.setattr(statistics, "_CHUNK", 150)
    after = pairwise(x), reliability(x, resamples=40), compare([x], 0.1)
    np.testing.assert_array_equal(before[0].adjusted, after[0].adjusted)
    np.testing.assert_array_equal(before[0].difference, after[0].difference)
    assert astuple(before[1]) == astuple(after[1])
    np.testing.assert_array_equal(before[2].worse, after[2].worse)
    np.testing.assert_array_equal(before[2].same, after[2].same)
