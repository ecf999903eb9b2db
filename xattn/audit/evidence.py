"""The evidence of every image on the disk: parquet parts that appear whole, read a few classes at a time."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xattn.errors import DataError
from xattn.files import read_regular, sweep, whole_file

BLOCK = 256
"""Images of a part."""

_META = b"xattn-evidence"
_PART = re.compile(r"evidence-(\d{5,12})-([0-9a-f]{32})\.parquet")
_PART_BYTES = 2**30
_UNKNOWN = -1  # of a label

_PLAIN = {
    "index": pa.int64(), "image": pa.string(), "label": pa.int64(), "target": pa.int64(), "score": pa.float64(),
    "probability": pa.float64(), "source": pa.string(), "object": pa.float64(), "failed": pa.string(),
}  # fmt: skip
_ARRAYS = {
    "shares": "parts",
    "inside": "parts",
    "vectors": "vectors",
    "maps": "maps",
    "whole": "cells",
    "tone": "tone",
    "small": "small",
}


@dataclass(frozen=True)
class Layout:
    """The sizes that the evidence of all images shares.

    Args:
        parts: P.
        channels: C of the features.
        grid: rows and columns of the maps.
        tone: numbers that describe the colours of an image.
        small: channels, rows and columns of the reduced images.
        size: height and width of the network's input in pixels.
    """

    parts: int
    channels: int
    grid: tuple[int, int]
    tone: int
    small: tuple[int, int, int]
    size: tuple[int, int]

    def width(self, name: str) -> int:
        """Numbers of an array column in a row."""
        cells = self.grid[0] * self.grid[1]
        sizes = {
            "parts": self.parts, "vectors": self.parts * self.channels, "maps": self.parts * cells, "cells": cells,
            "tone": self.tone, "small": self.small[0] * self.small[1] * self.small[2],
        }  # fmt: skip
        return sizes[_ARRAYS[name]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for the predicted class in some images, one row an image.

    Args:
        layout: the sizes.
        index: places in the data set, int64 (N,).
        image: names.
        label: class that the data set gives, in the numbers of the model, -1 where it is not known, (N,).
        target: class that is predicted, (N,).
        score: of the predicted class, (N,).
        probability: likewise.
        source: where each is from; empty texts where that is not known.
        object: share of the frame that the object covers, NaN where it is not known, (N,).
        shares: of the relevance by part, (N, P).
        inside: share of each part that lies on the object, NaN where that is not known, (N, P).
        vectors: of the parts, (N, P, C).
        maps: of the parts, (N, P, h, w), each summing to one, or to zero where the part is empty.
        whole: map of all relevance, (N, h, w).
        tone: mean, deviation, lowest and highest value of each channel of the input, (N, 4 channels).
        small: the images, reduced, from 0 to 1, (N, channels, rows, columns).
    """

    layout: Layout
    index: NDArray[np.int64]
    image: tuple[str, ...]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    source: tuple[str, ...]
    object: NDArray[np.float64]
    shares: NDArray[np.float32]
    inside: NDArray[np.float32]
    vectors: NDArray[np.float32]
    maps: NDArray[np.float32]
    whole: NDArray[np.float32]
    tone: NDArray[np.float32]
    small: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def right(self) -> NDArray[np.float64]:
        """1 where the prediction is right, 0 where it is wrong, NaN where the label is not known, (N,)."""
        return np.where(self.label == _UNKNOWN, np.nan, self.label == self.target)


@dataclass(frozen=True, eq=False)
class Overview:
    """What is known of all images without their vectors and maps; fields as in `Evidence`.

    Args:
        failed: names of images that could not be read, with the reason.
    """

    index: NDArray[np.int64]
    image: tuple[str, ...]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    source: tuple[str, ...]
    failed: dict[str, str]


