"""Single deletion and F-Fidelity against loops in float64 derived from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from tests.given import explained
from tests.oracles.naive_grid import on_grid
from tests.oracles.naive_perturbation import (
    SIZE,
    Array,
    N,
    black,
    check,
    gaussian_blurred,
    pixels_of,
    probability,
    some_maps,
)
from xattn.metrics import metrics
from xattn.trace import Trace


def cell_worth(values: Array, grid: tuple[int, int]) -> list[float]:
    """Mean of the map over each cell, or the map interpolated where it is coarser."""
    return [float(value) for value in on_grid(values, grid, rounded=False).flatten()]


def logit(trace: Trace, image: Array, i: int) -> float:
    with torch.no_grad():
        return float(trace.model(torch.from_numpy(image)[None])[0, int(trace.target[i])])


@pytest.mark.parametrize("shape", [(4, 5), (3, 3), (16, 20)])
def test_idsds_is_the_rank_correlation_of_falls_and_importance(trace: Trace, shape: tuple[int, int]) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        clean = logit(trace, image, i)
        falls = [clean - logit(trace, np.where(pixels_of({k}, (4, 4), SIZE), 0.0, image), i) for k in range(16)]
        return {"idsds": float(scipy.stats.spearmanr(cell_worth(values, (4, 4)), falls).statistic)}

    check(trace, "idsds", some_maps(*shape), oracle)


def test_idsds_with_another_grid_baseline_and_score(trace: Trace) -> None:
    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        blurred = gaussian_blurred(image, 0.08 * 16)
        clean = probability(trace, image, i)
        falls = [
            clean - probability(trace, np.where(pixels_of({k}, (3, 3), SIZE), blurred, image), i) for k in range(9)
        ]
        return {"idsds": float(scipy.stats.spearmanr(cell_worth(values, (3, 3)), falls).statistic)}

    check(trace, "idsds:grid=3,baseline=blur,score=prob", some_maps(6, 7), oracle)


@pytest.mark.parametrize("levels", [None, 3])
def test_f_fidelity(trace: Trace, levels: int | None) -> None:
    """Each of the top (bottom) cells goes with probability min(alpha, beta / s); equal cells in the shared order."""
    sizes, samples, alpha, beta, cells = 3, 4, 0.5, 0.2, 30  # 5 on the shorter side of 16 x 20 pixels

    def oracle(i: int, values: Array, image: Array) -> dict[str, float]:
        worth = cell_worth(values, (5, 6))
        span = max(worth) - min(worth)
        worth = [round((w - min(worth)) / span * 2**20) for w in worth]
        place = torch.randperm(cells, generator=trace.generator(i, f"ties/{cells}")).tolist()
        best = sorted(range(cells), key=lambda c: (-worth[c], place.index(c)))
        drawn = torch.rand(samples, cells, generator=trace.generator(i, repr(("f_fidelity", cells, samples)))).tolist()
        clean, falls = probability(trace, image, i), {"plus": 0.0, "minus": 0.0}
        for name, order in (("plus", best), ("minus", best[::-1])):
            for s in range(1, sizes + 1):
                chosen = order[: math.floor(s / (sizes + 1) * cells + 0.5)]
                chance = min(alpha, beta * cells / len(chosen))
                for row in drawn:
                    gone = {c for c in chosen if row[c] < chance}
                    picture = np.where(pixels_of(gone, (5, 6), SIZE), black(trace, image), image)
                    falls[name] += (clean - probability(trace, picture, i)) / (sizes * samples)
        return {
            "ffid_plus": falls["plus"],
            "ffid_minus": falls["minus"],
            "f_fidelity": falls["plus"] - falls["minus"],
        }

    check(trace, "f_fidelity:grid=5,beta=0.2,sizes=3,samples=4,baseline=black", some_maps(5, 4, levels=levels), oracle)


def test_f_fidelity_removes_no_more_than_its_bound(trace: Trace) -> None:
    """With beta of all, a removed share of alpha times s; with a small one, beta of the image whatever the size."""
    metric = metrics.create("f_fidelity", grid=8, samples=400, sizes=3, beta=0.1)
    draws = metric.draws(trace, 64)
    assert draws.shape == (N, 400, 64)
    assert metric.numbers(64).tolist() == [16, 32, 48]
    for number in (16, 32, 48):
        gone = (draws[:, :, :number] < min(0.5, 0.1 * 64 / number)).double().sum(2) / 64
        assert gone.mean().item() == pytest.approx(min(0.5 * number / 64, 0.1), abs=0.005)


def test_the_falls_themselves_are_a_perfect_explanation(trace: Trace) -> None:
    """A map of the falls has a correlation of one, its negative of minus one."""
    from xattn.metrics.in_domain import single_drops
    from xattn.metrics.perturbation import find_baseline

    falls = single_drops(trace, 4, find_baseline("mean"), "logit", 64).view(N, 1, 4, 4)
    pixels = falls.repeat_interleave(4, 2).repeat_interleave(5, 3)  # each cell of 4 by 5 pixels of one value
    for sign in (1, -1):
        value = metrics.create("idsds").measure(explained(sign * pixels, trace), trace, None)["idsds"]
        torch.testing.assert_close(value, torch.full((N,), float(sign), dtype=torch.float64))
