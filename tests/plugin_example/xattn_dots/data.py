"""A data set: a sequence of samples that are made, or read, when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn.data.dataset import Dataset
from xattn.data.sample import Sample


@dataclass(frozen=True)
class Dots(Dataset):
    """A bright dot in the left or in the right half of a dark image (an example, 2026).

    Args:
        length: number of images.
        radius: of the dot, in pixels.
    """

    length: int = 8
    radius: int = 3

    @property
    def classes(self) -> tuple[str, ...]:
        return ("left", "right")

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.arange(self.length, dtype=np.int64) % 2

    def sample(self, index: int) -> Sample:
        label, random = int(self.labels[index]), np.random.default_rng(index)
        y, x = random.integers(self.radius, 32 - self.radius), random.integers(self.radius, 16 - self.radius)
        down, across = np.indices((32, 32))
        mask = (down - y) ** 2 + (across - x - 16 * label) ** 2 <= self.radius**2
        image = np.where(mask[..., None], 250, random.integers(0, 60, (32, 32, 3))).astype(np.uint8)
        return Sample(f"dots-{index}", image, label, mask=mask)
