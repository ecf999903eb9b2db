"""Data sets in parquet files: images as bytes beside their labels and boxes."""

from __future__ import annotations

import csv
import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.finding import listing, natural_key
from xattn.data.reading import decode_image
from xattn.data.sample import Sample
from xattn.errors import DataError, needs, unknown


@dataclass(frozen=True)
class RowGroup:
    """A piece of a parquet file that is read at once.

    Args:
        file: path of the file.
        number: of the group in the file.
        start: place of its first row in the data set.
        rows: number of rows.
        size: bytes of its images.
    """

    file: Path
    number: int
    start: int
    rows: int
    size: int


@datasets.register("parquet")
@dataclass(frozen=True)
class Parquet(FileDataset):
    """Images in parquet files `train-*.parquet`, `train.parquet`, `train/*.parquet`, or in files without a part's name.

    The column of images holds file contents, as bytes or as a struct of `bytes` and `path`. Labels are integers from 0
    on. Boxes are xmin, ymin, xmax, ymax with the last pixel inside, a multiple of four numbers in each row; the column
    may be missing. Names of the classes come from `classes.csv` (columns `label` and `name`) beside the files or from
    the metadata that Hugging Face writes. Row groups are read when needed and kept in memory up to a limit.

    Args:
        root: folder of the files, or one file.
        split: how the names of the files begin, or `"all"` where they name no part.
        image: column of the images.
        label: column of the labels.
        box: column of the boxes.
        cache_mb: megabytes of images that are kept in memory.
    """

    image: str = "image"
    label: str = "label"
    box: str = "box"
    cache_mb: int = 512

    title: ClassVar[str] = "parquet"
    evaluation: ClassVar[str | None] = "val"
    annotations: ClassVar[tuple[str, ...]] = ("classes.csv",)

    def __post_init__(self) -> None:
        self._index  # noqa: B018  # reads footers and labels, so that errors come when the data set is made

    def __getstate__(self) -> dict[str, Any]:
        """Without the images in memory: a worker reads its own."""
        return {k: v for k, v in self.__dict__.items() if k != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def home(self) -> Path:
        """The folder of the files."""
        root = Path(self.root).expanduser()
        return root.parent if root.is_file() else super().home

    @cached_property
    def files(self) -> list[Path]:
        """The files of this part."""
        root = Path(self.root).expanduser()
        if root.is_file():
            return [root]
        parts = parquet_parts(self.home)
        if not parts:
            raise self._error(f"expected parquet files in '{self.home}' but found {listing(self.home)}.")
        if self.split not in parts:
            raise unknown(f"split of the parquet files in '{self.home}'", self.split, parts)
        files = parts[self.split]
        shards = {int(m[1]): int(m[2]) for f in files if (m := re.search(r"-(\d+)-of-(\d+)$", f.stem))}
        if shards and len(shards) != max(shards.values()):
            number = next(i for i in range(max(shards.values())) if i not in shards)
            raise self._error(
                f"{len(shards)} of {max(shards.values())} files of the {self.split} part are there, number {number} is "
                f"missing; '{files[0].parent}' holds {listing(files[0].parent)}."
            )
        return files

    def _files(self) -> list[Path]:
        return self.files

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order; where the images exceed the memory, random among as many row groups as it holds."""
        order = super().order(indices, generator)
        if sum(g.size for g in self._groups) <= self._limit:
            return order
        window = np.empty(len(self._groups), np.int64)
        number, size = 0, 0
        for i in torch.randperm(len(window), generator=generator).tolist():
            if size and size + self._groups[i].size > self._limit:
                number, size = number + 1, 0
            window[i] = number
            size += self._groups[i].size
        group = np.searchsorted(self._starts, np.asarray(indices)[order.numpy()], "right") - 1
        return order[torch.from_numpy(np.argsort(window[group], kind="stable"))]

    def sample(self, index: int) -> Sample:
        """Decode one image."""
        group = self._groups[int(np.searchsorted(self._starts, index, "right")) - 1]
        row = index - group.start
        columns = self._read(group)
        name = f"{group.file.stem}:{self._row_in_file(group) + row}"
        value = columns[self.image][row].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None:
            raise DataError(f"{group.file}: row {self._row_in_file(group) + row} has no image bytes.")
        boxes = columns[self.box][row].as_py() if self.box in columns else None
        pixels = np.array(decode_image(data, path or name, upright=self.box not in columns), dtype=np.uint8)
        return Sample(path or name, pixels, int(self.labels[index]), boxes=None if boxes is None else _outer(boxes))

    def _row_in_file(self, group: RowGroup) -> int:
        return group.start - next(g.start for g in self._groups if g.file == group.file)

    @property
    def _limit(self) -> int:
        return self.cache_mb * 1_000_000

    @cached_property
    def _cache(self) -> OrderedDict[RowGroup, dict[str, Any]]:
        return OrderedDict()

    def _read(self, group: RowGroup) -> dict[str, Any]:
        """Columns of a row group, from memory if it was read before."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        names = [n for n in (self.image, self.box) if n in self._columns]
        try:
            # No threads: they would not survive the fork of a loader's workers.
            table = self._open(group.file).read_row_group(group.number, columns=names, use_threads=False)
        except (OSError, ValueError) as error:
            raise self._error(f"row group {group.number} of '{group.file}' is damaged ({_line(error)}).") from None
        self._cache[group] = {n: table.column(n) for n in names}
        while len(self._cache) > 1 and sum(g.size for g in self._cache) > self._limit:
            self._cache.popitem(last=False)
        return self._cache[group]

    def _open(self, path: Path) -> Any:
        needs("data", "a parquet data set")
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        except (OSError, ValueError) as error:
            raise self._error(
                f"'{path}' ({path.stat().st_size:,} bytes) is not a complete parquet file ({_line(error)})."
            ) from None

    @cached_property
    def _columns(self) -> list[str]:
        return list(self._open(self.files[0]).schema_arrow.names)

    @cached_property
    def _groups(self) -> list[RowGroup]:
        groups: list[RowGroup] = []
        start = 0
        for path in self.files:
            meta = self._open(path).metadata
            for number in range(meta.num_row_groups):
                part = meta.row_group(number)
                rows, size = part.num_rows, part.total_byte_size
                groups.append(RowGroup(path, number, start, rows, size))
                start += rows
        return groups

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Place of the first row of each row group."""
        return np.array([group.start for group in self._groups], np.int64)

    def _list(self) -> Index:
        import pyarrow

        for name in (self.image, self.label):
            if name not in self._columns:
                raise unknown(f"column of '{self.files[0]}'", name, self._columns)
        labels: list[NDArray[np.int64]] = []
        for path in self.files:
            file = self._open(path)
            if self.label not in file.schema_arrow.names or self.image not in file.schema_arrow.names:
                raise self._error(f"'{path}' has other columns than '{self.files[0]}': {file.schema_arrow.names}.")
            try:
                column = file.read(columns=[self.label], use_threads=False).column(0)
            except (OSError, ValueError) as error:
                raise self._error(f"the labels of '{path}' are damaged ({_line(error)}).") from None
            if not pyarrow.types.is_integer(column.type) or column.null_count:
                raise self._error(
                    f"column '{self.label}' of '{path}' holds {column.type}; expected integers from 0 on."
                )
            labels.append(column.to_numpy().astype(np.int64))
        joined = np.concatenate(labels)
        names = self._class_names() or tuple(str(i) for i in range(int(joined.max(initial=-1)) + 1))
        return Index((), joined, names)

    def _class_names(self) -> tuple[str, ...]:
        """Names from `classes.csv`, else from the metadata of the file, else none."""
        path = self.home / "classes.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                rows = {int(row["label"]): row["name"] for row in csv.DictReader(stream)}
            return tuple(rows.get(i, str(i)) for i in range(max(rows, default=-1) + 1))
        metadata = self._open(self.files[0]).schema_arrow.metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(features.get(self.label, {}).get("names", ()))


def parquet_parts(root: Path) -> dict[str, list[Path]]:
    """Parquet files by the part that they name; `"all"` holds those that name none.

    Files are looked for in the folder, in its folder `data` and in folders called like a part.
    """
    parts: dict[str, list[Path]] = {}
    for folder in (root, root / "data"):
        for path in sorted(folder.glob("*.parquet"), key=natural_key):
            match = re.match(r"(train|training|val|valid|validation|test|testing)(?=$|[-_.])", path.stem)
            parts.setdefault(match[1] if match else "all", []).append(path)
        for name in ("train", "val", "valid", "validation", "test"):
            files = sorted((folder / name).glob("*.parquet"), key=natural_key)
            if files:
                parts.setdefault(name, []).extend(files)
    return parts


def _outer(boxes: Any) -> NDArray[np.float32]:
    """Boxes whose last pixel is inside, as boxes of outer edges."""
    return np.array(boxes, np.float32).reshape(-1, 4) + np.array([0, 0, 1, 1], np.float32)


def _line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0].rstrip(".")
