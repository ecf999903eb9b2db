"""Oxford-IIIT Pet: 37 breeds of cats and dogs with trimaps and boxes of their heads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index, class_names
from xattn.data.reading import read_image
from xattn.data.sample import Sample, tight_box
from xattn.errors import DataError
from xattn.files import read_regular

FOREGROUND, BORDER = 1, 3  # of a trimap; 2 is background


@datasets.register("pets", "pet", "oxford-iiit-pet")
@dataclass(frozen=True)
class Pets(FileDataset):
    """Oxford-IIIT Pet (Parkhi et al. 2012, Cats and Dogs, CVPR): 3,680 images to train on, 3,669 to test.

    Masks come from the trimaps. Boxes surround the mask, or the head where `box="head"`: the authors drew heads only,
    and not on every image.

    Args:
        root: folder that holds `images` and `annotations`, or the one around it.
        split: `trainval` or `test`.
        border: count the strip that the authors left undecided between object and background as object.
        box: what boxes surround.
    """

    split: str = "trainval"
    border: bool = False
    box: Literal["body", "head"] = "body"

    title: ClassVar[str] = "Oxford-IIIT Pet"
    source: ClassVar[str] = "https://www.robots.ox.ac.uk/~vgg/data/pets/ (images.tar.gz and annotations.tar.gz)"
    splits: ClassVar[tuple[str, ...]] = ("trainval", "test")
    training: ClassVar[str] = "trainval"
    folders: ClassVar[tuple[str, ...]] = ("oxford-iiit-pet",)
    required: ClassVar[tuple[str, ...]] = (
        *("images", "annotations/trainval.txt", "annotations/test.txt", "annotations/trimaps"),
    )
    sign: ClassVar[tuple[str, ...]] = ("annotations/trainval.txt", "annotations/test.txt")
    annotations: ClassVar[tuple[str, ...]] = (
        "annotations/*.txt",
        "annotations/trimaps/*.png",
        "annotations/xmls/*.xml",
    )

    @cached_property
    def _names(self) -> list[tuple[str, int]]:
        """Name and label of the images of this part."""
        rows = self._rows(f"annotations/{self.split}.txt", 4, whole=slice(1, 2))
        return [(name, label - 1) for name, label, _, _ in rows]

    def _list(self) -> Index:
        breeds: dict[int, str] = {}
        for part in self.splits:  # each alone may lack a breed
            for name, label, _, _ in self._rows(f"annotations/{part}.txt", 4, whole=slice(1, 2)):
                breeds[label - 1] = " ".join(w.title() for w in name.rpartition("_")[0].split("_"))
        return Index(
            [self.home / "images" / f"{name}.jpg" for name, _ in self._names],
            np.array([label for _, label in self._names], np.int64),
            class_names(breeds, max(breeds, default=-1) + 1),
            [name for name, _ in self._names],
        )

    def _annotated(self, index: int, sample: Sample) -> Sample:
        file = self.home / "annotations" / "trimaps" / f"{sample.id}.png"
        try:
            trimap = np.asarray(read_image(file, stored=True))
        except DataError as error:
            raise self._error(f"the trimap '{file}' cannot be read ({error}).") from None
        mask = trimap == FOREGROUND
        if self.border:
            mask |= trimap == BORDER
        return replace(sample, mask=mask, boxes=tight_box(mask) if self.box == "body" else self._head(sample.id))

    def _head(self, name: str) -> NDArray[np.float32]:
        """Boxes (B, 4) of the heads; none where the authors drew none."""
        path = self.home / "annotations" / "xmls" / f"{name}.xml"
        if not path.is_file():
            return np.zeros((0, 4), np.float32)
        try:
            tree = ElementTree.fromstring(read_regular(path, 2**20))
            sides = [[float(b.findtext(s, "")) for s in ("xmin", "ymin", "xmax", "ymax")] for b in tree.iter("bndbox")]
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise self._error(f"the boxes in '{path}' are damaged ({error}).") from None
        # Counted from 1, the last pixel inside, as in Pascal VOC
        return np.array(sides, np.float32).reshape(-1, 4) - np.array([1, 1, 0, 0], np.float32)
