"""Evidence that may be looked at after every image: e-values by betting, corrected for their number, and intervals.

A bettor who stakes on a difference and cannot win on average if there is none has grown rich by luck with probability
1 / e at most (Ville's inequality), however often the wealth e was looked at and whenever the game was stopped. So a
comparison may end the moment that it is decided, which a p-value does not allow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xattn.errors import ParameterError
from xattn.functional.statistics import ALPHA, Array

STAKES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8)
"""Shares of the wealth that are staked, each by one of several bettors with the same start: what they own on average
is an e-value too, and none has to know beforehand how large the difference is."""

_LARGEST = 600.0  # natural logarithm of the largest wealth that is told apart


def log_growth(gain: ArrayLike) -> Array:
    """Growth of the logarithm of each bettor's wealth by one bet.

    The wealth of a bettor is multiplied by 1 + stake * gain (Waudby-Smith and Ramdas 2024, JRSS B 86,
    arXiv:2010.09686, with constant stakes, whose mean over bettors is a mixture).

    Args:
        gain: -1 at least, with a mean of 0 at most where the hypothesis is true; NaN is no bet.

    Returns:
        Of the same shape with the bettors behind.

    >>> log_growth([0.0, 1.0]).round(2).tolist()[0]
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    x = np.nan_to_num(np.asarray(gain, np.float64))
    if x.size and float(x.min()) < -1 - 1e-9:
        raise ParameterError(f"log_growth: no bet loses more than its stake, but a gain is {float(x.min()):.4g}.")
    return np.log1p(np.asarray(STAKES) * x[..., None])


def wealth(logs: Array) -> Array:
    """The e-value: the mean over bettors of their wealth, from its logarithms (..., bettors)."""
    return np.exp(np.minimum(logs, _LARGEST)).mean(-1)


def adjusted(e: ArrayLike) -> Array:
    """E-values corrected for their number, so that the probability of any false discovery is bounded.

    The closure of the arithmetic mean, for e-values what Holm's correction is for p-values (Vovk and Wang 2021, Annals
    of Statistics 49, arXiv:1912.06116, algorithm 1): the corrected value of one is the smallest mean of any set that it
    is in. They may depend on each other in any way. Where each grows with the images, the bound of `reached` holds at
    all times together: the mean of those whose hypothesis is true is an e-value at every time, too.

    Args:
        e: any shape; NaN are no hypotheses: they stay, and do not count.

    >>> adjusted([100.0, 1.0, 0.0]).round(2).tolist()
    [33.67, 0.5, 0.0]
    """
    given = np.asarray(e, np.float64)
    result = np.full(given.shape, np.nan)
    there = np.flatnonzero(~np.isnan(given))
    x = given.flat[there]
    order = np.argsort(x, kind="stable")
    # With the smallest others: the mean falls as long as one that is smaller than it is added.
    below = np.concatenate([[0.0], np.cumsum(x[order])[:-1]]) if len(x) else x
    counts = np.arange(1, len(x) + 1)
    for rank, place in enumerate(order):
        means = (x[place] + below[: rank + 1]) / counts[: rank + 1]
        result.flat[there[place]] = means.min()
    return result


def reached(e: Array, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Which e-values are large enough to say that their hypothesis is false, with an error of at most `alpha`."""
    with np.errstate(invalid="ignore"):
        large: NDArray[np.bool_] = e >= 1 / alpha
    return large


def confidence_sequence(x: ArrayLike, alpha: float = ALPHA, *, points: int = 401) -> tuple[float, float]:
    """An interval for a mean that is right at all times together, with an error of at most `alpha`.

    It holds the means against which neither bet has won: that on a larger and that on a smaller mean (Waudby-Smith and
    Ramdas 2024, JRSS B 86, arXiv:2010.09686, section 4). Empty, which only chance makes it, it is the sample mean.

    Args:
        x: values (n,) in [-1, 1]; NaN are left out.
        alpha: share of false intervals.
        points: candidates between -1 and 1; the ends are rounded outwards to one.

    >>> confidence_sequence([0.5] * 200)[0] > 0.4
    True
    """
    values = np.asarray(x, np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values):
        return -1.0, 1.0
    means = np.linspace(-1, 1, points)[1:-1]
    above = log_growth((values[:, None] - means) / (1 + means)).sum(0)
    under = log_growth((means - values[:, None]) / (1 - means)).sum(0)
    kept = np.flatnonzero((wealth(above) + wealth(under)) / 2 < 1 / alpha)
    if not len(kept):
        return float(values.mean()), float(values.mean())
    step = 2 / (points - 1)
    return max(-1.0, float(means[kept[0]]) - step), min(1.0, float(means[kept[-1]]) + step)
