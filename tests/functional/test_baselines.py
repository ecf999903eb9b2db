"""What replaces removed pixels: only what is removed, exact where it can be, one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import tiny_models as tiny
from tests.given import explained, random_maps, traced
from xattn.errors import NotApplicableError, ParameterError, UnknownNameError
from xattn.functional.baselines import Blur, baselines
from xattn.functional.imputation import linear_imputation
from xattn.functional.pixels import normalize_pixels
from xattn.metrics import metrics
from xattn.metrics.perturbation import find_baseline

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def replaced(name: str, x: Tensor, removed: Tensor, seed: int = 0) -> Tensor:
    replace = baselines.parse(name).prepare(x, MEAN, STD, lambda i: torch.Generator().manual_seed(seed + i))
    return replace(x, removed, torch.arange(len(x)))


def pixels(x: Tensor) -> Tensor:
    return x * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)


@pytest.mark.parametrize("name", baselines.names())
def test_baselines_touch_only_what_is_removed(name: str) -> None:
    if name == "telea":
        pytest.importorskip("cv2")
    x = normalize_pixels(torch.rand(3, 3, 12, 14, generator=torch.Generator().manual_seed(99)), MEAN, STD)
    removed = torch.rand(3, 1, 12, 14, generator=torch.Generator().manual_seed(1)) < 0.4
    found = replaced(name, x, removed)
    assert found.isfinite().all()
    torch.testing.assert_close(torch.where(removed, 0, found), torch.where(removed, 0, x), rtol=0, atol=0)
    assert (found != x).any(dim=1, keepdim=True)[removed].float().mean() > 0.95
    for i in range(3):  # each image by itself
        replace = baselines.parse(name).prepare(
            x[i : i + 1], MEAN, STD, lambda _, i=i: torch.Generator().manual_seed(i)
        )
        alone = replace(x[i : i + 1], removed[i : i + 1], torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(alone[0], found[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", baselines.names())
def test_baselines_take_an_image_without_any_pixel_left(name: str) -> None:
    if name == "telea":
        pytest.importorskip("cv2")
    x = tiny.images(2, 9, 7)
    assert replaced(name, x, torch.ones(2, 1, 9, 7, dtype=torch.bool)).isfinite().all()


def test_colours_are_those_of_pixel_space() -> None:
    x, everything = tiny.images(1, 4, 5), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(pixels(replaced("black", x, everything)), torch.zeros(1, 3, 4, 5), rtol=0, atol=1e-6)
    average = torch.tensor(MEAN).view(1, 3, 1, 1).expand(1, 3, 4, 5)
    torch.testing.assert_close(pixels(replaced("mean", x, everything)), average)
    noise = pixels(replaced("noise", tiny.images(1, 60, 60), torch.ones(1, 1, 60, 60, dtype=torch.bool)))
    assert noise.min() > -1e-6
    assert noise.max() < 1 + 1e-6
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_blur_keeps_the_colour_at_the_border() -> None:
    x = torch.full((1, 3, 20, 30), 0.7)
    torch.testing.assert_close(replaced("blur", x, torch.ones(1, 1, 20, 30, dtype=torch.bool)), x)


def test_linear_imputation_is_exact_on_planes_and_independent_of_the_batch() -> None:
    """A plane solves the equations inside the image: each pixel is the mean of its neighbours."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    plane = (2 * y - x)[None, None].double()
    hole = torch.zeros(1, 1, 12, 15, dtype=torch.bool)
    hole[..., 2:10, 3:12] = True
    torch.testing.assert_close(linear_imputation(plane, hole, tolerance=1e-10), plane, rtol=0, atol=1e-7)
    images = tiny.images(3, 12, 15)
    removed = torch.rand(3, 1, 12, 15, generator=torch.Generator().manual_seed(2)) < torch.tensor(
        [0.1, 0.5, 0.95]
    ).view(-1, 1, 1, 1)
    together = linear_imputation(images, removed)
    alone = torch.cat([linear_imputation(images[i : i + 1], removed[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert linear_imputation(images[:1, :, :1, :1], torch.zeros(1, 1, 1, 1, dtype=torch.bool)).isfinite().all()


def test_imputation_noise_has_the_size_that_is_asked_for() -> None:
    x = torch.zeros(1, 3, 40, 40)
    hole = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    hole[..., 0, 0] = False
    spread = pixels(replaced("linear:noise=0.05", x, hole)).std((0, 2, 3))
    torch.testing.assert_close(spread, torch.full((3,), 0.05), rtol=0.1, atol=0)


def test_bad_baselines_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'black'"):
        metrics.create("deletion", baseline="blakc")
    with pytest.raises(ParameterError, match="sigma must be positive"):
        Blur(sigma=0)
    with pytest.raises(ParameterError, match="noise must not be negative"):
        find_baseline("linear:noise=-1")
    with pytest.raises(ParameterError, match="imputation needs pixels"):
        metrics.create("average_drop", baseline="linear").measure(
            explained(random_maps(1, 4, 4), traced(tiny.images(1))), traced(tiny.images(1)), None
        )


def test_telea_refuses_images_that_it_cannot_fill() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(NotApplicableError, match="1 or 3 channels"):
        find_baseline("telea").prepare(torch.zeros(1, 4, 8, 8), None, None, lambda i: torch.Generator())
