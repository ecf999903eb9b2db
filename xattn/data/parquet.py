"""Data sets in parquet files: images as bytes beside their labels and boxes."""

from __future__ import annotations

import os
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index, class_names, class_number, read_csv
from xattn.data.finding import listing, natural_key
from xattn.data.reading import decode_image
from xattn.data.sample import Sample
from xattn.errors import DataError, needs, unknown
from xattn.schema import check, read_json

GROUP_LIMIT = 2**30  # bytes of a row group in memory, unless `cache_mb` allows more
ROW_LIMIT = 50_000_000  # labels are kept in memory
METADATA_LIMIT = 16 * 2**20  # bytes
_FIELDS = ("bytes", "path")


@dataclass(frozen=True)
class RowGroup:
    """A piece of a parquet file that is read at once.

    Args:
        file: path of the file.
        number: of the group in the file.
        start: place of its first row in the data set.
        rows: number of rows.
        size: bytes of its images.
        first: number of its first row in the file.
    """

    file: Path
    number: int
    start: int
    rows: int
    size: int
    first: int = 0


@datasets.register("parquet")
@dataclass(frozen=True)
class Parquet(FileDataset):
    """Images in parquet files `train-*.parquet`, `train.parquet`, `train/*.parquet`, or in files without a part's name.

    The column of images holds file contents, as bytes or as a struct of `bytes` and `path`. Labels are integers from 0
    on. Boxes are xmin, ymin, xmax, ymax with the last pixel inside, a multiple of four numbers in each row; masks are
    pictures of the image's size, not black on the object. Either column may be missing. Names of the classes come from
    `classes.csv` (columns `label` and `name`) beside the files or from the metadata that Hugging Face writes. Row
    groups are read when needed and kept in memory up to a limit.
    The id of a sample is its path where no other row has it, else path, file and row.

    Args:
        root: folder of the files, or one file.
        split: how the names of the files begin, or `"all"` where they name no part.
        image: column of the images.
        label: column of the labels.
        box: column of the boxes.
        mask: column of the masks.
        cache_mb: megabytes of images that are kept in memory.
    """

    image: str = "image"
    label: str = "label"
    box: str = "box"
    mask: str = field(default="mask", metadata={"later": True})
    cache_mb: int = 512

    title: ClassVar[str] = "parquet"
    complete: ClassVar[bool] = True
    """Whether all shards that the names of the files count have to be there."""
    evaluation: ClassVar[str | None] = "val"
    annotations: ClassVar[tuple[str, ...]] = ("classes.csv",)
    # pyarrow's own errors are kin of these.
    damage: ClassVar[tuple[type[Exception], ...]] = (
        *(OSError, ValueError, LookupError, TypeError, NotImplementedError, MemoryError, OverflowError, RuntimeError),
    )

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
        shards: dict[tuple[str, int], set[int]] = {}
        for file in files:
            if match := re.fullmatch(r"(.*)-([0-9]+)-of-([0-9]+)", file.stem):
                shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
        for (_, total), numbers in shards.items() if self.complete else ():
            missing = next(i for i in range(len(numbers) + 1) if i not in numbers)
            if len(numbers) != total or missing != total:
                raise self._error(
                    f"{len(numbers)} of {total} files of the {self.split} part are there, number {missing} is missing; "
                    f"'{files[0].parent}' holds {listing(files[0].parent)}."
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
        number = group.first + row
        columns = self._read(group)
        data = columns["bytes"][row].as_py()
        if data is None:
            raise DataError(f"{group.file}: row {number} has no image bytes.")
        path = columns["path"][row].as_py() if "path" in columns else None
        name = f"{self._stems[group.file]}:{number}"
        if path:
            # Hugging Face keeps the last part of a path only, so that images of two classes may share it
            name = path.decode("utf-8", "replace") + (f"#{name}" if path in self._repeated else "")
        upright = "box" not in columns and "mask" not in columns
        pixels = np.array(decode_image(data, name, upright=upright), dtype=np.uint8)
        mask = self._mask(columns["mask"][row].as_py(), name, pixels.shape[:2]) if "mask" in columns else None
        boxes = columns["box"][row].as_py() if "box" in columns else None
        try:
            edges = None if boxes is None else _outer(boxes)
        except (ValueError, TypeError, OverflowError):
            raise self._error(
                f"row {number} of '{group.file}': column '{self.box}' must hold four finite numbers a box but holds "
                f"{str(boxes)[:60]}."
            ) from None
        return Sample(name, pixels, int(self.labels[index]), mask=mask, boxes=edges)

    def _mask(self, data: bytes | None, name: str, sides: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """Where the image of a mask is not black; None where a row has none."""
        if data is None:
            return None
        pixels = np.asarray(decode_image(data, f"the mask of '{name}'", upright=False))
        mask: NDArray[np.bool_] = pixels.max(axis=2) > 0
        if mask.shape != sides:
            has = " and ".join(f"{h} x {w}" for h, w in (mask.shape, sides))
            raise self._error(f"the mask and the image of '{name}' have other sizes: {has}.")
        return mask

    def column(self, name: str) -> list[Any]:
        """Values of a further column, one for each sample, without reading an image.

        Raises:
            UnknownNameError: if there is no such column.
            DataError: if it lacks values.
        """
        if name not in self._columns:
            raise unknown(f"column of '{self.files[0]}'", name, self._columns)
        values: list[Any] = []
        for path in self.files:
            with self._damage(f"column '{name}' of '{path}' is damaged"):
                values += self._open(path).read(columns=[name], use_threads=False).column(0).to_pylist()
        if None in values:
            raise self._error(f"column '{name}' in '{self.home}' lacks the value of row {values.index(None)}.")
        return values

    @cached_property
    def _stems(self) -> dict[Path, str]:
        """What the rows of a file are called by: its name, with its folder where that is not enough."""
        once = Counter(file.stem for file in self.files)
        return {f: f.stem if once[f.stem] == 1 else os.path.relpath(f.with_suffix(""), self.home) for f in self.files}

    @cached_property
    def _repeated(self) -> frozenset[bytes]:
        """Paths of more than one row of this part."""
        import pyarrow
        import pyarrow.compute

        column = f"{self.image}.path"
        with self._damage("the paths of the images are damaged"):
            tables = [self._open(file).read(columns=[column], use_threads=False) for file in self.files]
            paths = pyarrow.chunked_array([c for t in tables for c in _field(t.column(0), "path").chunks], "binary")
            counts = pyarrow.compute.value_counts(paths)
            often = counts.filter(pyarrow.compute.greater(counts.field("counts"), 1))
            return frozenset(often.field("values").to_pylist())

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
        import pyarrow

        limit = max(self._limit, GROUP_LIMIT)
        names = [n for n in (self.image, self.box, self.mask) if n in self._columns]
        batches, size = [], 0
        with self._damage(f"row group {group.number} of '{group.file}' is damaged"):
            file = self._open(group.file)
            # Few rows at a time: where values repeat, the file and its footer do not tell how many bytes they become.
            # No threads: they would not survive the fork of a loader's workers.
            step = max(1, min(1024, limit // max(1, group.size)))
            if group.size <= limit:
                for batch in file.iter_batches(step, row_groups=[group.number], columns=names, use_threads=False):
                    batches.append(batch)
                    size += batch.nbytes
                    if size > limit:
                        break
            if max(size, group.size) > limit:
                raise self._error(
                    f"row group {group.number} of '{group.file}' takes more than {limit:,} bytes in memory; write the "
                    "file with fewer rows a group, or raise cache_mb."
                )
            table = pyarrow.Table.from_batches(batches)
            if len(table) != group.rows:
                raise self._error(
                    f"row group {group.number} of '{group.file}' has {len(table)} rows, not {group.rows}."
                )
            columns = {"bytes": table.column(self.image)}
            if pyarrow.types.is_struct(columns["bytes"].type):
                columns = {f.name: _field(columns["bytes"], f.name) for f in columns["bytes"].type if f.name in _FIELDS}
            if self.box in names:
                columns["box"] = table.column(self.box)
            if self.mask in names:
                mask = table.column(self.mask)
                columns["mask"] = _field(mask, "bytes") if pyarrow.types.is_struct(mask.type) else mask
        self._cache[group] = columns
        while len(self._cache) > 1 and sum(g.size for g in self._cache) > self._limit:
            self._cache.popitem(last=False)
        return columns

    def _open(self, path: Path) -> Any:
        needs("data", "a parquet data set")
        import pyarrow.parquet

        if not path.is_file():
            raise self._error(f"'{path}' is no regular file.")
        with self._damage(f"'{path}' ({path.stat().st_size:,} bytes) is not a complete parquet file"):
            return pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False, page_checksum_verification=True)

    @cached_property
    def _columns(self) -> list[str]:
        return list(self._open(self.files[0]).schema_arrow.names)

    @cached_property
    def _groups(self) -> list[RowGroup]:
        groups: list[RowGroup] = []
        start = 0
        for path in self.files:
            meta = self._open(path).metadata
            first = 0
            for number in range(meta.num_row_groups):
                part = meta.row_group(number)
                rows, size = part.num_rows, part.total_byte_size
                if rows < 0 or size < 0 or start + rows > ROW_LIMIT:
                    raise self._error(
                        f"'{path}' has {rows:,} rows in one group; at most {ROW_LIMIT:,} in all are read."
                    )
                groups.append(RowGroup(path, number, start, rows, size, first))
                start += rows
                first += rows
        return groups

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Place of the first row of each row group."""
        return np.array([group.start for group in self._groups], np.int64)

    def _list(self) -> Index:
        for name in (self.image, self.label):
            if name not in self._columns:
                raise unknown(f"column of '{self.files[0]}'", name, self._columns)
        rows = sum(group.rows for group in self._groups)
        labels: list[NDArray[np.int64]] = []
        for path in self.files:
            file = self._open(path)
            self._check_columns(path, file.schema_arrow)
            with self._damage(f"the labels of '{path}' are damaged"):
                column = file.read(columns=[self.label], use_threads=False).column(0)
                if column.null_count:
                    raise self._error(
                        f"column '{self.label}' of '{path}' lacks {column.null_count:,}; expected integers."
                    )
                labels.append(column.cast("int64").to_numpy())
        joined = np.concatenate(labels)
        if len(joined) != rows:
            raise self._error(f"the files in '{self.home}' hold {len(joined):,} labels for {rows:,} rows.")
        names = self._class_names() or class_names({}, int(joined.max(initial=-1)) + 1, "{}")
        return Index((), joined, names)

    def _check_columns(self, path: Path, schema: Any) -> None:
        """Raise a DataError if a column of a file is missing or holds something else."""
        import pyarrow

        kinds = pyarrow.types
        if not {self.image, self.label} <= set(schema.names):
            raise self._error(f"'{path}' has other columns than '{self.files[0]}': {str(schema.names)[:200]}.")
        whole = schema.field(self.label).type
        if not kinds.is_integer(whole):
            raise self._error(f"column '{self.label}' of '{path}' holds {whole}; expected integers from 0 on.")
        for name in (n for n in (self.image, self.mask) if n in schema.names):
            image = schema.field(name).type
            fields = {f.name: f.type for f in image} if kinds.is_struct(image) else {"bytes": image}
            texts = ("null", "binary", "large_binary", "string", "large_string")
            if str(fields.get("bytes")) not in texts[:3] or str(fields.get("path", "string")) not in texts:
                raise self._error(
                    f"column '{name}' of '{path}' holds {str(image)[:60]}; expected the contents of image files, as "
                    "binary or as a struct of bytes and path."
                )
        if self.box in schema.names:
            number = box = schema.field(self.box).type
            while kinds.is_list(number) or kinds.is_large_list(number) or kinds.is_fixed_size_list(number):
                number = number.value_type
            if number is box or not (kinds.is_integer(number) or kinds.is_floating(number)):
                raise self._error(f"column '{self.box}' of '{path}' holds {str(box)[:60]}; expected lists of numbers.")

    def _class_names(self) -> tuple[str, ...]:
        """Names from `classes.csv`, else from the metadata of the file, else none."""
        path = self.home / "classes.csv"
        if path.exists():
            rows = read_csv(path, self.title, ("label", "name"))
            names = {class_number(r["label"], f"{self.title}: line {n} of '{path}'"): r["name"] for n, r in rows}
            return class_names(names, max(names, default=-1) + 1, "{}")
        what = f"{self.title}: metadata 'huggingface' of '{self.files[0]}'"
        metadata = (self._open(self.files[0]).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        value = read_json(metadata, what, max_bytes=METADATA_LIMIT)
        for key in ("info", "features", self.label):
            what = f"{what}: {key}"
            value = check(check(value, dict, what, DataError).get(key, {}), dict, what, DataError)
        return tuple(check(value.get("names", []), list[str], f"{what}: names", DataError))


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


def _field(column: Any, name: str) -> Any:
    """A field of a column of structs as bytes; text may be no UTF-8."""
    import pyarrow
    import pyarrow.compute

    values = pyarrow.compute.struct_field(column, name)
    return values.cast("large_binary" if str(values.type).startswith("large") else "binary")


def _outer(boxes: Any) -> NDArray[np.float32]:
    """Boxes whose last pixel is inside, as boxes of outer edges."""
    edges = np.array(boxes, np.float32).reshape(-1, 4) + np.array([0, 0, 1, 1], np.float32)
    if not np.isfinite(edges).all():
        raise ValueError("a box is not finite")
    return edges
