"""Photographs of individuals in three parquet files: to train on, to search with, to search in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.parquet import Parquet
from xattn.data.sample import Sample


@datasets.register("reid-parquet", "holstein-reid")
@dataclass(frozen=True)
class ReidParquet(FileDataset):
    """Individuals in `train.parquet`, `query.parquet` and `gallery.parquet`, such as the cows of Holstein re-ID.

    The columns are those of a parquet data set, with the identity in place of the label and a column of groups, the
    camera or the day. Identities are whole numbers from 0 on, the same in query and gallery.

    Args:
        root: the folder.
        split: `train`, `query` or `gallery`.
        identity: column of the identities.
        group: column of the camera or the day.
    """

    identity: str = "pid"
    group: str = "session"

    title: ClassVar[str] = "re-identification in parquet"
    source: ClassVar[str] = "https://github.com/JZM-shuimu/Cattle-ID (the photographs of Holstein re-ID)"
    splits: ClassVar[tuple[str, ...]] = ("train", "query", "gallery")
    evaluation: ClassVar[str | None] = "query"
    folders: ClassVar[tuple[str, ...]] = ("holstein-reid",)
    required: ClassVar[tuple[str, ...]] = ("train.parquet", "query.parquet", "gallery.parquet")
    sign: ClassVar[tuple[str, ...]] = required

    @cached_property
    def parquet(self) -> Parquet:
        """The file of this part."""
        return self._part(self.split)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Group of every image (n,); one number means the same group in all parts."""
        names = sorted({name for split in self.splits for name in self._part(split).column(self.group)})
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[name] for name in self.parquet.column(self.group)], np.int64)

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order."""
        return self.parquet.order(indices, generator)

    def sample(self, index: int) -> Sample:
        """Decode one image."""
        return self.parquet.sample(index)

    def _part(self, split: str) -> Parquet:
        return Parquet(self.home / f"{split}.parquet", "all", label=self.identity)

    def _files(self) -> Sequence[Path]:
        return self.parquet.files

    def _list(self) -> Index:
        return Index((), self.parquet.labels, self.parquet.classes)
