"""Pictures that repeat: each formula against plain loops, and planted ones among noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from xattn.audit.pattern import (
    PATCH,
    SIDE,
    answers,
    cells_of_pattern,
    cut,
    edges,
    find_overlays,
    find_patterns,
    find_tones,
    line,
    patches,
    place_of_overlay,
    side_of,
    usual_gap,
)  # fmt: skip

ROWS = 12


def smooth(count: int, seed: int) -> NDArray[np.float32]:
    """Images (n, 3, 12, 12) of smooth noise, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 3, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
    return np.asarray(0.8 * coarse + 0.2 * rng.random((count, 3, ROWS, ROWS)), np.float32)


def test_patches_edges_and_answers_are_those_of_loops() -> None:
    small = smooth(2, 0)
    centre = np.random.default_rng(1).normal(size=3 * PATCH**2)
    found, answer, differences = patches(small), answers(small, centre), edges(small)
    wide = ROWS - PATCH + 1
    for n in range(2):
        for row in range(wide):
            for column in range(wide):
                patch = [
                    float(small[n, c, row + i, column + j])
                    for c in range(3)
                    for i in range(PATCH)
                    for j in range(PATCH)
                ]
                assert found[n, row * wide + column].tolist() == patch
                total = sum(p * w for p, w in zip(patch, centre.tolist(), strict=True))
                assert answer[n, row * wide + column] == pytest.approx(total, abs=1e-4)
        down, across = differences[n].reshape(2, 3, ROWS, ROWS)
        for c in range(3):
            for i in range(ROWS):
                for j in range(ROWS):
                    assert down[c, i, j] == (small[n, c, i, j] - small[n, c, i - 1, j] if i else 0)
                    assert across[c, i, j] == (small[n, c, i, j] - small[n, c, i, j - 1] if j else 0)


@given(st.lists(st.integers(-20, 20), min_size=4, max_size=24), st.integers(1, 4))
def test_the_cut_is_the_best_of_all(values: list[int], smallest: int) -> None:
    best = None
    ordered = sorted(map(float, values), reverse=True)
    for count in range(smallest, len(ordered) - smallest + 1):
        if count > 0.9 * len(ordered):
            break
        above, below = ordered[:count], ordered[count:]
        low, high = above[count - 1 - (count - 1) // 10], below[(len(below) - 1) // 10]
        middles = above[count // 2], below[len(below) // 2]
        if middles[0] > middles[1]:
            gap = (low - high) / (middles[0] - middles[1])
            if best is None or gap > best[3]:
                best = ((low + high) / 2, *middles, gap)
    assert cut(np.array(values, np.float64), smallest) == best


def test_two_groups_lie_apart_and_one_does_not() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=400), np.concatenate([rng.normal(size=300), 12 + rng.normal(size=100)])
    found = cut(one, 20), cut(two, 20)
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][3] < 0.4
    assert found[1][3] > 0.7
    assert line(np.ones(1), rng.uniform(size=400), 20) is None
    direction = line(np.array([2.0]), two, 20)
    assert direction is not None
    scaled = two * direction.centre[0] / 2 - direction.offset
    member = scaled >= direction.least
    assert member.sum() == 100
    assert np.sort(scaled[member])[50] == pytest.approx(1, abs=0.1)
    assert np.sort(scaled[~member])[150] == pytest.approx(0, abs=0.1)


