"""A result folder: rows of scores in parquet parts, the manifest and the costs. Every path in it is made here.

A part belongs to one block of one cell (data set, model). Its footer lists the (method, metric) pairs in it with the
number of images scored, so that the file system alone tells what is left to do. There is no lock and no index. Each
file appears whole or not at all, and carries a digest of its content: a part in its name, a JSON file in itself.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xattn import places
from xattn.benchmark.schemas import Costs, Footer, Manifest
from xattn.errors import DataError, ParameterError, XattnWarning

COLUMNS = ("dataset", "model", "image", "target", "method", "metric", "column", "value", "note")
KEYS = ("dataset", "model", "method", "metric", "column", "image")
SCHEMA = pa.schema(
    [(name, pa.float64() if name == "value" else pa.int64() if name == "target" else pa.string()) for name in COLUMNS]
)
STATUS, PREDICTION, READING, SCORER = "status", "prediction", "reading", "scorer"
RESERVED = (STATUS, PREDICTION, READING, SCORER)
"""Names among the metrics that are none of methods: whether a map is fine, what the model and its scorer predict, and
images that cannot be read."""
LADDER = "ladder"
"""Name of the methods that are the degraded maps of another one, which are compared with each other alone."""
REFUSED = "refused: "
"""How the note of a row begins whose method or metric refused the image."""
PUBLISHED, CHECKSUMS = "data", "checksums.txt"
"""Where the rows of a published run are, and the file with their SHA-256."""
TEXTS = tuple(name for name in COLUMNS if SCHEMA.field(name).type == pa.string())
_FOOTER = b"xattn"
# The digest is that of the whole file; in parts of earlier versions, a short one of the footer alone.
_PART = re.compile(r"block-(\d{5,12})-([0-9a-f]{8}|[0-9a-f]{32})\.parquet")
_PART_BYTES, _PART_ROWS, _JSON_BYTES = 2**28, 10**7, 2**24  # the most that is read
_TEXT = 20_000  # bytes of a text in a row


@dataclass(frozen=True)
class Row:
    """One score: what was measured, on which image, and what came out."""

    dataset: str
    model: str
    image: str
    target: int
    method: str
    metric: str
    column: str
    value: float
    note: str = ""


Pair = tuple[str, str]


class Store:
    """The part files of a run.

    Args:
        folder: made if it is not there; on the disk, or the URL of another file system.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = places.place(folder)

    @property
    def manifest(self) -> Path:
        """Where it is written what the scores depend on."""
        return self.folder / "manifest.json"

    @property
    def report(self) -> Path:
        """Where the report goes unless another folder is named."""
        return self.folder / "report"

    def costs(self, dataset: str, model: str) -> Path:
        """Where the costs of the methods of a cell are."""
        return self.folder / "costs" / f"{self.cell(dataset, model).name}.json"

    def cell(self, dataset: str, model: str) -> Path:
        """Where the parts of a data set and a model are."""
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{dataset}@{model}")
        digest = hashlib.blake2b(f"{dataset}\0{model}".encode(), digest_size=4).hexdigest()
        return self.folder / "parts" / f"{name.encode()[:200].decode(errors='ignore')}-{digest}"

    def make(self, folder: Path) -> None:
        """Make a folder in the store.

        Raises:
            DataError: if a link leads out of the store.
        """
        places.make(folder, self.folder)

    def parts(self, dataset: str | None = None, model: str | None = None) -> list[Path]:
        """The part files of a cell, or of all."""
        if dataset is None or model is None:
            return places.listed(self.folder / "parts", "*/block-*.parquet")
        return places.listed(self.cell(dataset, model), "block-*.parquet")

    def clear_leftovers(self) -> None:
        """Remove what killed processes left half written, if nobody has touched it for an hour."""
        for folder in (self.folder, self.folder / "costs", *places.listed(self.folder / "parts", "*/")):
            places.clear_leftovers(folder)

    def read_manifest(self) -> Manifest:
        """What the run wrote about itself; empty if there is nothing."""
        try:
            return Manifest.parse(places.read(self.manifest, _JSON_BYTES), f"'{self.manifest}'", "use another --out")
        except FileNotFoundError:
            return Manifest()

    def create_manifest(self, manifest: Manifest) -> bool:
        """Write the manifest unless there is one; whether it was written."""
        self.make(self.folder)
        return places.write_first(self.manifest, manifest.text())

    def replace_manifest(self, manifest: Manifest) -> None:
        """Write the manifest in place of the one that is there."""
        places.write(self.manifest, manifest.text())

    def read_costs(self, dataset: str, model: str) -> Costs:
        """What the methods of a cell cost, where it was measured."""
        path = self.costs(dataset, model)
        try:
            return Costs.parse(places.read(path, _JSON_BYTES), f"'{path}'", "remove it to measure them again")
        except FileNotFoundError:
            return Costs()

    def write_costs(self, dataset: str, model: str, costs: Costs) -> None:
        """Write the costs of a cell in place of those that are there."""
        path = self.costs(dataset, model)
        self.make(path.parent)
        places.write(path, costs.text())

    def done(self, dataset: str, model: str, among: Container[int] | None = None) -> dict[int, dict[Pair, int]]:
        """For each block of a cell the pairs (method, metric) that are stored, with the number of images.

        Args:
            dataset: name of the data set.
            model: name of the model.
            among: blocks whose parts are opened; None for all.
        """
        blocks: dict[int, dict[Pair, int]] = {}
        for path in self.parts(dataset, model):
            if among is not None and _numbers(path)[0] not in among:
                continue
            footer, _ = _open(path)
            pairs = blocks.setdefault(footer.block, {})
            for method, metric, count in footer.pairs:
                pairs[method, metric] = max(count, pairs.get((method, metric), 0))
        return blocks

    def write(self, dataset: str, model: str, block: int, rows: Sequence[Row], pairs: Mapping[Pair, int]) -> Path:
        """Add a part; nothing is visible of it until it is whole.

        Args:
            dataset: name of the data set.
            model: name of the model.
            block: number of the block.
            rows: the scores.
            pairs: what they hold: (method, metric) and the number of images scored.
        """
        columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
        for name in TEXTS:  # names of files need not be UTF-8
            columns[name] = [t.encode(errors="backslashreplace")[:_TEXT].decode(errors="ignore") for t in columns[name]]
        table = pa.table(columns, schema=SCHEMA).sort_by([(key, "ascending") for key in KEYS])
        return self.write_table(dataset, model, block, table, pairs)

    def write_table(self, dataset: str, model: str, block: int, table: pa.Table, pairs: Mapping[Pair, int]) -> Path:
        """As `write`, of a table of `SCHEMA` that is sorted by `KEYS`."""
        cell = self.cell(dataset, model)
        self.make(cell)
        listed = sorted((method, metric, count) for (method, metric), count in pairs.items())
        footer = Footer(block=block, pairs=tuple(listed)).model_dump_json()
        table = table.replace_schema_metadata({_FOOTER: footer.encode()})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        path = cell / f"block-{block:05d}-{_digest(stream.getvalue(), 16)}.parquet"
        places.write(path, stream.getbuffer())
        return path

    def check_unpublished(self) -> None:
        """Refuse to add to a published run, whose rows nobody would find beside new ones.

        Raises:
            ParameterError: for one.
        """
        if places.listed(self.folder, CHECKSUMS) and places.listed(self.folder / PUBLISHED, "*.parquet"):
            raise ParameterError(f"'{self.folder}' is a published run, to which nothing is added; use another --out.")

    def files(self) -> list[Path]:
        """Every file that rows are read from: the parts of a run, or the files of one that was published."""
        return self.parts() or places.listed(self.folder / PUBLISHED, "*.parquet")

    def blocks(self) -> Iterator[pa.Table]:
        """The rows of each block of each cell, every row once and sorted by `KEYS`: no more is in memory at a time.

        Text columns are dictionaries.

        Raises:
            DataError: if there is none, or a part is damaged.
        """
        paths = self.parts()
        if not paths and (published := self.files()):
            yield from self._published(published)
            return
        if not paths:
            raise DataError(f"'{self.folder}' holds no scores; run `xattn benchmark` with --out {self.folder} first.")
        if old := sum(len(_numbers(path)[1]) == 8 for path in paths):
            warnings.warn(
                f"'{self.folder}': {old} parts are of an earlier version, without digests: damage in them is not "
                "always noticed.",
                XattnWarning,
                stacklevel=2,
            )
        for _, cell in itertools.groupby(paths, lambda path: path.parent.name):
            seen: dict[str, int] = {}
            for block, own in itertools.groupby(sorted(cell, key=_numbers), lambda path: _numbers(path)[0]):
                parts = [(path, *_read(path)) for path in own]
                # A block that was scored twice holds pairs that may be there twice; the larger share of images is kept.
                parts.sort(key=lambda p: (-max((n for *_, n in p[1].pairs), default=0), p[0].name))
                table = _in_order(pa.concat_tables([rows for *_, rows in parts]), once=True)
                for image in _unique(table, "image"):
                    if seen.setdefault(image, block) != block:
                        raise DataError(
                            f"two images of {_unique(table, 'dataset')[0]} are called '{image}'; their scores cannot "
                            "be told apart."
                        )
                yield table

    def blocks_with(self, dataset: str, model: str, images: Container[str]) -> list[int] | None:
        """The blocks of a cell in which some images are, in order; None of a published run, which does not tell."""
        parts = self.parts(dataset, model)
        found = set()
        for path in parts:
            with pq.ParquetFile(pa.BufferReader(places.read(path, _PART_BYTES))) as file:
                names = file.read(columns=["image"], use_threads=False)["image"].unique().to_pylist()
            if any(name in images for name in names):
                found.add(_numbers(path)[0])
        return sorted(found) if parts else None

    def _published(self, paths: Sequence[Path]) -> Iterator[pa.Table]:
        """The row groups of published files, each of which is a block; the files must be as they were published."""
        try:
            lines = places.read(self.folder / CHECKSUMS, _JSON_BYTES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for path in paths:
            with path.open("rb") as stream:
                if sums.get(f"{PUBLISHED}/{path.name}") != hashlib.file_digest(stream, "sha256").hexdigest():
                    raise DataError(f"'{path}' is not as '{CHECKSUMS}' beside it says; get it again.")
                stream.seek(0)
                try:
                    file = pq.ParquetFile(stream, read_dictionary=list(TEXTS), page_checksum_verification=True)
                    _check_shape(file.metadata, file.schema)
                    for number in range(file.metadata.num_row_groups):
                        group = file.read_row_group(number, use_threads=False)
                        yield _in_order(_checked(group, path.name.removesuffix(".parquet")))
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise DataError(f"'{path}' is no file of a published run ({error}).") from None

    def table(self) -> pa.Table:
        """All rows in memory, each once, in one order that does not depend on how they were computed.

        Text columns are dictionaries, so that millions of rows fit.

        Raises:
            DataError: if there is none, or a part is damaged.
        """
        return _in_order(pa.concat_tables(list(self.blocks())))

    def notes(self, metric: str) -> list[Row]:
        """The rows of one metric (`status`, `reading`) that have a note, once each, in order."""
        noted_rows = {}
        for path in self.parts():
            _, table = _read(path, dictionaries=False)
            noted = pc.and_(pc.equal(table["metric"], metric), pc.not_equal(table["note"], ""))
            for values in table.filter(noted).to_pylist():
                noted_rows[tuple(values[key] for key in KEYS)] = Row(**values)
        return [noted_rows[key] for key in sorted(noted_rows)]


def _digest(content: Any, size: int) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def _numbers(path: Path) -> tuple[int, str]:
    """Block and digest in the name of a part."""
    match = _PART.fullmatch(path.name)
    if match is None:
        raise DataError(f"'{path}' is not named as a part of a run; remove it.")
    return int(match[1]), match[2]


def _open(path: Path, *, dictionaries: bool = True) -> tuple[Footer, pq.ParquetFile]:
    """The footer of a part and its file, checked against its digest."""
    block, digest = _numbers(path)
    content = places.read(path, _PART_BYTES)
    try:
        if len(digest) == 32 and _digest(content, 16) != digest:
            raise ValueError("its content is not as it was written")
        texts = list(TEXTS) if dictionaries else []
        file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, page_checksum_verification=True)
        written = (file.metadata.metadata or {})[_FOOTER]
        if len(digest) == 8 and _digest(written, 4) != digest:
            raise ValueError("its footer is not as it was written")
        _check_shape(file.metadata, file.schema)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if file.metadata.num_rows > _PART_ROWS or sum(groups) > _PART_BYTES:
            raise ValueError("it is larger than any part")
        footer = Footer.parse(written, "its footer")
        if footer.block != block:
            raise ValueError(f"it is of block {footer.block}")
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from None
    return footer, file


