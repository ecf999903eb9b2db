"""Where photographs lie below the folders that were given, and the class that these folders say they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from xattn.errors import nearest
from xattn.spec import ModelSpec


def places(files: Iterable[Path], given: Iterable[str | Path]) -> dict[Path, Path]:
    """The folders between what was given and each file; none for a file that was given by itself or by a pattern.

    >>> [place.as_posix() for place in places([Path("photos/cat/1.jpg"), Path("dog.jpg")], ["photos"]).values()]
    ['cat', '.']
    """
    roots = [Path(item).expanduser() for item in given]
    return {
        file: next((file.parent.relative_to(root) for root in roots if file.parent.is_relative_to(root)), Path())
        for file in files
    }


def class_of(folders: Path, spec: ModelSpec) -> int | None:
    """The class that the nearest folder names, as the network calls it; None where no folder does.

    Names are compared without regard to capitals, `_` and `-`; of "tabby, tabby cat" each part is a name. A number is
    the name of a class only where the network calls it so, for its place among the folders is not known.

    >>> spec = ModelSpec(classes=("tabby, tabby cat", "tiger cat"))
    >>> class_of(Path("train/Tiger_cat/outdoors"), spec), class_of(Path("dogs"), spec)
    (1, None)
    """
    known = _known(spec.classes)
    return next((known[key] for name in reversed(folders.parts) if (key := _plain(name)) in known), None)


def label_of(folders: Path, specs: Sequence[ModelSpec]) -> str:
    """What the folders call a photograph: the one that names a class of a network, else the nearest one."""
    keys = {key for spec in specs for key in _known(spec.classes)}
    return next((name for name in reversed(folders.parts) if _plain(name) in keys), folders.name)


def strangers(folders: Iterable[Path], spec: ModelSpec) -> dict[str, str | None]:
    """Folders that name no class of a network, with the nearest class where one comes close."""
    names = [part.strip() for name in spec.classes for part in name.split(",")]
    unknown = sorted({str(folder) for folder in folders if folder.parts and class_of(folder, spec) is None})
    return {folder: nearest(Path(folder).name, names) for folder in unknown}


@lru_cache(maxsize=16)
def _known(classes: tuple[str, ...]) -> dict[str, int]:
    """Index by plain name; a whole name comes before a part of another one, as in `ModelSpec.class_index`."""
    parts = [(_plain(part), index) for index, name in enumerate(classes) for part in name.split(",")]
    whole = [(_plain(name), index) for index, name in enumerate(classes)]
    known: dict[str, int] = {}
    for key, index in (*whole, *parts):
        known.setdefault(key, index)
    return known


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())