def test_cells_of_a_pattern_are_those_under_its_patches() -> None:
    small = smooth(3, 2)
    centre = np.random.default_rng(3).normal(size=3 * PATCH**2)
    wide, side = ROWS - PATCH + 1, ROWS // 2
    for area, quantile in ((1.0, 0.9), (0.2, 0.5), (1.0, 2.0)):
        answer = answers(small, centre).reshape(3, wide, wide)
        least = float(np.quantile(answer, quantile)) if quantile <= 1 else float(answer.max()) + 1
        found = cells_of_pattern(small, centre, 0.5, least - 0.5, area)
        for n in range(3):
            level = np.full((side, side), -np.inf)
            for row in range(wide):
                for column in range(wide):
                    under = np.ix_(
                        sorted({(row + i) // 2 for i in range(PATCH)}),
                        sorted({(column + j) // 2 for j in range(PATCH)}),
                    )
                    level[under] = np.maximum(level[under], answer[n, row, column])
            want = (level >= (least + level.max()) / 2) | (level >= level.max())
            if area == 1:
                assert (found[n] == want).all()
            else:
                assert found[n].sum() <= max(int(area * side**2), (level >= level.max()).sum())
                assert (found[n] <= want).all()


def test_the_place_of_an_overlay_is_where_means_differ() -> None:
    members, rest = smooth(20, 4), smooth(30, 5)
    members[:, 0, 2:4, 6:8] = 1.0
    place = place_of_overlay(members, rest)
    want = np.zeros((6, 6))
    for c in range(3):
        for i in range(ROWS):
            for j in range(ROWS):
                a, b = members[:, c, i, j].astype(np.float64), rest[:, c, i, j].astype(np.float64)
                error = a.var() / 20 + b.var() / 30 + 1e-6
                want[i // 2, j // 2] += (a.mean() - b.mean()) ** 2 / error
    assert np.allclose(place, want / want.sum(), rtol=1e-6)
    assert np.unravel_index(place.argmax(), place.shape) == (1, 3)


def planted(count: int, share: int, seed: int, *, moving: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Noise, in the first images of it a checked square, half as strong as it could be."""
    small, rng = smooth(count, seed), np.random.default_rng(seed)
    square = np.indices((4, 4)).sum(0) % 2
    for n in range(share):
        row, column = rng.integers(0, ROWS - 4, 2) if moving else (7, 1)
        part = small[n, :, row : row + 4, column : column + 4]
        small[n, :, row : row + 4, column : column + 4] = 0.5 * part + 0.5 * square
    return small, np.arange(count) < share


def test_a_pattern_is_found_wherever_it_is() -> None:
    small, marked = planted(60, 20, 6, moving=True)
    found = find_patterns(small, smooth(60, 7), 5, 0)
    assert found
    best = found[0]
    member = answers(small, best.centre).max(1) - best.offset >= best.least
    assert (member == marked).mean() > 0.95
    assert [f.strength for f in found] == sorted((f.strength for f in found), reverse=True)
    assert find_patterns(small, smooth(10, 7), 5, 0) == []  # too few to tell what others have


def test_an_overlay_is_found_at_its_place() -> None:
    small, marked = planted(60, 20, 8, moving=False)
    found = find_overlays(small, smooth(60, 9), 5)[0]
    member = edges(small) @ found.centre - found.offset >= found.least
    assert (member == marked).all()
    by_chance = find_overlays(smooth(60, 10), smooth(60, 11), 5)
    assert all(one.strength < found.strength / 2 for one in by_chance)
    assert find_overlays(small, smooth(5, 9), 5) == []


def test_an_overlay_on_few_images_is_found_by_what_makes_them_alike() -> None:
    small, marked = planted(120, 8, 8, moving=False)
    theirs = smooth(120, 9)
    mean = edges(small).mean(0) - edges(theirs).mean(0)
    error = np.sqrt(edges(small).var(0) / 120 + edges(theirs).var(0) / 120)
    assert (np.abs(mean) > 4 * error).sum() < 5  # all images together hardly show it
    found = find_overlays(small, theirs, 5)[0]
    member = edges(small) @ found.centre - found.offset >= found.least
    assert (member == marked).all()


def test_of_two_gaps_alike_the_one_between_more_images_is_stronger() -> None:
    rng = np.random.default_rng(5)
    many = np.concatenate([rng.normal(size=60), 12 + rng.normal(size=60)])
    few = np.concatenate([rng.normal(size=114), 12 + rng.normal(size=6)])
    lines = [line(np.ones(1), values, 5) for values in (many, few)]
    gaps = [cut(values, 5) for values in (many, few)]
    for one, found, values, count in zip(lines, gaps, (many, few), (60, 6), strict=True):
        assert one is not None
        assert found is not None
        assert (values >= found[0]).sum() == count
        assert one.strength == pytest.approx((found[3] - usual_gap(count / 120)) * count**0.5)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_the_usual_gap_is_that_of_a_normal_sample(share: float) -> None:
    values = np.sort(np.random.default_rng(6).normal(size=400_000))[::-1]
    count = round(share * len(values))
    above, below = values[:count], values[count:]
    gap = np.quantile(above, 0.1) - np.quantile(below, 0.9)
    assert usual_gap(share) == pytest.approx(gap / (np.median(above) - np.median(below)), abs=0.01)


def test_a_cast_is_found_by_its_ends() -> None:
    small = smooth(80, 12)
    small[:20, 0] = 0.7 * small[:20, 0] + 0.3
    flat = small.reshape(80, 3, -1)
    tones = np.concatenate([flat.mean(2), flat.std(2), flat.min(2), flat.max(2)], axis=1)
    found = find_tones(tones, 5, 0)
    assert found
    member = tones @ found[0].centre - found[0].offset >= found[0].least
    assert max((member == (np.arange(80) < 20)).mean(), (member != (np.arange(80) < 20)).mean()) > 0.95
    assert find_tones(tones[:15], 5, 0) == []


def test_reduced_images_are_even() -> None:
    assert side_of(224, 160) == (SIDE, SIDE)
    assert side_of(28, 31) == (28, 30)