_PHYSICAL = [(name, "DOUBLE" if name == "value" else "INT64" if name == "target" else "BYTE_ARRAY") for name in COLUMNS]


def _check_shape(metadata: Any, schema: Any) -> None:
    """Refuse a file with other columns, or with more in one row group than any part has."""
    if [(c.name, c.physical_type) for c in schema] != _PHYSICAL:
        raise ValueError("it has other columns")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if any(group.num_rows > _PART_ROWS or group.total_byte_size > _PART_BYTES for group in groups):
        raise ValueError("it is larger than any part")


def _read(path: Path, *, dictionaries: bool = True) -> tuple[Footer, pa.Table]:
    """The footer and the rows of a part, which must be of the cell that its folder is for."""
    footer, file = _open(path, dictionaries=dictionaries)
    try:
        # No threads: now and then one of Arrow's ends a process at its exit by an abort (1 of 200 with pyarrow 26).
        table = _checked(file.read(use_threads=False), path.parent.name)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return footer, table


def _checked(table: pa.Table, cell: str) -> pa.Table:
    """Rows that are whole, of bounded texts, and of the cell whose name that is."""
    table = table.replace_schema_metadata(None).unify_dictionaries()
    if any(table[name].null_count for name in COLUMNS):
        raise ValueError("values are missing")
    lengths = [pc.max(pc.binary_length(pc.unique(table[name]).cast(pa.string()))).as_py() for name in TEXTS]
    if any(length is not None and length > _TEXT for length in lengths):
        raise ValueError("a text is too long")
    found = {(dataset, model) for dataset in _unique(table, "dataset") for model in _unique(table, "model")}
    if any(Store("").cell(*one).name != cell for one in found):
        raise ValueError("its rows are of another data set or model than its folder")
    return table


