"""Images without some evidence, or with that of another: patches of the frame, and tones of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.functional.resize import resize

_LEAST_DEVIATION = 0.02  # of a channel, below which its contrast is not raised


def replaced(x: Tensor, stand_in: Tensor, cells: Tensor) -> Tensor:
    """Images whose pixels in some cells come from others.

    >>> replaced(torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4), torch.tensor([[[True, False]]])).tolist()
    [[[[1.0, 1.0, 0.0, 0.0]]]]

    Args:
        x: (B, C, H, W).
        stand_in: (B, C, H, W), or (1, C, H, W) for all.
        cells: bool (B, h, w); a pixel belongs to the cell whose area holds its centre.
    """
    mask = resize(cells[:, None].float(), (x.shape[2], x.shape[3]), "nearest").bool()
    return torch.where(mask.to(x.device), stand_in, x)


def tone_of(x: Tensor) -> Tensor:
    """Mean and standard deviation of each channel (N, 2 C) of images (N, C, H, W)."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1)


def toned(x: Tensor, shift: Tensor) -> Tensor:
    """Images of another tone: means and deviations of the channels are moved by `shift`.

    Args:
        x: (B, C, H, W).
        shift: (B, 2 C); a deviation does not fall below a small one.
    """
    mean, deviation = (t[:, :, None, None] for t in tone_of(x).chunk(2, dim=1))
    up, wider = (t[:, :, None, None] for t in shift.chunk(2, dim=1))
    stretch = (deviation + wider).clamp(min=_LEAST_DEVIATION) / deviation.clamp(min=_LEAST_DEVIATION)
    return (x - mean) * stretch + mean + up


def turned(shift: Tensor, generators: list[torch.Generator]) -> Tensor:
    """A move of the tone by as much, in a random direction at right angles to that of `shift` (B, 2 C)."""
    drawn = torch.stack([torch.randn(shift.shape[1], generator=g, dtype=torch.float64) for g in generators])
    along = shift.double()
    length = along.norm(dim=1, keepdim=True)
    direction = along / length.clamp(min=1e-12)
    across = drawn - (drawn * direction).sum(1, keepdim=True) * direction
    across = across / across.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (across * length).to(shift)
