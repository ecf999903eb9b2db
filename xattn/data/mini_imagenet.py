"""mini-ImageNet: a hundred classes of ImageNet divided for few-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index, read_csv


@datasets.register("mini-imagenet")
@dataclass(frozen=True)
class MiniImageNet(FileDataset):
    """mini-ImageNet (Ravi and Larochelle 2017, Optimization as a Model for Few-Shot Learning, ICLR).

    64 classes to train on, 16 to choose by, 20 to test on. The folder holds `images` and the lists `train.csv`,
    `val.csv` and `test.csv` with the columns filename and label. The classes are those of the part, by their WordNet
    ids in alphabetical order.
    """

    title: ClassVar[str] = "mini-ImageNet"
    source: ClassVar[str] = "https://github.com/twitter-research/meta-learning-lstm (the lists; images of ImageNet)"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    folders: ClassVar[tuple[str, ...]] = ("mini-imagenet", "miniImagenet")
    required: ClassVar[tuple[str, ...]] = ("images", "train.csv", "val.csv", "test.csv")
    sign: ClassVar[tuple[str, ...]] = ("images/", "train.csv", "val.csv", "test.csv")
    annotations: ClassVar[tuple[str, ...]] = ("*.csv",)

    def _list(self) -> Index:
        rows = [row for _, row in read_csv(self.home / f"{self.split}.csv", self.title, ("filename", "label"))]
        names = sorted({row["label"] for row in rows})
        number = {name: i for i, name in enumerate(names)}
        labels = np.array([number[row["label"]] for row in rows], np.int64)
        return Index([self.home / "images" / row["filename"] for row in rows], labels, tuple(names))
