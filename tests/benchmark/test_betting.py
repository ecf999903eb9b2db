"""Evidence by betting: against naive loops, by hand, and in simulations that are looked at after every image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.benchmark.betting import STAKES, adjusted, confidence_sequence, log_growth, reached, wealth
from xattn.errors import ParameterError


def naive_wealth(gains: list[float]) -> float:
    """The mean over bettors of what each owns after all bets, in a plain loop."""
    owned = []
    for stake in STAKES:
        money = 1.0
        for gain in gains:
            money *= 1 + stake * gain
        owned.append(money)
    return sum(owned) / len(owned)


def naive_adjusted(e: list[float]) -> list[float]:
    """The smallest mean over every set of hypotheses that holds one, by listing all sets (Vovk and Wang 2021)."""
    best = [math.inf] * len(e)
    for size in range(1, len(e) + 1):
        for some in itertools.combinations(range(len(e)), size):
            mean = sum(e[i] for i in some) / size
            for i in some:
                best[i] = min(best[i], mean)
    return best


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_the_wealth_is_that_of_a_naive_loop(gains: list[float]) -> None:
    assert float(wealth(log_growth(gains).sum(0))) == pytest.approx(naive_wealth(gains), rel=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=7))
def test_the_correction_is_the_closure_over_all_sets(e: list[float]) -> None:
    np.testing.assert_allclose(adjusted(e), naive_adjusted(e), rtol=1e-9, atol=1e-9)


def test_one_that_is_no_hypothesis_does_not_count() -> None:
    np.testing.assert_array_equal(adjusted([30.0, math.nan]), [30.0, math.nan])


def test_a_bet_on_nothing_leaves_the_wealth_and_one_that_loses_more_than_the_stake_is_refused() -> None:
    assert float(wealth(log_growth([0.0, math.nan]).sum(0))) == 1
    with pytest.raises(ParameterError, match=r"no bet loses more than its stake, but a gain is -1\.5"):
        log_growth([-1.5])


@pytest.mark.parametrize("kind", ["coin", "skewed", "narrow"])
def test_wealth_is_rarely_large_at_any_time_if_there_is_no_difference(kind: str) -> None:
    """Ville's inequality, looked at after each of 300 images, for differences of mean 0 of several shapes."""
    rng = np.random.default_rng(0)
    races, images, alpha = 2000, 300, 0.05
    if kind == "coin":
        x = rng.choice([-1.0, 1.0], (races, images))
    elif kind == "skewed":  # rare large losses, which a test of ranks would take for a difference
        x = np.where(rng.uniform(size=(races, images)) < 0.1, -0.9, 0.1)
    else:
        x = np.clip(rng.normal(0, 0.2, (races, images)), -1, 1)
    most = np.zeros(races)
    logs = np.zeros((races, len(STAKES)))
    for i in range(images):
        logs += log_growth(x[:, i])
        most = np.maximum(most, wealth(logs))
    assert reached(most, alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / races)


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    x = np.clip(rng.normal(0.3, 0.4, (200, 150)), -1, 1)
    assert reached(wealth(log_growth(x).sum(1)), 0.001).mean() > 0.95


def test_intervals_hold_the_mean_at_all_times() -> None:
    rng = np.random.default_rng(2)
    races, alpha, true = 200, 0.05, 0.2
    missed = 0
    for _ in range(races):
        x = rng.choice([-0.8, 0.45], size=120, p=[0.2, 0.8])
        ends = [confidence_sequence(x[:n], alpha, points=101) for n in (5, 10, 20, 40, 80, 120)]
        missed += any(not low <= true <= high for low, high in ends)
    assert missed / races <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / races)


def test_an_interval_is_that_of_a_naive_search_and_narrows() -> None:
    x = np.random.default_rng(3).uniform(-0.2, 0.6, 60)
    kept = [
        m
        for m in np.linspace(-1, 1, 401)[1:-1].tolist()
        if (naive_wealth([(v - m) / (1 + m) for v in x]) + naive_wealth([(m - v) / (1 - m) for v in x])) / 2 < 20
    ]
    low, high = confidence_sequence(x)
    assert (low, high) == pytest.approx((kept[0] - 0.005, kept[-1] + 0.005))
    wide = confidence_sequence(x[:10])
    assert wide[1] - wide[0] > high - low
    assert confidence_sequence([]) == (-1, 1)
