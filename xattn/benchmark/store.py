"""Rows of scores in parquet parts: each file appears whole or not at all and says what it holds.

A part belongs to one block of one cell (data set, model). Its footer lists the (method, metric) pairs in it with the
number of images scored, so that the file system alone tells what is left to do. There is no lock and no index.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xattn.errors import DataError
from xattn.files import whole_file

COLUMNS = ("dataset", "model", "image", "target", "method", "metric", "column", "value", "note")
KEYS = ("dataset", "model", "method", "metric", "column", "image")
SCHEMA = pa.schema(
    [(name, pa.float64() if name == "value" else pa.int64() if name == "target" else pa.string()) for name in COLUMNS]
)
STATUS, PREDICTION, READING = "status", "prediction", "reading"
"""Reserved names among the metrics: whether a map is fine, what the model predicts, and images that cannot be read."""
REFUSED = "refused: "
"""How the note of a row begins whose method or metric refused the image."""
TEXTS = tuple(name for name in COLUMNS if SCHEMA.field(name).type == pa.string())
_FOOTER = b"xattn"
_LEFT_OVER_S = 3600.0  # a part is written within seconds


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
        folder: made if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

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
        return self.folder / "parts" / f"{name}-{digest}"

    def parts(self, dataset: str | None = None, model: str | None = None) -> list[Path]:
        """The part files of a cell, or of all."""
        if dataset is None or model is None:
            return sorted((self.folder / "parts").glob("*/block-*.parquet"))
        return sorted(self.cell(dataset, model).glob("block-*.parquet"))

    def clear_leftovers(self) -> None:
        """Remove what killed processes left half written: hidden files that nobody has touched for an hour."""
        for path in (self.folder / "parts").glob("*/.block-*"):
            try:
                if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process was quicker

    def done(self, dataset: str, model: str) -> dict[int, dict[Pair, int]]:
        """For each block of a cell the pairs (method, metric) that are stored, with the number of images.

        Raises:
            DataError: if a file is no part.
        """
        found: dict[int, dict[Pair, int]] = {}
        for path in self.parts(dataset, model):
            footer = self._footer(path)
            pairs = found.setdefault(footer["block"], {})
            for method, metric, count in footer["pairs"]:
                pairs[method, metric] = max(count, pairs.get((method, metric), 0))
        return found

    @staticmethod
    def _footer(path: Path) -> dict[str, Any]:
        try:
            return json.loads(pq.read_schema(path).metadata[_FOOTER])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from None

    def write(self, dataset: str, model: str, block: int, rows: Sequence[Row], pairs: dict[Pair, int]) -> Path:
        """Add a part; nothing is visible of it until it is whole.

        Args:
            dataset: name of the data set.
            model: name of the model.
            block: number of the block.
            rows: the scores.
            pairs: what they hold: (method, metric) and the number of images scored.
        """
        cell = self.cell(dataset, model)
        cell.mkdir(parents=True, exist_ok=True)
        listed = sorted([method, metric, count] for (method, metric), count in pairs.items())
        footer = json.dumps({"block": block, "pairs": listed})
        digest = hashlib.blake2b(footer.encode(), digest_size=4).hexdigest()
        path = cell / f"block-{block:05d}-{digest}.parquet"
        columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
        table = pa.table(columns, schema=SCHEMA).sort_by([(key, "ascending") for key in KEYS])
        with whole_file(path) as temporary, temporary.open("wb") as file:
            pq.write_table(table.replace_schema_metadata({_FOOTER: footer.encode()}), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        return path

    def table(self) -> pa.Table:
        """All rows, each once, in one order that does not depend on how they were computed.

        Text columns are dictionaries, so that millions of rows fit in memory.

        Raises:
            DataError: if there is none, or a part is damaged.
        """
        paths = self.parts()
        if not paths:
            raise DataError(f"'{self.folder}' holds no scores; run `xattn benchmark` with --out {self.folder} first.")
        # A block that was scored twice holds pairs that may be there twice; the larger share of images comes first.
        paths.sort(key=lambda p: (p.parent.name, -max((n for *_, n in self._footer(p)["pairs"]), default=0), p.name))
        whole = pa.concat_tables([_read(path) for path in paths]).unify_dictionaries().combine_chunks()
        ordered = {name: _sorted_dictionary(whole[name]) for name in TEXTS}
        keys = [ordered[name] for name in KEYS]
        codes = _one_number([codes for codes, _ in keys], [len(names) for _, names in keys])
        order = np.argsort(codes, kind="stable")
        kept = order[np.diff(codes[order], prepend=-1) != 0]
        columns = []
        for name in COLUMNS:
            if name in ordered:
                values, names = ordered[name]
                columns.append(pa.DictionaryArray.from_arrays(pa.array(values[kept], pa.int32()), pa.array(names)))
            else:
                columns.append(whole[name].combine_chunks().take(pa.array(kept)))
        return pa.table(columns, names=list(COLUMNS))

    def notes(self, metric: str) -> list[Row]:
        """The rows of one metric (`status`, `reading`) that have a note, once each, in order."""
        found = {}
        for path in self.parts():
            table = _read(path, dictionaries=False, metric=metric)
            for values in table.filter(pc.not_equal(table["note"], "")).to_pylist():
                found[tuple(values[key] for key in KEYS)] = Row(**values)
        return [found[key] for key in sorted(found)]


def _read(path: Path, *, dictionaries: bool = True, metric: str | None = None) -> pa.Table:
    try:
        filters = None if metric is None else pc.field("metric") == metric
        texts = list(TEXTS) if dictionaries else []
        found = pq.read_table(path, filters=filters, read_dictionary=texts, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return found.replace_schema_metadata(None)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' is no whole part of a run ({error}); remove it and run again.")


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
