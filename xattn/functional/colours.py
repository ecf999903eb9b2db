"""How much of an image has which colour, and where."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.errors import ShapeError

LEVELS = 8
"""Levels of each of three channels, so that there are 512 colours."""

_SIDE = 64  # rows and columns of pixels that are looked at; of larger images every so many


def colour_shares(pixels: Tensor, levels: int = LEVELS) -> Tensor:
    """Share of the pixels of each colour, where a pixel is divided among the eight colours around it.

    It is divided by its distance along each channel, so that a colour between two levels counts for both and a little
    noise moves little from one to the other.

    >>> colour_shares(torch.tensor([[[[0.5]], [[0.0]], [[1.0]]]]), levels=3).nonzero().tolist()
    [[0, 11]]

    Args:
        pixels: images (N, 3, H, W) in [0, 1]; what is beyond counts as the end.
        levels: L of each channel.

    Returns:
        (N, L ** 3), each row sums to one; the first channel changes slowest.
    """
    _check(pixels)
    x = _thinned(pixels)
    n = len(x)
    found = x.new_zeros(n, levels**3)
    for index, weight in _corners(x, levels):
        found.scatter_add_(1, index.flatten(1), weight.flatten(1))
    return found / (x.shape[2] * x.shape[3])


def near_colour(pixels: Tensor, colour: int, levels: int = LEVELS) -> Tensor:
    """Which pixels (N, H, W) are within one level of a colour in each channel, so that `colour_shares` counts them.

    >>> near_colour(torch.tensor([[[[0.5]], [[0.2]], [[1.0]]]]), 11, levels=3).tolist()
    [[[True]]]
    """
    _check(pixels)
    centre = torch.tensor([colour // levels**2, colour // levels % levels, colour % levels], device=pixels.device)
    away = (pixels.clamp(0, 1) * (levels - 1) - centre.view(1, 3, 1, 1)).abs()
    return (away < 1).all(1)


def _check(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ShapeError(f"colours: expected images (N, 3, H, W) but got {tuple(pixels.shape)}.")


def _thinned(pixels: Tensor) -> Tensor:
    """Every so many pixels of large images: as they are, since means of neighbours are colours that nobody painted."""
    rows, columns = (max(1, side // _SIDE) for side in pixels.shape[2:])
    return pixels[:, :, ::rows, ::columns]


def _corners(pixels: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """For each of the eight colours around a pixel its number (N, H, W) and how much of the pixel it gets."""
    place = pixels.clamp(0, 1) * (levels - 1)
    low = place.floor().clamp(max=levels - 2)
    part = place - low
    low = low.long()
    corners = []
    for corner in range(8):
        up = [(corner >> k) & 1 for k in (2, 1, 0)]
        index = torch.zeros_like(low[:, 0])
        weight = torch.ones_like(part[:, 0])
        for channel, step in enumerate(up):
            index = index * levels + low[:, channel] + step
            weight = weight * (part[:, channel] if step else 1 - part[:, channel])
        corners.append((index, weight))
    return corners