class EvidenceStore:
    """The parts of one audit in a folder. There is no index: the file system alone tells what is left to do.

    Args:
        folder: made if it is not there.
        key: digest of all that the evidence depends on; parts with another are not read.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self._paths: dict[int, Path] = {}
        self.layout: Layout | None = None
        for path in sorted(folder.glob("evidence-*.parquet")):
            match = _PART.fullmatch(path.name)
            meta = _meta(path) if match else None
            if match and meta is not None and meta["key"] == key:
                self._paths[int(match[1])] = path
                self._fix(meta["layout"])

    def _fix(self, layout: dict[str, Any] | None) -> None:
        if layout is not None and self.layout is None:
            self.layout = Layout(**{**layout, **{name: tuple(layout[name]) for name in ("grid", "small", "size")}})

    @property
    def done(self) -> set[int]:
        """Numbers of the blocks that are there."""
        return set(self._paths)

    def write(self, block: int, rows: dict[str, Any], layout: Layout | None) -> None:
        """Add a block; nothing is visible of it until it is whole.

        Args:
            block: its number.
            rows: a column each; arrays as (n, width).
            layout: of the arrays; None where no image of the block could be read.
        """
        columns: dict[str, pa.Array] = {name: pa.array(rows[name], kind) for name, kind in _PLAIN.items()}
        if layout is not None:
            for name in _ARRAYS:
                kind = pa.float16() if name in ("vectors", "maps", "whole", "small") else pa.float32()
                values = np.ascontiguousarray(rows[name], np.float16 if kind == pa.float16() else np.float32)
                columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), layout.width(name))
        meta = {"key": self.key, "block": block, "layout": None if layout is None else asdict(layout)}
        table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        digest = hashlib.blake2b(stream.getbuffer(), digest_size=16).hexdigest()
        path = self.folder / f"evidence-{block:05d}-{digest}.parquet"
        with whole_file(path, durable=True) as temporary:
            temporary.write_bytes(stream.getbuffer())
        self._paths[block] = path
        if layout is not None:
            self._fix(asdict(layout))

    def overview(self) -> Overview:
        """What is known of all images without their vectors and maps."""
        names = ["index", "image", "label", "target", "source", "failed"]
        whole = pa.concat_tables([_table(self._paths[b]).select(names) for b in sorted(self._paths)])
        whole = whole.replace_schema_metadata(None)
        reasons = whole["failed"].to_pylist()
        fine = np.array([not reason for reason in reasons], np.bool_)
        images = whole["image"].to_pylist()
        kept = whole.filter(pa.array(fine))
        return Overview(
            kept["index"].to_numpy(), tuple(kept["image"].to_pylist()), kept["label"].to_numpy(),
            kept["target"].to_numpy(), tuple(kept["source"].to_pylist()),
            {name: reason for name, reason in zip(images, reasons, strict=True) if reason},
        )  # fmt: skip

    def reduced(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The reduced images (n, C, R, R) at some places of the data set, in the order of these; all have to be there.

        Args:
            rows: places in the data set, each once.
        """
        assert self.layout is not None  # noqa: S101 (an image was read)
        found = np.zeros((len(rows), *self.layout.small), np.float32)
        for path in self._paths.values():
            table = _table(path)
            mine = table["index"].to_numpy()
            here = np.isin(mine, rows)
            if here.any() and "small" in table.column_names:
                at = {int(i): k for k, i in enumerate(rows)}
                column = table["small"].combine_chunks().filter(pa.array(here)).flatten().to_numpy()
                found[[at[int(i)] for i in mine[here]]] = column.astype(np.float32).reshape(-1, *self.layout.small)
        return found

    def read(self, classes: Sequence[int]) -> Evidence:
        """The evidence of the images in which one of these classes is predicted, in the order of the data set."""
        if self.layout is None:
            raise DataError(f"'{self.folder}' holds no evidence: no image could be read.")
        tables = []
        for block in sorted(self._paths):
            table = _table(self._paths[block])
            if "vectors" not in table.column_names:
                continue
            here = np.isin(table["target"].to_numpy(), list(classes)) & np.array(
                [not reason for reason in table["failed"].to_pylist()]
            )
            if here.any():
                tables.append(table.filter(pa.array(here)).replace_schema_metadata(None))
        if not tables:
            raise DataError(f"'{self.folder}' holds no evidence for the classes {list(classes)}.")
        whole = pa.concat_tables(tables).combine_chunks()
        p, c, (h, w) = self.layout.parts, self.layout.channels, self.layout.grid
        shapes: dict[str, tuple[int, ...]] = {
            "shares": (p,), "inside": (p,), "vectors": (p, c), "maps": (p, h, w), "whole": (h, w),
            "tone": (self.layout.tone,), "small": self.layout.small,
        }  # fmt: skip
        arrays: dict[str, Any] = {
            name: np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in whole[name].chunks])
            .astype(np.float32)
            .reshape(len(whole), *shape)
            for name, shape in shapes.items()
        }
        plain: dict[str, Any] = {
            n: whole[n].to_numpy() for n in ("index", "label", "target", "score", "probability", "object")
        }
        texts: dict[str, Any] = {n: tuple(whole[n].to_pylist()) for n in ("image", "source")}
        return Evidence(layout=self.layout, **plain, **texts, **arrays)


def _meta(path: Path) -> dict[str, Any] | None:
    """What a part says of itself; None where it is not one of ours."""
    try:
        found = (pq.read_schema(path).metadata or {}).get(_META)
        meta = None if found is None else json.loads(found)
    except (pa.ArrowException, OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and {"key", "block", "layout"} <= set(meta) else None


def _table(path: Path) -> pa.Table:
    """A part, checked against its digest.

    Raises:
        DataError: if it is damaged.
    """
    try:
        content = read_regular(path, _PART_BYTES)
        match = _PART.fullmatch(path.name)
        if match is None or hashlib.blake2b(content, digest_size=16).hexdigest() != match[2]:
            raise ValueError("its content is not as it was written")
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            return file.read(use_threads=False)  # as the store of a benchmark reads
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"'{path}' is no whole part of an audit ({error}); remove it and run again.") from None