def _unique(table: pa.Table, name: str) -> list[str]:
    return pc.unique(table[name]).to_pylist()


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' is no whole part of a run ({error}); remove it and run again.")


def _in_order(table: pa.Table, *, once: bool = False) -> pa.Table:
    """A table sorted by `KEYS`; with `once`, the first row alone of those that have the same."""
    whole = table.unify_dictionaries().combine_chunks()
    ordered = {name: _sorted_dictionary(whole[name]) for name in TEXTS}
    keys = [ordered[name] for name in KEYS]
    codes = _one_number([codes for codes, _ in keys], [len(names) for _, names in keys])
    order = np.argsort(codes, kind="stable")
    kept = order[np.diff(codes[order], prepend=-1) != 0] if once else order
    columns = []
    for name in COLUMNS:
        if name in ordered:
            values, names = ordered[name]
            columns.append(pa.DictionaryArray.from_arrays(pa.array(values[kept], pa.int32()), pa.array(names)))
        else:
            columns.append(whole[name].combine_chunks().take(pa.array(kept)))
    return pa.table(columns, names=list(COLUMNS))


def _sorted_dictionary(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Codes (n,) of a text column, and the texts that they count, in order."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    names = array.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return place[array.indices.to_numpy()], [names[i] for i in order]


def _one_number(codes: Sequence[NDArray[np.int64]], sizes: Sequence[int]) -> NDArray[np.int64]:
    """One number (n,) for several codes, in their order."""
    whole = np.zeros_like(codes[0])
    for code, size in zip(codes, sizes, strict=True):
        if size * int(whole.max(initial=0) + 1) >= 2**63:
            whole = np.unique(whole, return_inverse=True)[1].astype(np.int64)
        whole = whole * size + code
    return whole


def missing(wanted: Mapping[Pair, int], done: Mapping[Pair, int]) -> list[Pair]:
    """Pairs (method, metric) that are not stored for as many images as are wanted."""
    return [pair for pair, count in wanted.items() if done.get(pair, -1) < count]
