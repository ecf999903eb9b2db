"""How far a group is set apart, by plain sorting, and what makes a candidate."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from xattn.audit.effect import NOTHING
from xattn.audit.finding import is_candidate
from xattn.audit.sign import APART, CARRIES, OFF, PLACE, SOURCES, Sign, set_apart


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


@pytest.mark.parametrize(("name", "wanted"), [(APART, 1), (PLACE, 1), (SOURCES, 1), (OFF, 0), (CARRIES, 0)])
def test_a_candidate_moves_the_score_changes_a_prediction_and_has_a_sign(name: str, wanted: int) -> None:
    moving, spoken = replace(NOTHING, moves=True), Sign(name, 1, 1, 1, np.nan, 9, speaks=True, text="")
    assert is_candidate(moving, [spoken], 0.01) == bool(wanted)
    assert not is_candidate(moving, [spoken], 0.0)
    assert not is_candidate(NOTHING, [spoken], 0.01)
    assert not is_candidate(moving, [replace(spoken, speaks=False)], 0.01)
