"""What data sets in a folder have in common: parts, lists of files, and messages that say where to get them."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import stat
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xattn.data.dataset import Dataset
from xattn.data.finding import as_text, listing, nearest_path
from xattn.data.reading import read_image
from xattn.data.sample import Sample
from xattn.errors import DataError, XattnError, reason_of, unknown
from xattn.files import read_regular

CLASS_LIMIT = 250_000
"""Most classes of a data set: a label beyond is damage, and each class takes memory in names and in a network."""

LIST_LIMIT = 256 * 2**20  # bytes of a list of images or classes
NONE = slice(0, 0)
TAIL = 256


def _content(path: Path, last: int | None) -> str:
    """Digest of the last bytes of a file, or of all where `last` is None."""
    with path.open("rb") as stream:
        if last is not None:
            stream.seek(max(0, path.stat().st_size - last))
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@dataclass(frozen=True, eq=False)
class Index:
    """What a data set lists.

    Args:
        paths: image files.
        labels: int64, a class for each.
        classes: names in the order of the labels.
        ids: a name for each image; None: its path below the folder of the data set.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: Sequence[str] | None = None


@dataclass(frozen=True)
class FileDataset(Dataset):
    """A data set in a folder. It is checked when it is made, as far as can be seen without opening images.

    Args:
        root: the folder. The one that an archive unpacks to may be inside it.
        split: which part, one of `splits`.
    """

    root: str | Path
    split: str = "train"

    title: ClassVar[str] = "data set"
    source: ClassVar[str] = ""
    """Where to get it."""
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    training: ClassVar[str] = "train"
    """The part to train on."""
    evaluation: ClassVar[str | None] = "test"
    """The part to test on; None if the authors defined none."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Names of the folder that the archive unpacks to."""
    required: ClassVar[tuple[str, ...]] = ()
    """What has to be there, relative to that folder."""
    sign: ClassVar[tuple[str, ...]] = ()
    """By which files, and folders ending in `/`, a folder is known as this data set; empty if by none."""
    annotations: ClassVar[tuple[str, ...]] = ()
    """Patterns, relative to that folder, of the files besides the images that samples depend on."""
    upright: ClassVar[bool] = False
    """Whether the EXIF orientation is applied: not where boxes or masks were drawn on the stored pixels."""

    damage: ClassVar[tuple[type[Exception], ...]] = (ValueError, LookupError, TypeError, OverflowError)
    """What reading damaged files is known to raise."""

    def __post_init__(self) -> None:
        if self.split not in self.splits:
            raise unknown(f"split of {self.title}", self.split, self.splits)
        self._check()
        self._check_files(self._index.paths)

    @cached_property
    def home(self) -> Path:
        """The folder that holds the files: the root or the unpacked folder in it."""
        root = Path(self.root).expanduser()
        if not root.exists():
            guess = nearest_path(root)
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise self._error(f"there is no folder '{root}'.{hint}")
        if not root.is_dir():
            raise self._error(f"'{root}' is a file; expected the folder of the data set.")
        places = [root, *(root / name for name in self.folders)]
        return max(places, key=lambda place: sum((place / name).exists() for name in self.required))

    def fingerprint(self, *, content: bool = False) -> str:
        """As of any data set, and each file of images or annotations: path in the folder, size, time and last bytes.

        The last bytes tell two images apart that are exchanged and equal in size and time.
        """
        digest = hashlib.blake2b(super().fingerprint().encode(), digest_size=16)
        files = [*self._files(), *(p for pattern in self.annotations for p in sorted(self.home.glob(pattern)))]
        for path in files:
            try:
                state = path.stat()
                says = _content(path, None if content else TAIL) if stat.S_ISREG(state.st_mode) else ""
            except OSError as error:
                raise self._error(f"'{path}' cannot be read ({error.strerror or error}).") from None
            time = 0 if content else state.st_mtime_ns
            digest.update(repr((os.path.relpath(path, self.home), state.st_size, time, says)).encode())
        return digest.hexdigest()

    def _files(self) -> Sequence[Path]:
        """The files that hold the images of this part."""
        return self._index.paths

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""
        return self._index.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return self._index.labels

    def sample(self, index: int) -> Sample:
        """Read one sample."""
        path = self._index.paths[index]
        name = as_text(os.path.relpath(path, self.home)) if self._index.ids is None else self._index.ids[index]
        image = np.array(read_image(path, upright=self.upright), dtype=np.uint8)
        with self._damage(f"what belongs to '{name}' is missing or damaged"):
            result = self._annotated(index, Sample(name, image, int(self.labels[index])))
        if result.mask is not None and result.mask.shape != result.image.shape[:2]:
            sides = " and ".join(f"{h} x {w}" for h, w in (result.mask.shape, result.image.shape[:2]))
            raise self._error(f"the mask and the image of '{name}' have other sizes: {sides}.")
        if result.boxes is not None and not np.isfinite(result.boxes).all():
            raise self._error(f"the boxes of '{name}' hold numbers that are not finite.")
        return result

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Whatever is raised on damaged files, in one line."""
        try:
            yield
        except XattnError:
            raise
        except self.damage as error:
            raise self._error(f"{what} ({type(error).__name__}: {reason_of(error)}).") from None

    def _annotated(self, index: int, sample: Sample) -> Sample:
        """The sample with its mask, boxes and parts."""
        return sample

    @abstractmethod
    def _list(self) -> Index:
        """Read the lists of the data set."""

    @cached_property
    def _index(self) -> Index:
        with self._damage(f"the lists in '{self.home}' are damaged or do not fit together"):
            index = self._list()
        if not len(index.labels):
            raise self._error(f"the {self.split} part in '{self.home}' lists no image.")
        if index.labels.min() < 0 or index.labels.max() >= len(index.classes):
            raise self._error(
                f"labels go from {index.labels.min()} to {index.labels.max()} but there are {len(index.classes)} "
                f"classes in '{self.home}'."
            )
        return index

    def _check(self) -> None:
        """Raise a DataError if something required is missing."""
        missing = [name for name in self.required if not (self.home / name).exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self._error(f"expected '{self.home / missing[0]}'{more} but found {listing(self.home)}.")

    def _check_files(self, paths: Sequence[Path]) -> None:
        """Raise a DataError if some of these files are missing; folders are listed, files not touched."""
        names: dict[Path, set[str]] = {}
        for folder in {p.parent for p in paths}:
            try:
                names[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
            except OSError as error:
                raise self._error(f"'{folder}' cannot be read ({error.strerror or error}).") from None
        missing = [p for p in paths if p.name not in names[p.parent]]
        if missing:
            raise self._error(
                f"{len(missing):,} of {len(paths):,} images of the {self.split} part are missing, the first is "
                f"'{missing[0]}' (its folder holds: {listing(missing[0].parent, 3)}); the data set is not complete."
            )

    def _error(self, text: str) -> DataError:
        where = f" Get it from {self.source} and pass the unpacked folder." if self.source else ""
        return DataError(f"{self.title}: {text}{where}")

    def _rows(
        self, name: str, fields: int, separator: str | None = None, *, whole: slice = NONE, real: slice = NONE
    ) -> list[list[Any]]:
        """Rows of a text file, cut in `fields` pieces; the last piece keeps its separators.

        Args:
            name: of the file.
            fields: pieces of a row.
            separator: between them; None is any white space.
            whole: the pieces that are whole numbers.
            real: the pieces that are numbers.

        Raises:
            DataError: with file and line, if a row is shorter or a piece is no number, or not within a billion.
        """
        path = self.home / name
        rows: list[list[Any]] = []
        for line, text in enumerate(read_list(path, self.title).splitlines(), 1):
            if not text.strip():
                continue
            row: list[Any] = [piece.strip() for piece in text.split(separator, fields - 1)]
            if len(row) < fields:
                raise self._error(
                    f"line {line} of '{path}' has {len(row)} fields, expected {fields}; the file is damaged or cut."
                )
            for pieces, kind in ((whole, int), (real, float)):
                try:
                    row[pieces] = [kind(piece) if len(piece) < 30 else math.nan for piece in row[pieces]]
                except ValueError:
                    row[pieces] = [math.nan]
                if not all(abs(value) < 1e9 for value in row[pieces]):
                    what = "whole numbers" if kind is int else "numbers"
                    raise self._error(f"line {line} of '{path}' has other fields than the {what} that are expected.")
            rows.append(row)
        return rows


def read_list(path: Path, what: str) -> str:
    """A text file of a data set, if it is a regular file of bounded size in UTF-8."""
    try:
        return read_regular(path, LIST_LIMIT).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{what}: '{path}' cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: '{path}' is not UTF-8 text ({error.reason} at byte {error.start:,}).") from None


def read_csv(path: Path, what: str, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields of each row of a table with at least these columns."""
    reader = csv.DictReader(io.StringIO(read_list(path, what), newline=""))
    try:
        rows = [(reader.line_num, {k: v or "" for k, v in row.items() if k}) for row in reader]
    except csv.Error as error:
        raise DataError(f"{what}: line {reader.line_num} of '{path}' is damaged ({error}).") from None
    names = [str(name)[:60] for name in reader.fieldnames or ()]
    if not set(columns) <= set(names):
        raise DataError(f"{what}: '{path}' must have columns {' and '.join(columns)} but has {', '.join(names[:9])}.")
    return rows


def class_number(text: str, where: str) -> int:
    """The number of a class that a table gives.

    Raises:
        DataError: if it is none, or beyond `CLASS_LIMIT`.
    """
    try:
        number = int(text) if len(text) < 20 else CLASS_LIMIT
    except ValueError:
        raise DataError(
            f"{where}: the label is '{text[:60]}', expected the number of a class; the row is damaged."
        ) from None
    if not -CLASS_LIMIT < number < CLASS_LIMIT:
        raise DataError(f"{where}: the label is {text[:60]}; classes are numbered from 0 on, {CLASS_LIMIT:,} at most.")
    return number


def class_names(names: Mapping[int, str], count: int, other: str = "class {}") -> tuple[str, ...]:
    """Names of the classes from 0 to `count`, those without a name by their number.

    Raises:
        DataError: if there are more than `CLASS_LIMIT`.
    """
    if count > CLASS_LIMIT:
        raise DataError(f"labels go up to {count - 1}; classes are numbered from 0 on, {CLASS_LIMIT:,} at most.")
    return tuple(names.get(i, other.format(i)) for i in range(count))
