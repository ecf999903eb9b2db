from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional.resize import normalize, resize


def kernel(t: float, mode: str) -> float:
    """The tent, or the cubic convolution of Keys 1981 with a = -3/4."""
    t, a = abs(t), -0.75
    if mode == "bilinear":
        return max(0.0, 1 - t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def naive_resize(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Loops over the new cells; the centre of cell k of K lies at (k + 1/2) / K of the side."""
    n, p, h, w = maps.shape
    out = torch.zeros(n, p, *size, dtype=torch.float64)
    for r in range(size[0]):
        for c in range(size[1]):
            y, x = (r + 0.5) * h / size[0], (c + 0.5) * w / size[1]
            if mode == "nearest":
                out[:, :, r, c] = maps[:, :, int(y), int(x)]
                continue
            y, x = y - 0.5, x - 0.5
            for row in range(math.floor(y) - 1, math.floor(y) + 3):
                for column in range(math.floor(x) - 1, math.floor(x) + 3):
                    weight = kernel(y - row, mode) * kernel(x - column, mode)
                    out[:, :, r, c] += weight * maps[:, :, min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return out


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("size", [(7, 5), (3, 2), (1, 1), (2, 11), (4, 3)])
def test_resize_equals_the_loop(mode: str, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize(maps, size, mode), naive_resize(maps, size, mode))


def test_antialiasing_averages_only_where_the_grid_shrinks() -> None:
    maps = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize(maps, (16, 16), antialias=True), resize(maps, (16, 16)))
    spike = torch.zeros(1, 1, 8, 8)
    spike[0, 0, 0, 0] = 1.0
    assert resize(spike, (1, 1)).item() == 0.0
    assert resize(spike, (1, 1), antialias=True).item() > 0.0


def test_resize_promotes_half_precision_and_keeps_double() -> None:
    assert resize(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), (4, 4)).dtype == torch.float32
    assert resize(torch.zeros(1, 1, 2, 2, dtype=torch.float64), (4, 4)).dtype == torch.float64


def test_resize_refuses() -> None:
    with pytest.raises(ShapeError, match=r"expected maps \(N, P, h, w\) but got shape \(2, 2\)"):
        resize(torch.zeros(2, 2), (4, 4))
    with pytest.raises(ShapeError, match="at least 1x1 but is 0x4"):
        resize(torch.zeros(1, 1, 2, 2), (0, 4))
    with pytest.raises(ParameterError, match="mode must be one of bilinear, nearest, bicubic but is 'area'"):
        resize(torch.zeros(1, 1, 2, 2), (4, 4), "area")


def test_normalize_equals_the_formula_image_by_image() -> None:
    maps = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps[1] *= 100
    for one, result in zip(maps, normalize(maps), strict=True):
        low, high = min(one.flatten().tolist()), max(one.flatten().tolist())
        for value, scaled in zip(one.flatten().tolist(), result.flatten().tolist(), strict=True):
            assert scaled == pytest.approx((value - low) / (high - low), abs=1e-15)
    torch.testing.assert_close(normalize(maps)[:1], normalize(maps[:1]), rtol=0, atol=0)


def test_normalize_of_a_constant_map_is_zero() -> None:
    assert normalize(torch.full((2, 1, 3, 3), 7.0)).eq(0).all()


def test_normalize_keeps_nan_and_infinity_out_of_the_range() -> None:
    maps = torch.tensor([[[[math.nan, 2.0, 4.0, 3.0, math.inf, -math.inf]]]])
    assert normalize(maps).flatten().tolist() == [0.0, 0.0, 1.0, 0.5, 1.0, 0.0]
    assert normalize(maps, nan=math.nan).flatten()[0].isnan()
    assert normalize(torch.full((1, 1, 2, 2), math.nan)).eq(0).all()


def test_normalize_leaves_its_input_alone() -> None:
    maps = torch.rand(1, 1, 3, 3)
    before = maps.clone()
    normalize(maps)
    assert maps.equal(before)
