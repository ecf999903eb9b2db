"""Scores outside of memory: blocks of rows go to a temporary file by column, columns are read when they are needed.

The parts of a run hold all columns of few images; statistics need all images of one column. Each block is sorted, so
that turning one into the other takes no engine: a pass over the blocks that writes a slice of each column, and a
directory of the slices. Numbers of rows enter the time linearly, the memory not at all.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.functional.statistics import Array

Key = tuple[str, str, str, str, str]
"""Data set, model, method, metric, column."""

_LARGEST = 1e100  # of a score; what is larger overflows in its square or is infinite, and counts as undefined
_IN_MEMORY = 2**25  # bytes of a temporary file, and of a table, that stay in memory
_RECORD = np.dtype([("method", np.int32), ("image", np.int32), ("value", np.float64)])


class Spill:
    """The scores of a run by column.

    `rows` counts them, `keys` has what was measured of what.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.keys: set[Key] = set()
        self._images: dict[str, int] = {}
        self._methods: dict[str, int] = {}
        self._slices: dict[tuple[str, str, str, str], list[tuple[int, int]]] = {}
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (open as long as this)
        self._end = 0
        self._group: tuple[Any, NDArray[Any]] = (None, np.zeros(0, _RECORD))
        weakref.finalize(self, self._file.close)

    def add(self, table: Any) -> None:
        """Take the rows of a block of one data set and model, sorted and each once, as of `Store.blocks`."""
        (dataset,), (model,) = texts_of(table, "dataset"), texts_of(table, "model")
        methods, metrics, columns = (texts_of(table, name) for name in ("method", "metric", "column"))
        method, metric, column = (codes_of(table, name) for name in ("method", "metric", "column"))
        images = np.array([self._images.setdefault(t, len(self._images)) for t in texts_of(table, "image")], np.int32)
        records = np.empty(table.num_rows, _RECORD)
        known = np.array([self._methods.setdefault(t, len(self._methods)) for t in methods], np.int32)
        records["method"], records["image"] = known[method], images[codes_of(table, "image")]
        values = table["value"].to_numpy()
        records["value"] = np.where(np.abs(values) < _LARGEST, values, np.nan)
        measured = metric * len(columns) + column
        for code in np.unique(method * len(metrics) * len(columns) + measured).tolist():
            which, what = divmod(code, len(metrics) * len(columns))
            i, k = divmod(what, len(columns))
            self.keys.add((dataset, model, methods[which], metrics[i], columns[k]))
        order = np.argsort(measured, kind="stable")
        self._file.seek(self._end)
        self._file.write(records[order].tobytes())
        found, starts = np.unique(measured[order], return_index=True)
        ends = [*starts[1:].tolist(), len(order)]
        for code, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
            i, k = divmod(code, len(columns))
            place = self._end + start * _RECORD.itemsize, end - start
            self._slices.setdefault((dataset, model, metrics[i], columns[k]), []).append(place)
        self._end += records.nbytes
        self.rows += table.num_rows
        self._group = (None, records[:0])

    @cached_property
    def names(self) -> list[str]:
        """Names of the images in order; no more rows may come after this."""
        return sorted(self._images)

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        """The number of each image in the order of the names, by the number in the file."""
        return np.argsort(np.array([self._images[name] for name in self.names], np.int64))

    def read(self, dataset: str, model: str, method: str, metric: str, column: str) -> tuple[NDArray[np.int64], Array]:
        """Numbers of the images (N,), ascending, and values (N,) of one method in one column; empty without scores."""
        key = dataset, model, metric, column
        if self._group[0] != key:  # methods of a column follow each other
            records = self._load(self._slices.get(key, ()))
            self._group = key, records[np.argsort(records["method"], kind="stable")]
        records = self._group[1]
        start, end = np.searchsorted(records["method"], [code := self._methods.get(method, -1), code + 1])
        images = self._place[records["image"][start:end]]
        order = np.argsort(images, kind="stable")
        return images[order], records["value"][start:end][order]

    def _load(self, slices: Sequence[tuple[int, int]]) -> NDArray[Any]:
        records = np.empty(sum(count for _, count in slices), _RECORD)
        start = 0
        for place, count in slices:
            self._file.seek(place)
            records[start : start + count] = np.frombuffer(self._file.read(count * _RECORD.itemsize), _RECORD)
            start += count
        return records


def outside(shape: tuple[int, int]) -> Array:
    """A table of NaN; a large one is in a temporary file, which the system takes out of memory when it gets short.

    Raises:
        OSError: if the disk has no room for it.
    """
    size = shape[0] * shape[1]
    if size * 8 <= _IN_MEMORY:
        return np.full(shape, np.nan)
    with tempfile.TemporaryFile() as file:  # the mapping keeps it, without a name
        _reserve(file.fileno(), size * 8)
        values: Array = np.asarray(np.memmap(file, np.float64, "w+", shape=shape))
    values[:] = np.nan
    return values


def _reserve(descriptor: int, size: int) -> None:
    """Have the disk give a file all its room: where it cannot later, writing to the mapping ends the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that makes no promises
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from None


def texts_of(table: Any, name: str) -> list[str]:
    """The different texts of a column, in the order of its codes."""
    return list(_whole(table, name).dictionary.to_pylist())


def codes_of(table: Any, name: str) -> NDArray[np.int64]:
    """The places (n,) of the rows' texts among the different ones of a column."""
    return _whole(table, name).indices.to_numpy().astype(np.int64)


def _whole(table: Any, name: str) -> Any:
    array = table[name].combine_chunks()
    return array.chunk(0) if hasattr(array, "chunks") else array
