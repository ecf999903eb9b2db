"""CIFAR-FS: the classes of CIFAR-100 divided for few-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index, read_csv
from xattn.data.finding import SUFFIXES, natural_key
from xattn.data.parquet import Parquet, parquet_parts
from xattn.data.sample import Sample

_LISTS = "splits/bertinetto"


class _Shards(Parquet):
    """The shards that are there; some of them are a fair sample."""

    complete: ClassVar[bool] = False


@datasets.register("cifar-fs")
@dataclass(frozen=True)
class CifarFS(FileDataset):
    """CIFAR-FS (Bertinetto et al. 2019, arXiv:1805.08136): 64 classes to train on, 16 to choose by, 20 to test on.

    Read from the authors' folders (`data/apple/...`, `splits/bertinetto/train.txt`) or from parquet files
    (`train-*.parquet`, `classes.csv` with the columns label, name and split), of which some shards will do. The classes
    are those of the part, in alphabetical order.
    """

    title: ClassVar[str] = "CIFAR-FS"
    source: ClassVar[str] = "https://github.com/bertinetto/r2d2 (cifar100.zip)"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    folders: ClassVar[tuple[str, ...]] = ("cifar100", "cifar-fs")
    required: ClassVar[tuple[str, ...]] = ("data", *(f"{_LISTS}/{part}.txt" for part in ("train", "val", "test")))
    sign: ClassVar[tuple[str, ...]] = (f"{_LISTS}/train.txt",)
    annotations: ClassVar[tuple[str, ...]] = (f"{_LISTS}/*.txt",)

    @cached_property
    def parquet(self) -> Parquet | None:
        """The parquet files, if that is what is there."""
        root = Path(self.root).expanduser()
        place = next((p for p in (root, *(root / f for f in self.folders)) if self.split in parquet_parts(p)), None)
        return None if place is None else _Shards(place, self.split)

    def fingerprint(self, *, content: bool = False) -> str:
        """A digest of what the samples depend on."""
        if self.parquet is None:
            return super().fingerprint(content=content)
        return self.parquet.fingerprint(content=content)

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order."""
        return super().order(indices, generator) if self.parquet is None else self.parquet.order(indices, generator)

    def sample(self, index: int) -> Sample:
        """Read one sample."""
        if self.parquet is None:
            return super().sample(index)
        return replace(self.parquet.sample(index), label=int(self.labels[index]))

    def _files(self) -> Sequence[Path]:
        return self._index.paths if self.parquet is None else self.parquet.files

    def _check(self) -> None:
        if self.parquet is None:
            super()._check()

    def _list(self) -> Index:
        if self.parquet is not None:
            return self._of_parquet(self.parquet)
        names = sorted(row[0] for row in self._rows(f"{_LISTS}/{self.split}.txt", 1))
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            folder = self.home / "data" / name
            files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
            paths += sorted(files, key=natural_key)
            labels += [label] * len(files)
        return Index(paths, np.array(labels, np.int64), tuple(names))

    def _of_parquet(self, parquet: Parquet) -> Index:
        path = parquet.home / "classes.csv"
        rows = [row for _, row in read_csv(path, self.title, ("label", "name", "split")) if row["split"] == self.split]
        names = sorted(row["name"] for row in rows)
        label = {int(row["label"]): names.index(row["name"]) for row in rows}
        strange = sorted(set(parquet.labels.tolist()) - set(label))
        if strange:
            raise self._error(f"the {self.split} files hold class {strange[0]}, which '{path}' has in another part.")
        return Index((), np.array([label[c] for c in parquet.labels.tolist()], np.int64), tuple(names))
