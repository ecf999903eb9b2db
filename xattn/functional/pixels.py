"""Between the model's normalized space and pixel space, where colours mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError

Statistics = Sequence[float] | None


def denormalize_pixels(x: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """Images in pixel space from the model's normalized space: x std + mean; unchanged where these are unknown.

    Args:
        x: (..., C, H, W).
        mean: per channel, or None.
        std: per channel, or None.

    Returns:
        The shape of `x`.

    Raises:
        ShapeError: if there is not one number per channel.
        ParameterError: if a deviation is not positive.
    """
    statistics = _statistics(x, mean, std)
    return x if statistics is None else x * statistics[1] + statistics[0]


def normalize_pixels(pixels: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """Pixels (..., C, H, W) in [0, 1] in the model's space; unchanged where its mean and deviation are unknown."""
    statistics = _statistics(pixels, mean, std)
    return pixels if statistics is None else (pixels - statistics[0]) / statistics[1]


def drawn_bands(channels: int, bands: Sequence[int] = ()) -> list[int]:
    """The channels that are drawn as red, green and blue, or the one that is drawn in grey.

    Args:
        channels: of the image.
        bands: three of them, or one; empty are the first three, or the first of two.

    Raises:
        ParameterError: if there is no such channel.

    >>> drawn_bands(12), drawn_bands(2), drawn_bands(12, (7, 3, 1))
    ([0, 1, 2], [0], [7, 3, 1])
    """
    chosen = list(bands) or list(range(3 if channels >= 3 else 1))
    if len(chosen) not in (1, 3) or not all(type(band) is int and 0 <= band < channels for band in chosen):
        raise ParameterError(
            f"bands: expected one or three channels between 0 and {channels - 1} but got {tuple(bands)}."
        )
    return chosen


def denormalize(x: Tensor, mean: Statistics = None, std: Statistics = None, bands: Sequence[int] = ()) -> Tensor:
    """Images to look at from images that a model takes.

    Args:
        x: normalized (N, C, H, W) or (C, H, W).
        mean: per channel; where it is unknown each image is stretched from its minimum to its maximum.
        std: per channel.
        bands: the three channels that are drawn, or one in grey; by default the first ones.

    Returns:
        uint8 (N, H, W, 3) on the device of `x`.

    >>> denormalize(torch.zeros(1, 3, 2, 2), (0.5,) * 3, (0.25,) * 3).unique()
    tensor([128], dtype=torch.uint8)
    """
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4:
        raise ShapeError(f"denormalize: expected images (N, C, H, W) but got {tuple(x.shape)}.")
    _statistics(x, mean, std)  # refuses what does not fit the image as it is
    chosen = drawn_bands(x.shape[1], bands)
    x = x[:, chosen]
    mean, std = (None if s is None else [s[band] for band in chosen] for s in (mean, std))
    values = x.detach().to(torch.float32) if x.dtype != torch.float64 else x.detach()
    if mean is None or std is None:
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        span = high - low
        values = torch.where(span > 0, (values - low) / torch.where(span > 0, span, 1), values)
    pixels = denormalize_pixels(values, mean, std).nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


def _statistics(x: Tensor, mean: Statistics, std: Statistics) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation as (C, 1, 1) tensors like `x`; None where they are unknown."""
    if mean is None or std is None:
        return None
    if not len(mean) == len(std) == x.shape[-3]:
        raise ShapeError(
            f"images have {x.shape[-3]} channels but the spec has {len(mean)} means and {len(std)} deviations."
        )
    if min(std) <= 0:
        raise ParameterError(f"std must be positive but is {tuple(std)}.")
    return x.new_tensor(mean).view(-1, 1, 1), x.new_tensor(std).view(-1, 1, 1)
