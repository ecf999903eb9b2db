"""Caltech-101: objects of 101 classes with drawn outlines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.finding import natural_key
from xattn.data.folder import class_folders
from xattn.data.matlab import load_mat
from xattn.data.sample import Sample

BACKGROUND = "BACKGROUND_Google"
# The annotations of four classes lie in folders of another name.
_ANNOTATION_FOLDERS = {
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
    "airplanes": "Airplanes_Side_2",
}


@datasets.register("caltech101", "caltech")
@dataclass(frozen=True)
class Caltech101(FileDataset):
    """Caltech-101 (Fei-Fei et al. 2004, CVPR workshops): 8,677 images, with a mask from a drawn outline each.

    There is no official division into parts: use `xattn.data.dataset.split`. The class of background images is left
    out, as torchvision does. The masks need scipy; without the folder `Annotations` there are none.
    """

    split: str = "all"

    title: ClassVar[str] = "Caltech-101"
    source: ClassVar[str] = "https://data.caltech.edu/records/mzrjq-6wc02"
    splits: ClassVar[tuple[str, ...]] = ("all",)
    training: ClassVar[str] = "all"
    evaluation: ClassVar[str | None] = None
    folders: ClassVar[tuple[str, ...]] = ("caltech101", "caltech-101")
    required: ClassVar[tuple[str, ...]] = ("101_ObjectCategories",)
    sign: ClassVar[tuple[str, ...]] = ("101_ObjectCategories/",)
    annotations: ClassVar[tuple[str, ...]] = ("Annotations/*/*.mat",)

    def _list(self) -> Index:
        base = self.home / "101_ObjectCategories"
        classes = [name for name in class_folders(base) if name != BACKGROUND]
        files = [(p, i) for i, c in enumerate(classes) for p in sorted((base / c).glob("*.jpg"), key=natural_key)]
        return Index([p for p, _ in files], np.array([i for _, i in files], np.int64), tuple(classes))

    def _annotated(self, index: int, sample: Sample) -> Sample:
        path = self._index.paths[index]
        annotations = self.home / "Annotations"
        if not annotations.is_dir():
            return sample
        folder = _ANNOTATION_FOLDERS.get(path.parent.name, path.parent.name)
        data = load_mat(annotations / folder / f"{path.stem.replace('image', 'annotation')}.mat", self.title)
        try:
            ymin, ymax, xmin, xmax = (float(v) for v in data["box_coord"])
            outline = np.asarray(data["obj_contour"], np.float64).reshape(2, -1)
        except (KeyError, ValueError, TypeError) as error:
            raise self._error(f"the annotation of '{path}' is damaged ({error!r}).") from None
        # Points of the outline are relative to the box; MATLAB counts from 1 and the last pixel is inside.
        mask = fill(outline + np.array([[xmin - 1], [ymin - 1]]), (sample.image.shape[0], sample.image.shape[1]))
        return replace(sample, mask=mask, boxes=np.array([[xmin - 1, ymin - 1, xmax, ymax]], np.float32))


def fill(outline: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The inside of a polygon.

    Args:
        outline: points (2, n), x first.
        size: height and width.

    Returns:
        bool (height, width).
    """
    canvas = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in outline.T], fill=1, outline=1)
    return np.array(canvas, dtype=np.bool_)
