"""FGVC-Aircraft: 100 variants of aircraft with boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.sample import Sample

BANNER = 20
_LISTS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


@datasets.register("aircraft", "fgvc-aircraft")
@dataclass(frozen=True)
class Aircraft(FileDataset):
    """FGVC-Aircraft 2013b (Maji et al. 2013, arXiv:1306.5151): 10,000 images in four parts of known sizes.

    The paper trains on `trainval`. Every photograph ends in a banner of 20 rows with its owner's name, which the
    authors ask to cut off; it is cut off unless `banner`.

    Args:
        root: folder that holds `data`, or the one around it.
        split: `train`, `val`, `trainval` or `test`.
        level: what a class is: `variant` (100), `family` (70) or `manufacturer` (30).
        banner: keep the banner.
    """

    level: Literal["variant", "family", "manufacturer"] = "variant"
    banner: bool = False

    title: ClassVar[str] = "FGVC-Aircraft"
    source: ClassVar[str] = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "trainval", "test")
    training: ClassVar[str] = "trainval"
    folders: ClassVar[tuple[str, ...]] = ("fgvc-aircraft-2013b",)
    required: ClassVar[tuple[str, ...]] = ("data/images", "data/variants.txt", "data/images_box.txt")
    sign: ClassVar[tuple[str, ...]] = ("data/images_box.txt",)
    annotations: ClassVar[tuple[str, ...]] = ("data/*.txt",)

    def _list(self) -> Index:
        classes = [row[0] for row in self._rows(f"data/{_LISTS[self.level]}", 1)]
        rows = self._rows(f"data/images_{self.level}_{self.split}.txt", 2)
        label = {name: i for i, name in enumerate(classes)}
        return Index(
            [self.home / "data" / "images" / f"{image}.jpg" for image, _ in rows],
            np.array([label[name] for _, name in rows], np.int64),
            tuple(classes),
            [image for image, _ in rows],
        )

    @cached_property
    def _boxes(self) -> dict[str, list[int]]:
        """Image -> xmin, ymin, xmax, ymax, counted from 1, the last pixel inside."""
        return {image: sides for image, *sides in self._rows("data/images_box.txt", 5, whole=slice(1, 5))}

    def _annotated(self, index: int, sample: Sample) -> Sample:
        xmin, ymin, xmax, ymax = self._boxes[sample.id]
        image = sample.image if self.banner else sample.image[:-BANNER]
        box = np.array([[xmin - 1, ymin - 1, xmax, min(ymax, image.shape[0])]], np.float32)
        return replace(sample, image=image, boxes=box)
