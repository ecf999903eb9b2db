"""The way from normalized values back to pixels is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from xattn.data.preprocessing import preprocess
from xattn.errors import ParameterError, ShapeError
from xattn.functional.pixels import denormalize, denormalize_pixels, normalize_pixels
from xattn.spec import ModelSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_pixels_from_normalized_values() -> None:
    x = torch.ones(1, 2, 1, 1)
    assert denormalize_pixels(x, (0.5, 0.25), (2, 4)).flatten().tolist() == [2.5, 4.25]
    assert denormalize_pixels(x, None, (2, 4)) is x
    with pytest.raises(ShapeError, match="3 means"):
        denormalize_pixels(x, (0, 0, 0), (1, 1, 1))
    with pytest.raises(ParameterError, match="std must be positive"):
        normalize_pixels(x, (0, 0), (1, 0))


def test_denormalize_undoes_preprocess_exactly() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    x = preprocess(image, ModelSpec(feature_layer="", input_size=(32, 32), mean=MEAN, std=STD, crop=1.0))
    shown = denormalize(x[None], MEAN, STD)
    assert shown.dtype == torch.uint8
    np.testing.assert_array_equal(shown[0].numpy(), np.asarray(image))
    np.testing.assert_array_equal(denormalize(x.double(), MEAN, STD)[0].numpy(), np.asarray(image))


def test_denormalize_without_statistics_stretches_each_image() -> None:
    x = torch.stack([torch.linspace(-3, 5, 48).view(3, 4, 4), torch.full((3, 4, 4), 0.5)])
    shown = denormalize(x)
    assert shown.shape == (2, 4, 4, 3)
    assert (int(shown[0].min()), int(shown[0].max())) == (0, 255)
    assert (shown[1] == 128).all()
    assert torch.equal(shown[:1], denormalize(x[:1]))


def test_denormalize_clamps_and_survives_nan() -> None:
    x = torch.tensor([1e9, -1e9, math.nan]).view(1, 3, 1, 1)
    np.testing.assert_array_equal(denormalize(x, MEAN, STD).flatten(), [255, 0, 0])


def test_denormalize_refuses_other_shapes() -> None:
    with pytest.raises(ShapeError, match="5 channels but the spec has 3 means"):
        denormalize(torch.zeros(2, 5, 4, 4), MEAN, STD)
    with pytest.raises(ShapeError, match=r"got \(2, 5, 4, 4, 4\)"):
        denormalize(torch.zeros(2, 5, 4, 4, 4))
