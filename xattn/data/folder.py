"""A folder with one folder of images for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.finding import SUFFIXES, as_text, listing, natural_key
from xattn.errors import DataError, unknown

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


@datasets.register("folder", "imagefolder")
@dataclass(frozen=True)
class ImageFolder(FileDataset):
    """Images in class folders, `root/cat/1.jpg`, or in parts of class folders, `root/train/cat/1.jpg`.

    Classes are the names of the folders in alphabetical order, as torchvision has them; those of the training part hold
    for all parts. Images may lie deeper inside a class folder. Images are turned by their EXIF orientation.

    Args:
        root: the folder.
        split: name of the folder of a part, or `"all"` where there are only class folders.
    """

    split: str = "all"

    title: ClassVar[str] = "image folder"
    training: ClassVar[str] = "all"
    evaluation: ClassVar[str | None] = None
    upright: ClassVar[bool] = True

    def __post_init__(self) -> None:
        parts = find_parts(self.home) or {"all": self.home}
        if self.split not in parts:
            raise unknown(f"split of the image folder '{self.home}'", self.split, parts)
        self._index  # noqa: B018  # reads the lists, so that errors come when the data set is made

    def _list(self) -> Index:
        parts = find_parts(self.home)
        here = parts.get(self.split, self.home)
        classes = class_folders(next((parts[p] for p in ("train", "training") if p in parts), here))
        names = class_folders(here)
        if not names:
            raise self._error(f"expected folders of images, one for each class, in '{here}' but found {listing(here)}.")
        strange = sorted(set(names) - set(classes))
        if strange:
            raise self._error(f"'{here}' has the class '{strange[0]}', which the training part does not have.")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            files = images_below(here / name) if name in names else []
            paths += files
            labels += [label] * len(files)
        return Index(paths, np.array(labels, np.int64), tuple(map(as_text, classes)))


def find_parts(root: Path) -> dict[str, Path]:
    """The folders of a root that are parts of a data set (`train`, `val`, ...), not classes; empty if there is none.

    A folder is a part if its name says so and it holds folders of images; a class of trains called `train` does not.
    """
    return {name: root / name for name in SPLIT_NAMES if class_folders(root / name)}


def class_folders(root: Path) -> list[str]:
    """Names of the folders of a root that hold images, in alphabetical order."""
    if not root.is_dir():
        return []
    try:
        return sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".") and _has_image(e))
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror or error}).") from None


def _has_image(folder: Path) -> bool:
    return any(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def images_below(folder: Path) -> list[Path]:
    """Files of images in a folder and below it, in natural order."""
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names if _is_image(name)]
    return sorted(files, key=natural_key)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
