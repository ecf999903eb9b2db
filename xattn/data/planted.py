"""Shortcuts planted in the images of one class: the ground truth for methods that are to find them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.dataset import Dataset
from xattn.data.opening import open_dataset
from xattn.data.sample import Sample, tight_box
from xattn.errors import ParameterError
from xattn.schema import Range, check_fields

Kind = Literal["mark", "frame", "tint", "tag"]
_MOST = 10**7
_TINT = 0.35  # opacity of a tint of strength 1
_COLOURS = {"mark": (230, 40, 200), "frame": (30, 120, 220), "tint": (255, 150, 40)}
_PAPER, _INK = (250, 250, 245), (15, 15, 20)

# Sides in shares of the shorter side of the image.
_MARK = 1 / 8
_FRAME = 1 / 16
_TAG = (5 / 32, 3 / 8)
_MARGIN = 1 / 16


@datasets.register("planted")
@dataclass(frozen=True)
class Planted(Dataset):
    """Another data set in which a share of the images of one class carries a mark that has nothing to do with it.

    `"mark"`: a small violet disk near the upper right corner. `"frame"`: a blue edge. `"tint"`: a warm cast over the
    whole image. `"tag"`: white paper with dark bars near the lower left corner, as a stamp or a line of text. `moving`
    puts mark and tag anywhere in the image. A network that learns from such images can know the class by the mark, so
    that what it relies on is known.

    Masks and boxes stay those of the object, unless `truth` asks for the mark's. `marked` tells which images carry the
    mark, `mask_of` where. The marked images of a smaller share are among those of a larger one, and the place in an
    image does not depend on the other parameters.

    Args:
        root: what is read, as `xattn.data.open_dataset` takes it: a folder, or `NAME:FOLDER`.
        split: part of it, as there.
        kind: what is planted.
        share: of the images of the class that carry it; rounded to whole images.
        strength: opacity in (0, 1]; a tint at full strength covers 35 %.
        label: index of the class.
        elsewhere: share of the images of each other class that carry it too; where it equals `share` the mark tells
            nothing.
        moving: at another place in each image; for mark and tag.
        seed: of the choice of images and places.
        class_count: the first so many classes only; 0 for all.
        skip: leave out so many images of each class, the first ones, so that two parts can be told apart.
        per_class: so many images of each class at most; 0 for all.
        truth: whether masks and boxes of samples are those of the object or those of the mark (none is an empty mask).

    Raises:
        ParameterError: for a value out of range, or a frame or tint that is to move.
    """

    root: str | Path
    split: str = "train"
    kind: Kind = "mark"
    share: Annotated[float, Range(0, 1)] = 0.5
    strength: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    label: Annotated[int, Range(0, _MOST)] = 0
    elsewhere: Annotated[float, Range(0, 1)] = 0.0
    moving: bool = False
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    class_count: Annotated[int, Range(0, _MOST)] = 0
    skip: Annotated[int, Range(0, _MOST)] = 0
    per_class: Annotated[int, Range(0, _MOST)] = 0
    truth: Literal["object", "mark"] = "object"

    def __post_init__(self) -> None:
        check_fields(self, "planted")
        if self.moving and self.kind not in ("mark", "tag"):
            raise ParameterError(f"planted: a {self.kind} covers the image and cannot move; leave out moving.")
        have = len(self.whole.classes)
        if self.class_count > have:
            raise ParameterError(f"planted: class_count is {self.class_count} but '{self.root}' has {have} classes.")
        if self.label >= len(self.classes):
            raise ParameterError(
                f"planted: label is {self.label} but there are {len(self.classes)} classes, from 0 on."
            )
        if not len(self.places):
            most = int(np.bincount(self.whole.labels, minlength=1).max())
            raise ParameterError(f"planted: skip={self.skip} leaves no image; a class has at most {most}.")

    @cached_property
    def whole(self) -> Dataset:
        """The images without the mark, all of the part."""
        return open_dataset(self.root, self.split)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Place in `whole` of each sample (n,), in its order."""
        labels = self.whole.labels
        end = self.skip + self.per_class if self.per_class else len(labels)
        members = [np.flatnonzero(labels == c)[self.skip : end] for c in range(len(self.classes))]
        return np.sort(np.concatenate([*members, np.zeros(0, np.int64)])).astype(np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the first ones where fewer are asked for."""
        return self.whole.classes[: self.class_count or None]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return self.whole.labels[self.places]

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Those of what is read."""
        groups = self.whole.groups
        return None if groups is None else groups[self.places]

    @cached_property
    def marked(self) -> NDArray[np.bool_]:
        """Whether each sample carries the mark (n,)."""
        chosen = np.zeros(len(self.places), np.bool_)
        for c in range(len(self.classes)):
            members = np.flatnonzero(self.labels == c)
            share = self.share if c == self.label else self.elsewhere
            order = np.random.default_rng([self.seed, c]).permutation(members)
            chosen[order[: round(share * len(members))]] = True
        return chosen

    def sample(self, index: int) -> Sample:
        """Read one sample and plant the mark where it carries it."""
        sample = self.whole[int(self.places[index])]
        image, mask = self._planted(index, sample.image)
        if self.truth == "object":
            return replace(sample, image=image)
        return replace(sample, image=image, mask=mask, boxes=tight_box(mask), parts=None)

    def mask_of(self, index: int) -> NDArray[np.bool_]:
        """Pixels of a sample (H, W) that the mark changes; none where it carries none."""
        return self._planted(index, self.whole[int(self.places[index])].image)[1]

    def without(self) -> Planted:
        """The same images in the same order, none with a mark."""
        return replace(self, share=0.0, elsewhere=0.0)

    def everywhere(self) -> Planted:
        """The same images in the same order, each with a mark."""
        return replace(self, share=1.0, elsewhere=1.0)

    def _planted(self, index: int, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        if not self.marked[index]:
            return image, np.zeros(image.shape[:2], np.bool_)
        at = None
        if self.moving:
            generator = np.random.default_rng([self.seed, len(self.classes), int(self.places[index])])
            at = (float(generator.random()), float(generator.random()))
        return plant(image, self.kind, self.strength, at)

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order that suits what is read."""
        return self.whole.order(self.places[indices], generator)

    def fingerprint(self, *, content: bool = False) -> str:
        """A digest of what is read and of the parameters."""
        own = super().fingerprint(content=content)
        return hashlib.blake2b(f"{own} {self.whole.fingerprint(content=content)}".encode(), digest_size=16).hexdigest()


def plant(
    image: NDArray[np.uint8], kind: Kind, strength: float = 1.0, at: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image with a mark, and the pixels that it changed.

    Args:
        image: uint8 (H, W, 3); it is not changed.
        kind: what is planted.
        strength: opacity in (0, 1].
        at: mark and tag: the place, from (0, 0) for the upper left corner to (1, 1) for the lower right one; None is
            the fixed place of the kind.

    Returns:
        The image (H, W, 3) and the mask, bool (H, W).
    """
    pattern, opacity = _pattern(image.shape[0], image.shape[1], kind, at)
    alpha = (strength * opacity)[:, :, None]
    mixed = np.rint((1 - alpha) * image + alpha * pattern).astype(np.uint8)
    return mixed, (mixed != image).any(axis=2)


def _pattern(
    height: int, width: int, kind: Kind, at: tuple[float, float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Colours (H, W, 3) and opacity (H, W) of what is planted, at full strength."""
    short = min(height, width)
    colours: NDArray[Any] = np.zeros((height, width, 3))
    opacity = np.zeros((height, width))
    if kind == "tint":
        colours[:] = _COLOURS[kind]
        opacity[:] = _TINT
        return colours, opacity
    if kind == "frame":
        edge = max(1, round(_FRAME * short))
        colours[:] = _COLOURS[kind]
        opacity[:] = 1
        opacity[edge:-edge, edge:-edge] = 0
        return colours, opacity
    margin = round(_MARGIN * short)
    if kind == "mark":
        side = min(short, max(2, round(_MARK * short)))
        top, left = _place(height - side, width - side, at, (margin, width - side - margin))
        offset = np.arange(side) - (side - 1) / 2
        colours[:] = _COLOURS[kind]
        disk = offset[:, None] ** 2 + offset[None, :] ** 2 <= (side / 2) ** 2
        opacity[top : top + side, left : left + side] = disk
        return colours, opacity
    rows, columns = (min(short, max(3, round(share * short))) for share in _TAG)
    top, left = _place(height - rows, width - columns, at, (height - rows - margin, margin))
    paper = np.empty((rows, columns, 3))
    paper[:] = _PAPER
    for column in range(1, columns - 1):
        if column % 4 in (1, 2):  # bars of two pixels, two apart
            paper[1 : rows - 1, column] = _INK
    colours[top : top + rows, left : left + columns] = paper
    opacity[top : top + rows, left : left + columns] = 1
    return colours, opacity


def _place(rows: int, columns: int, at: tuple[float, float] | None, fixed: tuple[int, int]) -> tuple[int, int]:
    """Top and left of something that has this much room: at a fixed place, or at shares of the room across and down."""
    if at is None:
        return max(0, fixed[0]), max(0, fixed[1])
    return round(at[1] * rows), round(at[0] * columns)
