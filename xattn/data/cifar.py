"""CIFAR-10 and CIFAR-100: 32 x 32 pixels."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.sample import Sample
from xattn.errors import DataError
from xattn.files import read_regular
from xattn.schema import check

SIDE = 32
FILE_LIMIT = 512 * 2**20  # bytes
_DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError),
    RecursionError,
)


class _ArraysOnly(pickle.Unpickler):
    """Reads the authors' pickles of lists and arrays; anything else in one is refused, so no code can run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any] | type] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if module.startswith("numpy.") and name == "_reconstruct":
            return _reconstruct
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is neither a list nor an array")
        return allowed[module, name]


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: bytes | str) -> NDArray[Any]:
    """What numpy's pickles call to make an empty array; `kind` can only be the plain array."""
    if shape != (0,):  # it is filled later, by what is in the file
        raise pickle.UnpicklingError(f"it makes an array {shape} of nothing")
    return np.ndarray(shape, dtype.decode("latin1") if isinstance(dtype, bytes) else dtype)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 calls to read the bytes of a Python 2 pickle."""
    return text.encode(encoding)


@dataclass(frozen=True)
class _CIFAR(FileDataset):
    """What both have in common: pickled batches of rows of 3072 values."""

    batches: ClassVar[dict[str, tuple[str, ...]]]
    label_key: ClassVar[str]
    meta: ClassVar[str]
    names_key: ClassVar[str]

    def _files(self) -> list[Path]:
        return [self.home / name for name in (*self.batches[self.split], self.meta)]

    def _check(self) -> None:
        super()._check()
        missing = [n for n in (*self.batches[self.split], self.meta) if not (self.home / n).is_file()]
        if missing:
            raise self._error(f"'{self.home / missing[0]}' is missing.")

    def sample(self, index: int) -> Sample:
        """One image, from memory."""
        image = np.ascontiguousarray(self._pixels[index].transpose(1, 2, 0))
        return Sample(f"{self.split}-{index:05d}", image, int(self.labels[index]))

    @cached_property
    def _loaded(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        batches = [self._unpickle(name) for name in self.batches[self.split]]
        for name, batch in zip(self.batches[self.split], batches, strict=True):
            data, labels = batch.get("data"), batch.get(self.label_key)
            pixels = isinstance(data, np.ndarray) and data.dtype == np.uint8
            if not pixels or not isinstance(labels, list) or not all(type(label) is int for label in labels):
                raise self._error(
                    f"'{self.home / name}' does not hold the pixels and labels that the authors published."
                )
        data = np.concatenate([b["data"].reshape(-1, 3, SIDE, SIDE) for b in batches])
        labels = np.concatenate([np.array(b[self.label_key], np.int64) for b in batches])
        if len(data) != len(labels):
            raise self._error(f"{len(data)} images but {len(labels)} labels in '{self.home}'.")
        return data, labels

    @property
    def _pixels(self) -> NDArray[np.uint8]:
        return self._loaded[0]

    def _list(self) -> Index:
        names = check(self._unpickle(self.meta).get(self.names_key), list[str], f"{self.title}: names", DataError)
        return Index((), self._loaded[1], tuple(names))

    def _unpickle(self, name: str) -> dict[str, Any]:
        path = self.home / name
        try:
            content = _ArraysOnly(io.BytesIO(read_regular(path, FILE_LIMIT)), encoding="latin1").load()
        except (*_DAMAGE, pickle.UnpicklingError) as error:
            raise self._error(f"'{path}' is damaged or not what the authors published ({error}).") from None
        if not isinstance(content, dict):
            raise self._error(f"'{path}' holds a {type(content).__name__}, expected a dictionary.")
        return content


@datasets.register("cifar10")
@dataclass(frozen=True)
class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images): 50,000 and 10,000 images.

    The folder of the Python version. Pickles are read by a reader that accepts lists and arrays alone.
    """

    title: ClassVar[str] = "CIFAR-10"
    source: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    folders: ClassVar[tuple[str, ...]] = ("cifar-10-batches-py",)
    required: ClassVar[tuple[str, ...]] = ("batches.meta",)
    sign: ClassVar[tuple[str, ...]] = ("batches.meta",)
    batches: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test": ("test_batch",),
    }
    label_key: ClassVar[str] = "labels"
    meta: ClassVar[str] = "batches.meta"
    names_key: ClassVar[str] = "label_names"


@datasets.register("cifar100")
@dataclass(frozen=True)
class CIFAR100(_CIFAR):
    """CIFAR-100 with its 100 fine classes (Krizhevsky 2009): 50,000 and 10,000 images."""

    title: ClassVar[str] = "CIFAR-100"
    source: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    folders: ClassVar[tuple[str, ...]] = ("cifar-100-python",)
    required: ClassVar[tuple[str, ...]] = ("meta",)
    sign: ClassVar[tuple[str, ...]] = ("meta", "train", "test")
    batches: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    label_key: ClassVar[str] = "fine_labels"
    meta: ClassVar[str] = "meta"
    names_key: ClassVar[str] = "fine_label_names"
