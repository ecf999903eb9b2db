"""Scores on a common grid do not depend on how fine a map is: copies of one map that were averaged score the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d

from tests import tiny_models as tiny
from tests.given import explained, random_maps, traced
from xattn.labels import label_of
from xattn.metrics import metrics

FAST: dict[str, dict[str, Any]] = {
    "deletion": {"steps": 12},
    "insertion": {"steps": 12},
    "curves": {"steps": 12},
    "irof": {"segments": 12},
    "road": {"steps": 3},
    "region_perturbation": {"side": 6},
    "faithfulness_correlation": {"samples": 30},
    "sensitivity_n": {"samples": 12},
    "infidelity": {"samples": 40},
    "f_fidelity": {"samples": 3},
}
WITH_GRID = [name for name in metrics.names() if hasattr(metrics.create(name), "grid")]
# The grids of papers.
OWN = {"brnpa2021": "map", "gomez2023": "map", "rise2018": "pixels", "idsds": 4}
NOT_RANKED = {"iic_gomez2023", "ad_gomez2023", "add_gomez2023"}  # of images seen through the map


def test_every_metric_that_ranks_cells_has_the_grid() -> None:
    assert set(WITH_GRID) >= {*FAST, *OWN, "abpc"}
    for name in WITH_GRID:
        metric = metrics.create(name)
        assert metric.grid == OWN.get(name, "common")
        assert ("grid=common" in label_of(metric)) == (name not in OWN)
        assert "grid=5" in label_of(metrics.create(name, grid=5))


@pytest.mark.parametrize("name", WITH_GRID)
@pytest.mark.parametrize("grid", ["common", 4])
@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_pooled_copies_of_one_map_score_the_same(name: str, grid: str | int, size: tuple[int, int]) -> None:
    """Of whole numbers, whose means are exact; signed. Each factor goes into the cells."""
    if grid == "common" and isinstance(OWN.get(name), int):
        pytest.skip("it takes a number alone")
    trace = traced(tiny.images(2, *size))
    maps = (random_maps(2, *size) * 2**10).floor() - 500
    pooled = [maps, avg_pool2d(maps, 2), avg_pool2d(maps, (4, 2)), avg_pool2d(maps, 4)]
    metric = metrics.create(name, **FAST.get(name, {}), grid=grid)
    first, *others = metric.measure_many([explained(m, trace) for m in pooled], trace, None)
    for other in others:
        for column in first.keys() - NOT_RANKED:
            assert torch.equal(other[column], first[column]), column


@pytest.mark.parametrize("name", ["deletion", "insertion", "road"])
def test_on_pixels_they_do_not(name: str) -> None:
    """The confound itself: how fine a map is moves its score."""
    trace = traced(tiny.images(2, 32, 32))
    maps = random_maps(2, 32, 32)
    metric = metrics.create(name, **FAST.get(name, {}), grid="pixels")
    fine, coarse = metric.measure_many([explained(m, trace) for m in (maps, avg_pool2d(maps, 4))], trace, None)
    assert (fine[name] != coarse[name]).all()
