"""Stanford Cars: 196 models of cars with boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.matlab import load_mat
from xattn.data.sample import Sample


@datasets.register("cars", "stanford-cars")
@dataclass(frozen=True)
class Cars(FileDataset):
    """Stanford Cars (Krause et al. 2013, 3D Object Representations, ICCV workshops): 8,144 and 8,041 images.

    Laid out as torchvision has it: `cars_train`, `cars_test`, `devkit` and `cars_test_annos_withlabels.mat`. Needs
    scipy for the annotations.
    """

    title: ClassVar[str] = "Stanford Cars"
    source: ClassVar[str] = "https://github.com/pytorch/vision/issues/7545 (which tells where the parts are)"
    folders: ClassVar[tuple[str, ...]] = ("stanford_cars",)
    required: ClassVar[tuple[str, ...]] = ("devkit/cars_meta.mat",)
    sign: ClassVar[tuple[str, ...]] = ("devkit/cars_meta.mat",)
    annotations: ClassVar[tuple[str, ...]] = ("*.mat", "devkit/*.mat")

    def _check(self) -> None:
        super()._check()
        for name in (self._annotations, f"cars_{self.split}"):
            if not (self.home / name).exists():
                raise self._error(f"expected '{self.home / name}' beside the devkit, which does not exist.")

    @property
    def _annotations(self) -> str:
        return "devkit/cars_train_annos.mat" if self.split == "train" else "cars_test_annos_withlabels.mat"

    @cached_property
    def _rows_of_mat(self) -> list[Any]:
        return list(np.atleast_1d(load_mat(self.home / self._annotations, self.title)["annotations"]))

    def _list(self) -> Index:
        meta = load_mat(self.home / "devkit" / "cars_meta.mat", self.title)
        rows = self._rows_of_mat
        folder = self.home / f"cars_{self.split}"
        folder = folder / folder.name if (folder / folder.name).is_dir() else folder  # one of the archives nests it
        return Index(
            [folder / str(row["fname"]) for row in rows],
            np.array([int(row["class"]) - 1 for row in rows], np.int64),
            tuple(str(name) for name in np.atleast_1d(meta["class_names"])),
        )

    def _annotated(self, index: int, sample: Sample) -> Sample:
        row = self._rows_of_mat[index]
        xmin, ymin, xmax, ymax = (float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
        # MATLAB counts from 1 and the last pixel is inside
        return replace(sample, boxes=np.array([[xmin - 1, ymin - 1, xmax, ymax]], np.float32))
