"""Tiny-ImageNet-200: 64 x 64 pixels, 200 classes, one box for each image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.parquet import Parquet, parquet_parts
from xattn.data.sample import Sample


@datasets.register("tiny-imagenet", "tiny-imagenet-200")
@dataclass(frozen=True)
class TinyImageNet(FileDataset):
    """Tiny-ImageNet-200 (Le and Yang 2015): 100,000 training and 10,000 validation images with a box each.

    Read from the original folders (`train/n01443537/images/...`, `val/val_annotations.txt`) or from parquet files
    (`train-*.parquet`, `val-*.parquet`, `classes.csv`). Classes are in the order of their WordNet ids in both. The
    test part has no labels and is left out.
    """

    title: ClassVar[str] = "Tiny-ImageNet"
    source: ClassVar[str] = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    evaluation: ClassVar[str | None] = "val"
    folders: ClassVar[tuple[str, ...]] = ("tiny-imagenet-200", "tiny-imagenet")
    required: ClassVar[tuple[str, ...]] = ("wnids.txt", "words.txt", "train", "val/val_annotations.txt")
    sign: ClassVar[tuple[str, ...]] = ("wnids.txt",)
    annotations: ClassVar[tuple[str, ...]] = ("*.txt", "train/*/*.txt", "val/*.txt")

    @cached_property
    def parquet(self) -> Parquet | None:
        """The parquet files, if that is what is there."""
        root = Path(self.root).expanduser()
        place = next((p for p in (root, *(root / f for f in self.folders)) if self.split in parquet_parts(p)), None)
        return None if place is None else Parquet(place, self.split)

    def fingerprint(self, *, content: bool = False) -> str:
        """A digest of what the samples depend on."""
        if self.parquet is not None:
            return self.parquet.fingerprint(content=content)
        return super().fingerprint(content=content)

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order."""
        return super().order(indices, generator) if self.parquet is None else self.parquet.order(indices, generator)

    def sample(self, index: int) -> Sample:
        """Read one sample."""
        return super().sample(index) if self.parquet is None else self.parquet.sample(index)

    def _check(self) -> None:
        if self.parquet is None:
            super()._check()

    def _list(self) -> Index:
        if self.parquet is not None:
            return Index((), self.parquet.labels, self.parquet.classes)
        wnids = sorted(row[0] for row in self._rows("wnids.txt", 1))
        words = dict(self._rows("words.txt", 2, "\t"))
        label = {wnid: i for i, wnid in enumerate(wnids)}
        files = list(self._boxes)
        of_class = [path.parts[-3] for path in files] if self.split == "train" else self._val_classes
        ids = [path.name for path in files]
        return Index(
            files, np.array([label[w] for w in of_class], np.int64), tuple(words.get(w, w) for w in wnids), ids
        )

    @cached_property
    def _val_classes(self) -> list[str]:
        return [row[1] for row in self._rows("val/val_annotations.txt", 6)]

    @cached_property
    def _boxes(self) -> dict[Path, list[int]]:
        """Image file -> xmin, ymin, xmax, ymax, the last pixel inside."""
        if self.split == "val":
            rows = self._rows("val/val_annotations.txt", 6, whole=slice(2, 6))
            return {self.home / "val" / "images" / row[0]: row[2:] for row in rows}
        boxes: dict[Path, list[int]] = {}
        for (wnid,) in sorted(self._rows("wnids.txt", 1)):
            for row in self._rows(f"train/{wnid}/{wnid}_boxes.txt", 5, whole=slice(1, 5)):
                boxes[self.home / "train" / wnid / "images" / row[0]] = row[1:]
        return boxes

    def _annotated(self, index: int, sample: Sample) -> Sample:
        xmin, ymin, xmax, ymax = self._boxes[self._index.paths[index]]
        return replace(sample, boxes=np.array([[xmin, ymin, xmax + 1, ymax + 1]], np.float32))
