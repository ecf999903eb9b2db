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
    """Mean, standard deviation, lowest and highest value of each channel (N, 4 C) of images (N, C, H, W)."""
    return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0), x.amin((2, 3)), x.amax((2, 3))], dim=1)


def regraded(x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Images as if what had one mean and deviation of its channels had another: the same change of colours for all.

    Args:
        x: (B, C, H, W).
        before: means and deviations (2 C,), or (B, 2 C).
        after: likewise; a deviation does not fall below a small one.
    """
    (mean, deviation), (goal, wider) = (t.reshape(-1, 2, x.shape[1], 1, 1).unbind(1) for t in (before, after))
    stretch = wider.clamp(min=_LEAST_DEVIATION) / deviation.clamp(min=_LEAST_DEVIATION)
    return (x - mean) * stretch + goal


def turned(shift: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Moves of the tone (B, 2 C) by as much as `shift` (2 C,), in random directions at right angles to it."""
    drawn = torch.stack([torch.randn(len(shift), generator=g, dtype=torch.float64) for g in generators])
    along = shift.double()
    length = along.norm()
    direction = along / length.clamp(min=1e-12)
    across = drawn - (drawn @ direction)[:, None] * direction
    across = across / across.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (across * length).to(shift)
