"""Sparsity against a naive loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xattn.errors import ShapeError
from xattn.functional.sparsity import attention_density, map_density


def naive_density(maps: Tensor, features: Tensor) -> list[float]:
    """B_m = A_m n / max n, each over its own maximum plus 1e-5, mean over maps, then over cells."""
    values = []
    for a, f in zip(maps.tolist(), features.tolist(), strict=True):
        h, w = len(a[0]), len(a[0][0])
        norm = [[sum(channel[y][x] ** 2 for channel in f) ** 0.5 for x in range(w)] for y in range(h)]
        highest = max(max(row) for row in norm)
        mean = [[0.0] * w for _ in range(h)]
        for part in a:
            bright = [[part[y][x] * norm[y][x] / highest for x in range(w)] for y in range(h)]
            peak = max(max(row) for row in bright) + 1e-5
            for y in range(h):
                for x in range(w):
                    mean[y][x] += bright[y][x] / peak / len(a)
        values.append(sum(map(sum, mean)) / (h * w))
    return values


def test_attention_density_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    features = torch.randn(3, 6, 4, 5, generator=generator, dtype=torch.float64)
    density = attention_density(maps, features)
    torch.testing.assert_close(density, torch.tensor(naive_density(maps, features), dtype=torch.float64))


def test_one_bright_cell_of_many_is_sparse() -> None:
    maps = torch.zeros(1, 1, 10, 10)
    maps[0, 0, 3, 4] = 1
    density = attention_density(maps, torch.ones(1, 8, 10, 10))
    assert density.item() == pytest.approx(0.01, rel=1e-3)


def test_scale_of_maps_and_features_is_nothing_but_the_epsilon() -> None:
    maps, features = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    torch.testing.assert_close(
        attention_density(maps * 7, features * 3), attention_density(maps, features), rtol=1e-3, atol=0
    )


def test_upsampling_a_map_by_copying_cells_does_not_change_its_density() -> None:
    maps, features = torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    large = attention_density(maps.repeat_interleave(4, 2).repeat_interleave(4, 3), features.repeat(1, 1, 4, 4) * 0 + 1)
    small = attention_density(maps, features * 0 + 1)
    torch.testing.assert_close(large, small)


def test_zero_maps_are_zero_and_not_nan() -> None:
    assert attention_density(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3)).tolist() == [0.0]


def test_map_density_is_the_mean_after_min_max() -> None:
    maps = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    density = map_density(maps)
    assert density[0].item() == pytest.approx((0 + 0.25 + 0.5 + 1) / 4)
    assert density[1].isnan()  # a constant map has no scale


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="same images and grid"):
        attention_density(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 4))
    with pytest.raises(ShapeError, match=r"\(N, 1, h, w\)"):
        map_density(torch.ones(1, 2, 3, 3))
