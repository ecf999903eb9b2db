"""How far a group is set apart, by plain sorting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from xattn.audit.sign import set_apart


def group(kind: str, values: Any, least: float) -> Any:
    """A group that finds these similarities in images."""
    return SimpleNamespace(kind=kind, least=least, similarity=lambda _: (values, np.zeros(len(values), np.int64)))


def decile(values: list[float], share: float) -> float:
    """A quantile between the two values that are next to it."""
    ordered, at = sorted(values), share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("kind", ["pattern", "overlay", "tone", "parts"])
def test_a_mark_is_set_apart_and_what_comes_in_all_degrees_is_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    finding = np.arange(400) % 2 == 0
    for marked, wanted in ((True, True), (False, False)):
        values = rng.normal(size=400) / 8
        values[:100] += marked
        least = 0.5 if marked else float(np.quantile(values, 0.75))
        sign = set_apart(None, group(kind, values, least), finding, 0)  # type: ignore[arg-type]
        tested = values[~finding].tolist()
        above, below = [v for v in tested if v >= least], [v for v in tested if v < least]
        value = decile(above, 0.1) - decile(below, 0.9)
        if kind != "parts":
            p = len(above) / len(tested)
            ends = norm.ppf(1 - 0.9 * p) - norm.ppf(0.9 * (1 - p))
            value -= ends / (norm.ppf(1 - p / 2) - norm.ppf((1 - p) / 2))
        assert sign.value == pytest.approx(value)
        assert sign.low <= sign.value <= sign.high
        assert sign.n == len(above)
        assert sign.speaks == wanted


def test_a_place_is_not_set_apart() -> None:
    sign = set_apart(None, group("place", np.arange(10.0), 5), np.arange(10) % 2 == 0, 0)  # type: ignore[arg-type]
    assert not sign.speaks
    assert np.isnan(sign.value)
