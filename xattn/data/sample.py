"""One labelled image with what is known of it, and batches of them as a model sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data.preprocessing import Fit, Placement, place, preprocess
from xattn.data.scene import Scene
from xattn.errors import DataError
from xattn.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image with what is known of it.

    Coordinates are pixels of the image: x to the right, y down, 0 the outer edge of the first pixel. A box is
    (xmin, ymin, xmax, ymax) with xmax and ymax the outer edge too, so that xmax - xmin is its width.

    Args:
        id: name of the image, unique in its data set.
        image: uint8 (H, W, 3).
        label: index of the class.
        mask: bool (H, W), True on the object.
        boxes: float32 (B, 4), the boxes of the object.
        parts: name of a part -> its point (x, y), for the parts that can be seen.
        scene: of a rendered image, where its parts are and images without some of them.
    """

    id: str
    image: NDArray[np.uint8]
    label: int
    mask: NDArray[np.bool_] | None = None
    boxes: NDArray[np.float32] | None = None
    parts: Mapping[str, tuple[float, float]] | None = None
    scene: Scene[NDArray[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as a model sees them; masks and boxes went through the same resizing and cropping as the images.

    Args:
        x: normalized images (N, 3, H, W).
        target: labels, int64 (N,).
        ids: names of the images, N of them.
        masks: bool (N, 1, H, W), True on the object; None if no image of the batch has one, all False for one without.
        boxes: for each image float32 (B, 4) in pixels of `x`; None if no image of the batch has one.
        scenes: of each rendered image, its masks in pixels of `x` and its images as the model sees them; None if any
            image of the batch has none.
    """

    x: Tensor
    target: Tensor
    ids: tuple[str, ...]
    masks: Tensor | None = None
    boxes: tuple[Tensor, ...] | None = None
    scenes: tuple[Scene[Tensor], ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> Batch:
        """Some of the images, as a batch."""
        return Batch(
            x=self.x[index],
            target=self.target[index],
            ids=self.ids[index],
            masks=None if self.masks is None else self.masks[index],
            boxes=None if self.boxes is None else self.boxes[index],
            scenes=None if self.scenes is None else self.scenes[index],
        )

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """The batch on a device; options as of `Tensor.to`."""
        return dataclasses.replace(
            self,
            x=self.x.to(device, **options),
            target=self.target.to(device, **options),
            masks=None if self.masks is None else self.masks.to(device, **options),
            boxes=None if self.boxes is None else tuple(b.to(device, **options) for b in self.boxes),
        )

    def object_masks(self) -> Tensor | None:
        """`masks`, else the filled boxes, as bool (N, 1, H, W); None if there is neither."""
        if self.masks is not None or self.boxes is None:
            return self.masks
        return box_masks(self.boxes, (self.x.shape[-2], self.x.shape[-1]))


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks of filled boxes.

    Args:
        boxes: for each image (B, 4) of xmin, ymin, xmax, ymax in pixels.
        size: height and width of the masks.

    Returns:
        bool (N, 1, H, W), True where the centre of a pixel is inside a box.

    >>> box_masks([torch.tensor([[1.0, 0.0, 3.0, 1.0]])], (2, 4)).int().tolist()
    [[[[0, 1, 1, 0], [0, 0, 0, 0]]]]
    """
    masks = torch.zeros(len(boxes), 1, *size, dtype=torch.bool)
    for i, rows in enumerate(boxes):
        y = torch.arange(size[0], device=rows.device) + 0.5
        x = torch.arange(size[1], device=rows.device) + 0.5
        for xmin, ymin, xmax, ymax in rows:
            inside = ((y >= ymin) & (y < ymax))[:, None] & ((x >= xmin) & (x < xmax))[None, :]
            masks[i, 0] |= inside.to(masks.device)
    return masks.to(boxes[0].device) if len(boxes) else masks


def collate(samples: Sequence[Sample], spec: ModelSpec, *, fit: Fit | None = None) -> Batch:
    """Samples as one batch.

    Args:
        samples: at least one.
        spec: how images are preprocessed.
        fit: as in `preprocess`.
    """
    if not samples:
        raise DataError("collate: there is no sample; pass at least one.")
    target = torch.tensor([s.label for s in samples], dtype=torch.int64)
    ids = tuple(s.id for s in samples)
    x = torch.stack([preprocess(s.image, spec, fit=fit) for s in samples])
    places = [place((s.image.shape[1], s.image.shape[0]), spec, fit) for s in samples]
    masks = boxes = None
    if any(s.mask is not None for s in samples):
        empty = np.zeros(x.shape[-2:], np.bool_)
        rows = [empty if s.mask is None else p.mask(s.mask) for s, p in zip(samples, places, strict=True)]
        masks = torch.from_numpy(np.stack(rows)[:, None].copy())
    if any(s.boxes is not None for s in samples):
        none = np.zeros((0, 4), np.float32)
        moved = [p.boxes(none if s.boxes is None else s.boxes) for s, p in zip(samples, places, strict=True)]
        boxes = tuple(torch.from_numpy(m.copy()) for m in moved)
    scenes: list[Scene[Tensor]] = []
    for s, p in zip(samples, places, strict=True):
        if s.scene is not None:
            scenes.append(s.scene.mapped(partial(_mask, p), partial(preprocess, spec=spec, fit=fit)))
    return Batch(x, target, ids, masks, boxes, tuple(scenes) if len(scenes) == len(samples) else None)


def _mask(at: Placement, mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(at.mask(mask).copy())


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The smallest box around a mask (H, W), as float32 (1, 4); (0, 4) where the mask is empty.

    >>> tight_box(np.array([[False, True, True], [False, True, False]])).tolist()
    [[1.0, 0.0, 3.0, 2.0]]
    """
    if not mask.any():
        return np.zeros((0, 4), np.float32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
