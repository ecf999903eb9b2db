"""XAI-TRIS: evidence is where the mask says, noise is what the paper says, and each task is what it is called."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from xattn.data.opening import open_dataset
from xattn.data.xai_tris import _ALPHA, XAITris, _deviation, _smoothing
from xattn.errors import ParameterError

CASES = sorted(_ALPHA)


def values(data: XAITris) -> np.ndarray:
    return np.stack([s.image[:, :, 0] for s in data]).astype(float) / 127.5 - 1


@pytest.mark.parametrize(("size", "scenario", "background"), CASES)
def test_classes_differ_on_the_mask_and_nowhere_else(size: int, scenario: str, background: str) -> None:
    """First and second moments of the pixels, and for xor the product of the two places, by the class."""
    data = XAITris(scenario, background, size, length=400 if size == 8 else 120, alpha=0.5)
    x, y = values(data), data.labels
    masks = np.stack([s.mask for s in data])
    assert masks.any((1, 2)).all()
    if scenario == "translation":
        assert len({m.tobytes() for m in masks}) > 20
        inside, outside = x[masks].mean(), x[~masks].mean()
        assert inside > outside + 0.05
        return
    assert len({m.tobytes() for m in masks}) == 1
    mask = masks[0]
    a, b = x[y == 0], x[y == 1]
    if scenario == "linear":
        gap = np.abs(a.mean(0) - b.mean(0))
    elif scenario == "multiplicative":
        gap = np.abs(np.log(a.std(0)) - np.log(b.std(0)))
    else:
        top = slice(0, size // 2)
        halves = [((part * mask)[:, top].sum((1, 2)), (part * mask)[:, size // 2 :].sum((1, 2))) for part in (a, b)]
        sign = [np.sign(upper * lower) for upper, lower in halves]
        assert sign[0].mean() > 0.8
        assert sign[1].mean() < -0.8
        assert np.abs(a.mean(0) - b.mean(0))[mask].mean() < 0.2  # no pixel tells alone
        return
    assert gap[mask].mean() > 2 * gap[~mask].mean()


def test_images_of_eight_pixels_are_the_formula() -> None:
    """Signal and noise, each over its norm, weighed by alpha: without noise the pattern is left, one value."""
    data = XAITris("linear", "white", 8, length=2, alpha=1.0)
    for sample, shape, corner in zip(data, ("T", "L"), ((1, 1), (4, 5)), strict=True):
        bright = sample.image[:, :, 0] == 255
        assert bright.sum() == 4
        rows, columns = np.nonzero(bright)
        assert (rows.min(), columns.min()) == corner
        assert data.classes[sample.label] == shape
        assert sample.mask is not None
        assert (bright <= sample.mask).all()
        assert sample.mask.sum() == 8
        assert set(sample.image[~bright].ravel().tolist()) == {128}


@pytest.mark.parametrize(("size", "sigma"), [(8, 3.0), (64, 10.0), (64, 1.5)])
def test_smoothing_is_that_of_scipy(size: int, sigma: float) -> None:
    noise = np.random.default_rng(0).normal(size=(size, size))
    matrix = _smoothing(size, sigma)
    np.testing.assert_allclose(matrix @ noise @ matrix.T, scipy.ndimage.gaussian_filter(noise, sigma), atol=1e-12)


@pytest.mark.parametrize("size", [8, 64])
def test_the_deviation_of_smoothed_noise_is_known(size: int) -> None:
    matrix, rng = _smoothing(size, 3.0 if size == 8 else 10.0), np.random.default_rng(1)
    drawn = np.stack([matrix @ rng.normal(0, 0.5, (size, size)) @ matrix.T for _ in range(4000 if size == 8 else 800)])
    assert np.sqrt((drawn**2).mean()) == pytest.approx(_deviation(size, "correlated"), rel=0.06)


def test_an_image_comes_from_its_seed_part_and_number_alone() -> None:
    short, long = XAITris(length=4, scenario="xor"), XAITris(length=40, scenario="xor")
    assert all((a.image == b.image).all() for a, b in zip(short, long[:4], strict=True))
    assert not (short[0].image == XAITris(length=4, scenario="xor", split="test")[0].image).all()
    assert not (short[0].image == XAITris(length=4, scenario="xor", seed=1)[0].image).all()
    assert open_dataset("xai-tris:scenario=xor,size=8,length=6", "test")[5].image.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "and"}, "scenario must be one of linear, multiplicative, translation, xor but is 'and'"),
        ({"size": 16}, "size must be one of 8, 64 but is '16'"),
        ({"background": "photos"}, "background must be one of white, correlated"),
        ({"length": 0}, "length must be at least 1"),
        ({"alpha": 2.0}, "alpha must be at least 0 and at most 1 but is 2.0"),
        ({"split": "dev"}, "split must be one of train, val, test"),
    ],
)
def test_wrong_options_are_told(options: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        XAITris(**options)
