"""Shares of colours against loops over pixels and colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xattn.errors import ShapeError
from xattn.functional.colours import colour_shares, near_colour

LEVELS = 4


def weights(pixel: np.ndarray) -> np.ndarray:
    """How much of a pixel (3,) each colour gets: the product over channels of one less the distance in levels."""
    found = np.zeros(LEVELS**3)
    for colour in range(LEVELS**3):
        at = (colour // LEVELS**2, colour // LEVELS % LEVELS, colour % LEVELS)
        found[colour] = np.prod([max(0.0, 1 - abs(v * (LEVELS - 1) - a)) for v, a in zip(pixel, at, strict=True)])
    return found


def test_shares_are_those_of_plain_loops() -> None:
    x = np.random.default_rng(0).random((2, 3, 5, 4))
    x[0, :, 0, 0] = (0.0, 1.0, 1 / 3)
    shares, near = colour_shares(torch.from_numpy(x), LEVELS), near_colour(torch.from_numpy(x), 27, LEVELS)
    for n in range(2):
        each = [[weights(x[n, :, i, j]) for j in range(4)] for i in range(5)]
        assert np.allclose(shares[n], np.mean(each, axis=(0, 1)))
        for i in range(5):
            for j in range(4):
                assert bool(near[n, i, j]) == (each[i][j][27] > 0)
    assert torch.allclose(shares.sum(1), torch.ones(2, dtype=torch.float64))


def test_large_images_are_thinned_and_keep_their_colours() -> None:
    x = torch.zeros(1, 3, 256, 128)
    x[:, :, :, 64:] = 1.0
    assert colour_shares(x)[0].nonzero().flatten().tolist() == [0, 511]
    assert float(colour_shares(x)[0, 0]) == 0.5


def test_images_have_three_channels() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3, H, W\)"):
        colour_shares(torch.zeros(1, 1, 4, 4))
