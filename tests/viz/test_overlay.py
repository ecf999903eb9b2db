from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from xattn.errors import DataError, ParameterError, ShapeError, UnknownNameError
from xattn.viz import colormap, overlay, rank_overlay, shares, to_rgb
from xattn.viz.overlay import levels


def scene(height: int = 48, width: int = 64) -> Any:
    """A smooth picture (H, W, 3) with a bright disc."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    disc = ((y - 0.45) ** 2 + (x - 0.6) ** 2 < 0.06) * 0.5
    channels = [0.2 + 0.3 * x + disc, 0.15 + 0.4 * y + disc * 0.8, 0.4 - 0.2 * x * y + disc * 0.4]
    return (np.stack(channels, axis=2).clip(0, 1) * 255).astype(np.uint8)


def bump(height: int, width: int, y0: float, x0: float) -> Tensor:
    y = torch.arange(height)[:, None] / height
    x = torch.arange(width)[None, :] / width
    return torch.exp(-12 * ((y - y0) ** 2 + (x - x0) ** 2))


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture).astype(float)


# ------------------------------------------------------------------------------------------------------ single maps


def test_overlay_equals_the_formula_cell_by_cell() -> None:
    """Nearest upsampling by a whole factor, so that each cell is a block of pixels; naive loops over pixels."""
    image, values, alpha = scene(12, 16), torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double(), 0.6
    got = pixels(overlay(image, values, alpha=alpha, upsample="nearest"))
    low, high = values.min().item(), values.max().item()
    for r in range(12):
        for c in range(16):
            v = (values[r // 4, c // 4].item() - low) / (high - low)
            place = v * 255
            left = min(int(place), 254)
            color = (left + 1 - place) * colormap("plasma")[left] + (place - left) * colormap("plasma")[left + 1]
            red, green, blue = (float(x) for x in image[r, c])
            grey = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
            least, most = alpha * (0.4 + 0.6 * alpha), 1 - (1 - alpha) ** 2
            opacity = least + (most - least) * v
            expected = 255 * (opacity * color + (1 - opacity) * grey)
            np.testing.assert_allclose(got[r, c], expected, atol=0.51)


def test_alpha_goes_from_the_grey_image_to_the_colours_alone() -> None:
    image, values = scene(), bump(6, 8, 0.5, 0.5)
    grey = pixels(Image.fromarray(image).convert("L"))
    nothing = pixels(overlay(image, values, alpha=0))
    assert np.abs(nothing - grey[:, :, None]).max() <= 1
    everything = pixels(overlay(image, values, alpha=1, upsample="nearest"))
    assert np.abs(everything - pixels(overlay(0 * image, values, alpha=1, upsample="nearest"))).max() == 0


def test_the_scale_of_a_map_changes_nothing() -> None:
    image, values = scene(), bump(6, 8, 0.3, 0.7).double()
    before = pixels(overlay(image, values))
    assert np.abs(before - pixels(overlay(image, 1e-6 * values))).max() <= 1
    assert np.abs(before - pixels(overlay(image, 5 + 300 * values))).max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_all_kinds_of_numbers_are_drawn(dtype: torch.dtype) -> None:
    values = (bump(6, 8, 0.5, 0.5) * 16).round()
    expected = pixels(overlay(scene(), values))
    assert np.abs(pixels(overlay(scene(), values.to(dtype))) - expected).max() <= 1


def test_arrays_tensors_and_pictures_are_one_image() -> None:
    image, values = scene(), bump(6, 8, 0.5, 0.5)
    first = pixels(overlay(image, values))
    for other in (Image.fromarray(image), torch.from_numpy(image)):
        np.testing.assert_array_equal(first, pixels(overlay(other, values.numpy())))


def test_size_scales_the_picture() -> None:
    assert overlay(scene(), bump(6, 8, 0.5, 0.5), size=(96, 128)).size == (128, 96)
    assert overlay(scene(), bump(6, 8, 0.5, 0.5)).size == (64, 48)


def test_a_fine_map_is_not_darkened_by_one_point() -> None:
    values = bump(80, 80, 0.5, 0.5)
    plain = pixels(overlay(scene(80, 80), values.clamp(max=values.flatten().sort().values[int(0.99 * 6400)])))
    values[0, 0] = 1e4
    spiked = pixels(overlay(scene(80, 80), values))
    assert np.abs(plain - spiked)[2:, 2:].max() <= 3
    sparse = torch.zeros(80, 80)
    sparse[40, 40] = 1.0  # fewer points than are left out: still seen
    assert pixels(overlay(np.zeros((80, 80, 3), np.uint8), sparse, alpha=1))[40, 40].min() > 30


# ------------------------------------------------------------------------------------------------------ signed maps


def test_signed_maps_are_red_above_and_blue_below_and_clear_at_zero() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    values = torch.tensor([[1.0, 0.0, -1.0]])
    got = pixels(overlay(image, values, upsample="nearest"))
    positive, zero, negative = got[0, 0], got[0, 2], got[0, 4]
    assert positive[0] > positive[2] + 100
    assert negative[2] > negative[0] + 100
    assert np.ptp(zero) == 0
    assert abs(zero[0] - (100 / 255 * 0.5 + 0.5) * 255) <= 1


def test_signed_can_be_forced_and_refused() -> None:
    image, values = scene(), bump(6, 8, 0.5, 0.5)
    auto, yes, no = (pixels(overlay(image, values, signed=s)) for s in ("auto", "yes", "no"))
    np.testing.assert_array_equal(auto, no)
    assert np.abs(auto - yes).max() > 50
    negative = pixels(overlay(image, values - 0.5, signed="no"))
    assert np.abs(negative - auto).max() <= 1  # min-max undoes the shift


def test_the_sign_of_a_map_swaps_its_colours_about_zero() -> None:
    image, values = scene(), bump(6, 8, 0.5, 0.5) - 0.4
    one, other = pixels(overlay(image, values)), pixels(overlay(image, -values))
    redder = one[:, :, 0] - one[:, :, 2] > 40
    assert redder.any()
    assert (other[:, :, 2] - other[:, :, 0])[redder].min() > 10


# ----------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize("draw", [overlay, lambda image, v, **k: rank_overlay(image, v[None].repeat(3, 1, 1), **k)])
@pytest.mark.parametrize("values", [torch.zeros(6, 8), torch.full((6, 8), 3.0), torch.full((6, 8), math.nan)])
def test_a_map_without_differences_leaves_the_image_grey_and_says_so(
    draw: Callable[..., Image.Image], values: Tensor
) -> None:
    image = scene(120, 160)
    got = pixels(draw(image, values))
    grey = pixels(Image.fromarray(image).convert("L"))[:, :, None]
    differs = np.abs(got - grey).max(axis=2) > 1
    assert not differs[:60].any()
    assert not differs[:, 110:].any()
    assert differs[90:, :100].sum() > 500  # the label, lower left


def test_the_label_says_which_status_it_is() -> None:
    image, values = scene(120, 160), bump(6, 8, 0.5, 0.5)
    plain = pixels(overlay(image, values))
    labels = [pixels(overlay(image, values, status=s)) for s in ("non-conserving", "hook never fired")]
    for label in labels:
        changed = np.abs(label - plain).max(axis=2) > 0
        assert changed.any()
        assert not changed[:70].any()
    assert np.abs(labels[0] - labels[1]).max() > 50


def test_a_partly_undefined_map_is_clear_where_it_is_nan_and_marked() -> None:
    image, values = scene(120, 160), bump(6, 8, 0.2, 0.8)
    values[0, 0] = math.nan
    got = pixels(overlay(image, values, upsample="nearest"))
    assert np.ptp(got[0, 0]) == 0
    assert np.ptp(got[0, -1]) > 0
    assert np.abs(got - pixels(overlay(image, values.nan_to_num(), upsample="nearest")))[100:, :80].max() > 50


@pytest.mark.parametrize("sign", [1, -1])
def test_infinite_values_do_not_hide_the_others(sign: int) -> None:
    image, values = scene(120, 160), bump(6, 8, 0.2, 0.8) - (0.5 if sign < 0 else 0)
    limited, values = values.clone(), values.clone()
    values[0, 0], limited[0, 0] = sign * math.inf, values.max() if sign > 0 else -values.abs().max()
    infinite, finite = (pixels(overlay(image, v, status="nan")) for v in (values, limited))
    assert np.abs(infinite - finite).max() <= 1
    assert np.abs(pixels(overlay(image, values)) - infinite).max() == 0  # the status is found out


def test_a_picture_too_small_for_a_label_gets_a_frame() -> None:
    got = pixels(overlay(scene(20, 20), torch.zeros(5, 5)))
    for border in (got[0], got[-1], got[:, 0], got[:, -1]):
        np.testing.assert_array_equal(border, np.broadcast_to([255, 170, 0], border.shape))


# ------------------------------------------------------------------------------------------------------ rank colours


def test_rank_overlay_equals_the_formula_cell_by_cell() -> None:
    """0.8 x colour + 0.2 x grey, one min-max for the three parts; naive loops over pixels."""
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 255  # black and white: stretching the greys changes nothing
    parts = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1)).double() * 40 + 2
    got = pixels(rank_overlay(image, parts, upsample="nearest"))
    low, high = parts.min().item(), parts.max().item()
    for r in range(6):
        for c in range(8):
            for channel in range(3):
                v = (parts[channel, r // 2, c // 2].item() - low) / (high - low)
                assert abs(got[r, c, channel] - 255 * (0.8 * v + 0.2 * (c >= 4))) <= 0.51


def test_rank_colours_do_not_wrap_around() -> None:
    """Products of maps and norms scaled to 0-255 pass 255: in uint8 the strongest cell would turn dark."""
    attention, norm = torch.linspace(51, 255, 5), torch.full((5,), 255.0)
    parts = torch.zeros(3, 1, 5)
    parts[0] = attention * norm
    red = pixels(rank_overlay(np.zeros((1, 5, 3), np.uint8), parts))[0, :, 0]
    assert (np.diff(red) > 0).all()
    assert red[-1] == round(0.8 * 255)


def test_parts_are_on_one_scale() -> None:
    parts = torch.zeros(3, 2, 2)
    parts[0, 0, 0], parts[1, 0, 1], parts[2, 1, 0] = 4.0, 2.0, 1.0
    got = pixels(rank_overlay(np.zeros((2, 2, 3), np.uint8), parts))
    np.testing.assert_allclose([got[0, 0, 0], got[0, 1, 1], got[1, 0, 2]], [204, 102, 51])


def test_more_than_three_parts_take_the_colour_of_the_strongest() -> None:
    parts = torch.eye(5)[:, None, :] * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]) + 0.0
    parts[0] += 0.1
    got = pixels(rank_overlay(np.zeros((1, 5, 3), np.uint8), parts, alpha=1))[0]
    assert [int(c.argmax()) for c in got[:3]] == [0, 1, 2]
    assert got[3, 0] > got[3, 1] > 0 == got[3, 2]  # amber, fainter than the first
    assert got[3].max() < got[0].max()


def test_fewer_parts_and_one_part_alone() -> None:
    image, parts = scene(), torch.stack([bump(6, 8, 0.3, 0.3), bump(6, 8, 0.7, 0.7)])
    both = pixels(rank_overlay(image, parts))
    first, second = (pixels(rank_overlay(image, parts, only=rank)) for rank in (0, 1))
    np.testing.assert_allclose(both[:, :, 0], first[:, :, 0], atol=1)
    np.testing.assert_allclose(both[:, :, 1], second[:, :, 1], atol=1)
    single = pixels(rank_overlay(image, parts[:1]))
    assert (single[:, :, 1] == single[:, :, 2]).all()


def test_shares_of_the_activation() -> None:
    parts = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2))
    sums = [sum(part.flatten().tolist()) for part in parts]
    assert shares(parts) == pytest.approx([s / sum(sums) for s in sums], rel=1e-6)
    assert all(math.isnan(s) for s in shares(torch.zeros(3, 2, 2)))


# --------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused() -> None:
    image, values = scene(), bump(6, 8, 0.5, 0.5)
    with pytest.raises(ShapeError, match=r"expected a map \(h, w\) but got shape \(1, 6, 8\)"):
        overlay(image, values[None])
    with pytest.raises(ShapeError, match=r"expected parts \(P, h, w\) but got shape \(6, 8\)"):
        rank_overlay(image, values)
    with pytest.raises(ParameterError, match=r"alpha must lie between 0 and 1 but is 1\.5"):
        overlay(image, values, alpha=1.5)
    with pytest.raises(ParameterError, match="signed must be one of auto, yes, no but is 'maybe'"):
        overlay(image, values, signed="maybe")
    with pytest.raises(ParameterError, match="mode must be one of bilinear, nearest, bicubic but is 'cubic'"):
        overlay(image, values, upsample="cubic")
    with pytest.raises(UnknownNameError, match="Did you mean 'viridis'"):
        overlay(image, values, colormap="viridiss")
    with pytest.raises(DataError, match=r"uint8 values .* but got float64"):
        overlay(image / 255, values)
    with pytest.raises(DataError, match=r"\(H, W, 3\) or \(H, W\) but got shape \(3, 48, 64\)"):
        overlay(image.transpose(2, 0, 1), values)


def test_grey_and_one_channel_images_are_read() -> None:
    image = scene()[:, :, 0]
    assert pixels(to_rgb(image)).shape == (48, 64, 3)
    np.testing.assert_array_equal(pixels(to_rgb(image)), pixels(to_rgb(image[:, :, None])))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 2)])
def test_extreme_images_are_drawn(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    assert overlay(image, bump(7, 7, 0.5, 0.5)).size == shape[::-1]
    assert rank_overlay(image, torch.rand(3, 7, 7)).size == shape[::-1]


# ------------------------------------------------------------------------------------------------------------ golden


def test_golden_overlays(golden: Callable[[Image.Image, str], None]) -> None:
    image = scene()
    golden(overlay(image, bump(6, 8, 0.4, 0.6)), "overlay-plasma")
    golden(overlay(image, bump(6, 8, 0.4, 0.6), colormap="viridis", upsample="nearest", alpha=0.8), "overlay-nearest")
    golden(overlay(image, bump(6, 8, 0.4, 0.6) - bump(6, 8, 0.8, 0.2)), "overlay-signed")
    parts = torch.stack([bump(6, 8, 0.4, 0.6), 0.8 * bump(6, 8, 0.8, 0.3), 0.6 * bump(6, 8, 0.2, 0.2)])
    golden(rank_overlay(image, parts), "rank-3")
    golden(rank_overlay(image, torch.cat([parts, 0.9 * bump(6, 8, 0.9, 0.9)[None]])), "rank-4")


@pytest.mark.parametrize("side", [64, 150])
def test_only_maps_as_fine_as_pixels_are_smoothed(side: int) -> None:
    values = torch.zeros(side, side)
    values[side // 2, side // 2] = 1
    maps, _, _ = levels(values, signed="yes")
    assert maps is not None
    near = maps[0, 0, side // 2, side // 2 + 1] / maps.max()
    # A Gaussian of one cell, a 150th of the side; a coarse map stays as it is.
    assert float(near) == pytest.approx(math.exp(-0.5) if side == 150 else 0, abs=1e-6)
