"""A rendered image of which parts can be taken away for real: what is where, and what it looks like without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Pixels = TypeVar("Pixels")
Other = TypeVar("Other")


@dataclass(frozen=True, eq=False)
class Scene(Generic[Pixels]):
    """What is known of a rendered image.

    Args:
        parts: names of the parts of the object; other names in `masks` are of what is beside it.
        masks: where each is, bool (H, W) in pixels of the image.
        lacking: what is missing -> the image without it, uint8 (H, W, 3), or (C, H, W) as a model sees it.
        shared: for each other class the parts that the object has in common with it.
    """

    parts: tuple[str, ...]
    masks: Mapping[str, Pixels]
    lacking: Mapping[frozenset[str], Pixels]
    shared: Mapping[int, frozenset[str]]

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of what is beside the object."""
        return tuple(name for name in self.masks if name not in self.parts)

    def mapped(self, mask: Callable[[Pixels], Other], image: Callable[[Pixels], Other]) -> Scene[Other]:
        """The scene with its masks and its images changed."""
        masks = {name: mask(m) for name, m in self.masks.items()}
        return Scene(self.parts, masks, {gone: image(x) for gone, x in self.lacking.items()}, self.shared)
