"""Two images that differ in one quarter, and whether maps of them do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pair(size: tuple[int, int], channels: int = 3) -> Tensor:
    """Two images (2, C, H, W) that are the same but for the lower left quarter."""
    x = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)
    h, w = size[0] // 2, size[1] // 2
    x[1, :, h:, :w] = 2 * torch.randn(channels, size[0] - h, w, generator=torch.Generator().manual_seed(4))
    return x


def moved(maps: Tensor) -> bool:
    """Whether the lower left quarter of the first of two maps differs more from the second than the other quarters."""
    change = nn.functional.interpolate((maps[1:] - maps[:1]).abs(), (64, 64), mode="area")[0, 0]
    inside = change[32:, :32].mean()
    return bool(inside > max(change[:32, :32].mean(), change[:32, 32:].mean(), change[32:, 32:].mean()))
