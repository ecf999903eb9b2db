"""Preprocessing agrees with torchvision and timm, and batches accept what is an image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from xattn.data.preprocessing import preprocess, to_batch, whole_size
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.functional.pixels import denormalize
from xattn.spec import ModelSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spec(size: tuple[int, int] = (32, 32), **facts: object) -> ModelSpec:
    values = {"feature_layer": "", "input_size": size, "mean": MEAN, "std": STD, **facts}
    return ModelSpec(**values)  # type: ignore[arg-type]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def witness(image: Image.Image, resize: int, size: int, mode: str) -> torch.Tensor:
    """The evaluation transform of torchvision's own weights, on Pillow images."""
    resized = tv.resize(image, resize, interpolation=InterpolationMode(mode))
    return tv.normalize(tv.to_tensor(tv.center_crop(resized, [size])), MEAN, STD)


def levels(x: torch.Tensor, y: torch.Tensor) -> float:
    """Largest difference in grey levels."""
    std = torch.tensor(STD).view(3, 1, 1)
    return float(((x - y) * std).abs().max() * 255)


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    size=st.sampled_from([8, 17, 32]),
    crop=st.sampled_from([0.6, 0.875, 0.9, 1.0]),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
def test_crop_agrees_with_torchvision(width: int, height: int, size: int, crop: float, mode: str) -> None:
    image = noise(width, height)
    got = preprocess(image, spec((size, size), crop=crop, interpolation=mode))
    expected = witness(image, math.floor(size / crop + 1e-4), size, mode)
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(2000, 20), (20, 2000), (700, 40), (3, 300), (1, 40)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_crop_of_a_very_long_image_is_the_same_within_rounding(size: tuple[int, int], mode: str) -> None:
    # Smooth, for Pillow orders its two passes by size and clips in between, which shows where bicubic overshoots.
    image = noise(8, 8).resize(size, Image.Resampling.BILINEAR)
    got = preprocess(image, spec((16, 16), crop=0.8, interpolation=mode))
    assert levels(got, witness(image, 20, 16, mode)) <= 2.01  # one level for each direction


@pytest.mark.parametrize(("crop", "resize"), [(0.875, 256), (0.9655, 232), (224 / 232, 232), (0.965, 232), (1.0, 224)])
def test_resize_sides_of_known_weights(crop: float, resize: int) -> None:
    image = noise(300, 260)
    got = preprocess(image, spec((224, 224), crop=crop))
    torch.testing.assert_close(got, witness(image, resize, 224, "bilinear"))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_crop_agrees_with_timm(size: tuple[int, int]) -> None:
    data = pytest.importorskip("timm.data")
    image = noise(113, 71)
    transform = data.create_transform(
        input_size=(3, *size), interpolation="bicubic", crop_pct=0.9, mean=MEAN, std=STD, is_training=False
    )
    got = preprocess(image, spec(size, crop=0.9, interpolation="bicubic"))
    torch.testing.assert_close(got, transform(image))


def test_squash_is_a_plain_resize() -> None:
    image = noise(50, 20)
    expected = tv.normalize(tv.to_tensor(image.resize((16, 24), Image.Resampling.BILINEAR)), MEAN, STD)
    torch.testing.assert_close(preprocess(image, spec((24, 16)), fit="squash"), expected)


def test_whole_keeps_the_aspect_ratio() -> None:
    x = preprocess(noise(640, 480), spec((64, 64)), fit="whole")
    assert x.shape == (3, 64, 96)
    assert preprocess(noise(480, 640), spec((64, 64)), fit="whole").shape == (3, 96, 64)
    assert preprocess(noise(40, 40), spec((64, 64)), fit="whole").shape == (3, 64, 64)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([32, 64, 224]))
def test_whole_sizes_are_bounded(width: int, height: int, side: int) -> None:
    w, h = whole_size((width, height), (side, side))
    assert min(w, h) == side
    assert max(w, h) <= 4 * side
    assert (w >= h) == (width >= height) or w == h
    if max(width, height) <= 4 * min(width, height):
        assert abs(max(w, h) - side * max(width, height) / min(width, height)) <= 16


