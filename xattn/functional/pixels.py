"""Between the model's normalized space and pixel space, where colours mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xattn.errors import ShapeError


def denormalize_pixels(x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Images in pixel space from the model's normalized space: x std + mean; unchanged where these are unknown.

    Args:
        x: (N, C, H, W).
        mean: per channel, or None.
        std: per channel, or None.

    Returns:
        The shape of `x`.

    Raises:
        ShapeError: if there is not one number per channel.
    """
    if mean is None or std is None:
        return x
    if not len(mean) == len(std) == x.shape[1]:
        raise ShapeError(f"denormalize: {len(mean)} means and {len(std)} deviations for {x.shape[1]} channels.")
    return x * x.new_tensor(std).view(-1, 1, 1) + x.new_tensor(mean).view(-1, 1, 1)


def normalize_pixels(pixels: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Pixels (N, C, H, W) in [0, 1] in the model's space; unchanged where its mean and deviation are unknown."""
    if mean is None or std is None:
        return pixels
    return (pixels - pixels.new_tensor(mean).view(-1, 1, 1)) / pixels.new_tensor(std).view(-1, 1, 1)
