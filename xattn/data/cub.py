"""Caltech-UCSD Birds 200-2011: 200 kinds of birds with boxes, parts and segmentations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.reading import read_image
from xattn.data.sample import Sample


@datasets.register("cub", "cub-200", "cub-200-2011")
@dataclass(frozen=True)
class CUB(FileDataset):
    """CUB-200-2011 (Wah et al. 2011, Caltech technical report CNS-TR-2011-001): 5,994 and 5,794 images.

    Parts are the points that the annotators could see. Masks are there where the separate archive of segmentations is
    unpacked beside or inside the folder; a pixel is object if at least half of the annotators marked it.
    """

    title: ClassVar[str] = "CUB-200-2011"
    source: ClassVar[str] = "https://data.caltech.edu/records/65de6-vp158"
    folders: ClassVar[tuple[str, ...]] = ("CUB_200_2011",)
    required: ClassVar[tuple[str, ...]] = (
        *("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "bounding_boxes.txt"),
        "images",
    )
    sign: ClassVar[tuple[str, ...]] = ("image_class_labels.txt",)
    annotations: ClassVar[tuple[str, ...]] = ("*.txt", "parts/*.txt")

    @cached_property
    def segmentations(self) -> Path | None:
        """Folder of the segmentations, if they are there."""
        places = (
            self.home / "segmentations",
            self.home.parent / "segmentations",
            self.home / "CUB-200-2011-segmentations",
        )
        return next((p for p in places if p.is_dir()), None)

    def _files(self) -> list[Path]:
        return [*self._index.paths, *filter(None, map(self._mask_file, self._index.paths))]

    def _mask_file(self, image: Path) -> Path | None:
        return self.segmentations and self.segmentations / image.parent.name / f"{image.stem}.png"

    def _list(self) -> Index:
        label = {image: c - 1 for image, c in self._rows("image_class_labels.txt", 2, whole=slice(1, 2))}
        classes = [name.partition(".")[2].replace("_", " ") or name for _, name in self._rows("classes.txt", 2)]
        files = dict(self._rows("images.txt", 2))
        return Index(
            [self.home / "images" / files[image] for image in self._images],
            np.array([label[image] for image in self._images], np.int64),
            tuple(classes),
        )

    @cached_property
    def _images(self) -> list[str]:
        """Numbers of the images of this part."""
        wanted = "1" if self.split == "train" else "0"
        return [image for image, is_train in self._rows("train_test_split.txt", 2) if is_train == wanted]

    @cached_property
    def _boxes(self) -> dict[str, NDArray[np.float32]]:
        boxes = {}
        for image, x, y, width, height in self._rows("bounding_boxes.txt", 5, real=slice(1, 5)):
            boxes[image] = np.array([[x, y, x + width, y + height]], np.float32)
        return boxes

    @cached_property
    def _parts(self) -> dict[str, dict[str, tuple[float, float]]]:
        if not (self.home / "parts" / "part_locs.txt").is_file():
            return {}
        names = dict(self._rows("parts/parts.txt", 2))
        parts: dict[str, dict[str, tuple[float, float]]] = {}
        for image, part, x, y, visible in self._rows("parts/part_locs.txt", 5, real=slice(2, 4)):
            if visible == "1":
                parts.setdefault(image, {})[names[part]] = (x, y)
        return parts

    def _annotated(self, index: int, sample: Sample) -> Sample:
        image, path = self._images[index], self._index.paths[index]
        file = self._mask_file(path)
        mask = None if file is None else np.asarray(read_image(file, upright=False).convert("L")) >= 128
        return replace(sample, boxes=self._boxes[image], parts=self._parts.get(image), mask=mask)