def test_identity_where_nothing_is_to_be_resized() -> None:
    image = noise(32, 32)
    got = preprocess(image, spec(crop=1.0, mean=None, std=None))
    torch.testing.assert_close(got, tv.to_tensor(image), rtol=0, atol=0)


@pytest.mark.parametrize("fit", ["crop", "squash", "whole"])
@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (100_000, 2)])
def test_extreme_images_have_constant_colour(fit: str, size: tuple[int, int]) -> None:
    x = preprocess(Image.new("RGB", size, (10, 20, 30)), spec(), fit=fit)  # type: ignore[arg-type]
    expected = ((torch.tensor([10, 20, 30]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).view(3, 1, 1)
    torch.testing.assert_close(x, expected.expand_as(x))


def test_a_grey_model_gets_one_channel() -> None:
    x = preprocess(noise(32, 32), spec(mean=(0.5,), std=(0.5,), crop=1.0))
    assert x.shape == (1, 32, 32)
    assert denormalize(x, (0.5,), (0.5,)).shape == (1, 32, 32, 3)


def test_parameters_out_of_range() -> None:
    with pytest.raises(ParameterError, match="fit must be one of crop, squash, whole but is 'pad'"):
        preprocess(noise(8, 8), spec(), fit="pad")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="interpolation must be one of"):
        preprocess(noise(8, 8), spec(interpolation="cubic"))
    with pytest.raises(ParameterError, match=r"crop must be in \(0, 1\] but is 0"):
        preprocess(noise(8, 8), spec(crop=0.0))
    with pytest.raises(ShapeError, match="3 channels but the spec has 2 means"):
        preprocess(noise(8, 8), spec(mean=(0.5, 0.5), std=(0.5, 0.5)))
    with pytest.raises(ParameterError, match="std must be positive"):
        preprocess(noise(8, 8), spec(std=(0.2, 0.0, 0.2)))


# ---------------------------------------------------------------------------------------------------------- to_batch


def test_every_kind_of_image_gives_the_same_batch(tmp_path: Path) -> None:
    image = noise(40, 36)
    path = tmp_path / "x.png"
    image.save(path)
    values = np.asarray(image)
    expected = preprocess(image, spec())[None]
    stack = np.stack([values, values])
    for one in (image, path, str(path), values, torch.from_numpy(values.copy()), [image], (path,), [values]):
        torch.testing.assert_close(to_batch(one, spec()), expected, rtol=0, atol=0)
    for two in (stack, torch.from_numpy(stack), [image, path], [values, str(path)]):
        torch.testing.assert_close(to_batch(two, spec()), expected.expand(2, -1, -1, -1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_float_tensors_pass_through(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11, dtype=dtype)
    assert to_batch(x, spec()) is x
    torch.testing.assert_close(to_batch(x[0], spec()), x[:1])
    torch.testing.assert_close(to_batch(list(x), spec()), x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x = torch.zeros(3, 3, 4, 4)
    x[1, 2, 3, 0] = value
    with pytest.raises(DataError, match=r"1 of 3 hold NaN or infinite values \(first: image 1\)"):
        to_batch(x, spec())
    with pytest.raises(DataError, match="NaN"):
        to_batch(list(x), spec())


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(DataError, match="expected paths, images or tensors but got NoneType"):
        to_batch(None, spec())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is none"):
        to_batch([], spec())
    with pytest.raises(DataError, match="there is none"):
        to_batch(np.zeros((0, 4, 4, 3), np.uint8), spec())
    with pytest.raises(ShapeError, match=r"expected a float tensor \(N, 3, H, W\) but got \(4, 4\)"):
        to_batch(torch.zeros(4, 4), spec())
    with pytest.raises(ShapeError, match="do not form one batch"):
        to_batch([noise(64, 32), noise(32, 64)], spec(), fit="whole")
    with pytest.raises(ShapeError, match=r"in a sequence but got \(1, 3, 4, 4\)"):
        to_batch([torch.zeros(1, 3, 4, 4)], spec())
    with pytest.raises(DataError, match="does not exist"):
        to_batch(["nowhere.png"], spec())
