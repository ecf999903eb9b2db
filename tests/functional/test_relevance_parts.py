"""Relevance, its parts and their cells against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xattn.errors import ParameterError, ShapeError
from xattn.functional.relevance_parts import (
    leading_cells,
    relevance,
    relevance_parts,
    shifted_elsewhere,
    whole_relevance,
)

N, C, H, W, P = 3, 5, 3, 4, 2


def values(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, N, C, H, W, generator=generator, dtype=torch.float64)
    return relevance(x[0], x[1])


def test_relevance_is_the_positive_part_of_features_times_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    f, g = torch.randn(2, N, C, H, W, generator=generator, dtype=torch.float64)
    found = relevance(f, g)
    for i in np.ndindex(N, C, H, W):
        assert found[i] == max(0.0, float(f[i]) * float(g[i]))


def naive_weights(x: np.ndarray) -> np.ndarray:
    """BR-NPA's part maps (P, H, W) of features (C, H, W): seed, cosine, suppression, as the paper's code has them."""
    eps, cells = 1e-5, [(i, j) for i in range(H) for j in range(W)]
    norm = {c: math.sqrt(sum(v * v for v in x[:, c[0], c[1]])) + eps for c in cells}
    level, maps = dict(norm), np.zeros((P, H, W))
    for p in range(P):
        seed = max(cells, key=lambda c: level[c])
        s = {c: max(0.0, float(x[:, c[0], c[1]] @ x[:, seed[0], seed[1]]) / norm[c] / norm[seed]) for c in cells}
        for c in cells:
            maps[p][c] = s[c] / sum(s.values())
            level[c] *= 1 - s[c]
    return maps


@pytest.mark.parametrize("given_maps", [False, True])
def test_parts_are_those_of_plain_loops(given_maps: bool) -> None:
    x = values()
    attention = torch.rand(N, P, H, W, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vectors, maps, shares = relevance_parts(x, P, attention if given_maps else None)
    for n in range(N):
        weights = attention[n].numpy() if given_maps else naive_weights(x[n].numpy())
        level = x[n].numpy().sum(0)
        for p in range(P):
            under, part, vector = np.zeros((H, W)), 0.0, np.zeros(C)
            for i in range(H):
                for j in range(W):
                    under[i, j] = weights[p, i, j] * level[i, j]
                    if (divided := sum(weights[q, i, j] for q in range(P))) > 0:
                        part += level[i, j] * weights[p, i, j] / divided
                    vector += weights[p, i, j] * x[n, :, i, j].numpy()
            assert np.allclose(maps[n, p], under / under.sum(), atol=1e-9)
            assert float(shares[n, p]) == pytest.approx(part / level.sum())
            assert np.allclose(vectors[n, p], vector)
        whole = level / level.sum()
        assert np.allclose(whole_relevance(x)[n], whole)
    assert bool((shares.sum(1) <= 1 + 1e-9).all())
    if given_maps:  # which lie everywhere
        assert torch.allclose(shares.sum(1), torch.ones(N, dtype=torch.float64))


def test_what_speaks_for_nothing_has_no_parts() -> None:
    vectors, maps, shares = relevance_parts(torch.zeros(1, C, H, W), P)
    assert not vectors.any()
    assert not maps.any()
    assert not shares.any()
    assert not whole_relevance(torch.zeros(1, C, H, W)).any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        relevance(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4))
    with pytest.raises(ShapeError, match="attention is 2x2"):
        relevance_parts(torch.zeros(1, 2, 3, 3), 1, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ParameterError, match="at least one part"):
        relevance_parts(torch.zeros(1, 2, 3, 3), 0)


@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_leading_cells_are_the_fewest_that_hold_the_mass(seed: int, mass: float, area: float) -> None:
    maps = np.random.default_rng(seed).random((2, 3, 4)).round(2)
    cells = leading_cells(torch.from_numpy(maps), mass, area).numpy()
    for one, chosen in zip(maps, cells, strict=True):
        order = sorted(range(12), key=lambda i: (-one.flat[i], i))
        most = max(1, int(area * 12 + 1e-9))
        count, held = 0, 0.0
        while count == 0 or (count < most and held < mass * one.sum() - 1e-12):
            held += one.flat[order[count]]
            count += 1
        assert sorted(np.flatnonzero(chosen)) == sorted(order[:count])


@given(st.integers(0, 10_000))
def test_elsewhere_has_as_many_cells_and_the_least_overlap(seed: int) -> None:
    cells = torch.from_numpy(np.random.default_rng(seed).random((3, 4)) < 0.3)
    moved = shifted_elsewhere(cells, torch.Generator().manual_seed(seed))
    assert int(moved.sum()) == int(cells.sum())
    overlaps = []
    for dy in range(3):
        for dx in range(4):
            there = [((i + dy) % 3, (j + dx) % 4) for i, j in cells.nonzero().tolist()]
            overlaps.append(sum(bool(cells[c]) for c in there))
    assert int((moved & cells).sum()) == min(overlaps)
