"""Photographs in a folder, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.finding import listing
from xattn.data.folder import images_below

UNLABELLED = "unlabelled"


@datasets.register("images")
@dataclass(frozen=True)
class LooseImages(FileDataset):
    """Images anywhere below a folder, without labels: enough to compare methods on the class that is predicted.

    All have the one class `unlabelled`, so that a model of several classes does not take it for a label. Images are
    turned by their EXIF orientation.

    Args:
        root: the folder.
        split: there is one part, `"all"`.
    """

    split: str = "all"

    title: ClassVar[str] = "folder of images"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    training: ClassVar[str] = "all"
    evaluation: ClassVar[str | None] = "all"
    upright: ClassVar[bool] = True

    def _list(self) -> Index:
        paths = images_below(self.home)
        if not paths:
            raise self._error(f"expected images in '{self.home}' but found {listing(self.home)}.")
        return Index(paths, np.zeros(len(paths), np.int64), (UNLABELLED,))
