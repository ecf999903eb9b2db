"""From what a user writes to a data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

from xattn.data import datasets
from xattn.data.dataset import Dataset
from xattn.data.file_dataset import FileDataset
from xattn.data.finding import SUFFIXES, listing, nearest_path
from xattn.data.folder import ImageFolder, class_folders, find_parts
from xattn.data.parquet import Parquet, parquet_parts
from xattn.errors import DataError, ParameterError, unknown

TRAINING = ("train", "training")
EVALUATION = ("val", "valid", "validation", "test", "testing")
LAYOUTS = (
    "class folders (DIR/cat/1.jpg), parts of class folders (DIR/train/cat/1.jpg), parquet files "
    "(DIR/train-*.parquet), or NAME:DIR for a known data set"
)


class NoPartError(DataError):
    """A part that a data set does not have, as opposed to one that is damaged."""


def open_dataset(text: str | Path, split: str | None = None) -> Dataset:
    """Open the data set that a text names, whatever its layout.

    Args:
        text: a folder, a parquet file, `NAME:ROOT` for one of `datasets.names()` (`cub:/data/cub`), with parameters as
            in `aircraft:/data/aircraft,level=family`, or the name alone for one without files (`synthetic:length=100`).
            A folder may hold folders of classes, parts (`train`, `val`) of class folders, parquet files, or a data set
            that is known by its files.
        split: a part by its own name, or `"train"` and `"val"` or `"test"`, which stand for the part to train on and
            the one to test on under whatever name. None is the part to train on. Data without parts give all of it for
            None and for `"train"`, and raise for the others: hold some out with `xattn.data.split`.

    Returns:
        The data set, checked as far as can be seen without opening images.

    Raises:
        DataError: if nothing that can be read is there, with what was looked for and what was found.
        UnknownNameError: for an unknown data set or part.
    """
    path = Path(text).expanduser()
    name, colon, rest = str(text).partition(":")
    if path.exists():
        return _from_path(path, split)
    if name in datasets:
        return _from_name(name, rest, split)
    if colon and not any(c in name for c in "/\\."):
        raise unknown("data set", name, datasets.names())
    guess = nearest_path(path)
    hint = f" Did you mean '{guess}'?" if guess else ""
    raise DataError(f"{text}: does not exist.{hint} Expected {LAYOUTS}: {', '.join(datasets.names())}.")


def _from_name(name: str, rest: str, split: str | None) -> Dataset:
    factory = cast(Any, datasets.get(name))
    fields = {f.name for f in dataclasses.fields(factory)}
    if "root" not in fields:
        created = datasets.parse(f"{name}:{rest}" if rest else name)
        if "split" in fields:
            try:
                return created if split is None else dataclasses.replace(cast(Any, created), split=split)
            except ParameterError as error:
                raise NoPartError(str(error)) from None
        if split is None or split in TRAINING:
            return created
        raise _no_part(f"data set '{name}'", split)
    root, _, parameters = rest.partition(",")
    if "=" not in parameters:
        root, parameters = rest, ""  # a comma in the name of the folder
    root = root.strip().removeprefix("root=")
    if not root:
        raise ParameterError(f"data set '{name}' needs the folder that it is in; write {name}:/path/to/folder.")
    if factory is Parquet or factory is ImageFolder:
        known = _parts(factory, Path(root).expanduser())
        chosen = _choose(known, split, root)
    elif not issubclass(factory, FileDataset):  # it hands the word on to the data set that it reads
        chosen = split or TRAINING[0]
    else:
        chosen = _own_split(factory, split)
    if not parameters:
        return datasets.create(name, root=root, split=chosen)
    return datasets.parse(f"{name}:root={root},split={chosen},{parameters}")


def _own_split(kind: type[FileDataset], split: str | None) -> str:
    """The part of a data set of known parts that a word stands for."""
    if split is None:
        return kind.training
    if split in kind.splits:
        return split
    if split in TRAINING:
        return kind.training
    if split in EVALUATION:
        if kind.evaluation is None:
            raise _no_part(kind.title, split)
        return kind.evaluation
    raise unknown(f"split of {kind.title}", split, kind.splits)


def _choose(parts: list[str], split: str | None, where: str | Path) -> str:
    """The part that a word stands for, among those that are there."""
    if split is not None and split in parts:
        return split
    if split is None or split in TRAINING:
        return next((p for p in (*TRAINING, "all") if p in parts), parts[0] if parts else "all")
    if split in EVALUATION:
        root = Path(where).expanduser()
        classes = class_folders(root) if parts == ["all"] else []  # a class may be called `test`
        for word in (split, *EVALUATION):
            if word in parts:
                return word
            if (root / word).is_dir() and word not in classes:  # damaged: another part would pass for it
                raise DataError(f"{where}: its part '{word}' holds no folders of images: {listing(root / word)}.")
        raise _no_part(str(where), split)
    raise unknown(f"split of '{where}'", split, parts)


def _no_part(where: str, split: str) -> DataError:
    return NoPartError(
        f"{where}: has no '{split}' part; hold some images out of the others (xattn.data.split) or name another folder."
    )


def _parts(kind: type[Dataset], root: Path) -> list[str]:
    if kind is Parquet:
        return ["all"] if root.is_file() else list(parquet_parts(root))
    return list(find_parts(root)) or ["all"]


def _from_path(path: Path, split: str | None) -> Dataset:
    if path.is_file():
        if path.suffix == ".parquet":
            return Parquet(path, "all")
        archive = path.suffix in (".zip", ".tar", ".tgz", ".gz")
        raise DataError(f"{path}: is a file; {'unpack it first' if archive else f'expected {LAYOUTS}'}.")
    if not path.is_dir():
        raise DataError(f"{path}: is neither a file nor a folder; expected {LAYOUTS}.")
    for name in datasets.names():
        kind = datasets.get(name)
        if isinstance(kind, type) and issubclass(kind, FileDataset) and kind.sign:
            homes = (path, *(path / folder for folder in kind.folders))
            if any(all(_is_there(home, sign) for sign in kind.sign) for home in homes):
                return kind(path, _own_split(kind, split))
    if parts := _parts(Parquet, path):
        return Parquet(path, _choose(parts, split, path))
    if class_folders(path):
        return ImageFolder(path, _choose(_parts(ImageFolder, path), split, path))
    loose = sum(p.suffix.lower() in SUFFIXES for p in path.iterdir())
    if loose:
        raise DataError(f"{path}: holds {loose} images but no class folders; put the images of each class in a folder.")
    raise DataError(f"{path}: holds no data set that is known: found {listing(path)}. Expected {LAYOUTS}.")


def _is_there(home: Path, sign: str) -> bool:
    return (home / sign).is_dir() if sign.endswith("/") else (home / sign).is_file()
