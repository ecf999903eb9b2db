"""From paths, folders and patterns to image files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from xattn.errors import nearest

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm"),
    *(".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga", ".ico", ".heic", ".heif"),
)
"""Endings, in lower case, by which an image is known inside a folder. A file named by itself may end as it likes."""

NAMES_COMPARED = 10_000
NAME_LENGTH = 255  # no file has a longer name


@dataclass(frozen=True)
class Problem:
    """Why a path gave no image.

    Args:
        path: as it was given or found.
        reason: what is wrong and what to do, without the path.
        note: True if nothing is lost, as for a path that was given twice.
    """

    path: str
    reason: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def natural_key(text: str | Path) -> list[tuple[int, int, str]]:
    """Sorting key under which numbers inside names count as numbers.

    >>> sorted(["b10.png", "b9.png", "a.png"], key=natural_key)
    ['a.png', 'b9.png', 'b10.png']
    """
    pieces = re.split(r"([0-9]+)", str(text))
    return [(0, int(p), "") if i % 2 else (1, 0, p.lower()) for i, p in enumerate(pieces)]


def find_images(
    paths: str | Path | Sequence[str | Path], *, recursive: bool = True
) -> tuple[list[Path], list[Problem]]:
    """Image files that paths, folders and glob patterns stand for.

    Arguments keep their order; inside a folder or a pattern names sort naturally (`9.png` before `10.png`). A folder
    gives the files with the ending of an image (`SUFFIXES`), hidden ones left out; linked folders are not entered. A
    file named by itself is taken whatever its ending. No file is opened.

    Args:
        paths: files, folders or patterns (`*`, `?`, `[]`, `**`), `~` being expanded.
        recursive: also look into the folders of a folder.

    Returns:
        The files, each once, and what went wrong: missing paths with the nearest name, folders without an image,
        folders that cannot be read; a path given twice is a problem with `note=True`.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files: list[Path] = []
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    for item in given:
        for path in _expand(item, recursive, problems):
            key = os.path.realpath(path)  # unlike Path.resolve it bears links that go round in a circle
            if key in seen:
                problems.append(Problem(str(path), f"was given before as '{seen[key]}'; it is used once.", note=True))
            else:
                seen[key] = path
                files.append(path)
    return files, problems


def _expand(item: str | Path, recursive: bool, problems: list[Problem]) -> list[Path]:
    """Files of one argument, in natural order."""
    text = str(item)
    if not text.strip():
        problems.append(Problem("''", "is an empty path; name a file, a folder or a pattern."))
        return []
    path = Path(item).expanduser()
    try:
        if path.is_dir():
            return _walk(path, recursive, problems)
        if path.exists():
            return [path]
    except PermissionError:
        problems.append(Problem(text, "permission denied; make the folders above it readable for this user."))
        return []
    except OSError as error:
        problems.append(Problem(text, f"cannot be looked up ({error.strerror or error})."))
        return []
    if not any(c in text for c in "*?["):
        problems.append(Problem(text, missing_path(path).removeprefix(f"{path}: ")))
        return []
    files: list[Path] = []
    try:
        for match in _glob(path):
            if match.is_dir():
                files += _walk(match, recursive, [])  # a folder without images is no fault of the pattern
            elif match.suffix.lower() in SUFFIXES and not match.name.startswith("."):
                files.append(match)
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        problems.append(Problem(text, f"is a pattern that cannot be followed ({error})."))
        return []
    if not files:
        problems.append(Problem(text, "no image matches this pattern."))
    return sorted(dict.fromkeys(files), key=natural_key)


def _glob(pattern: Path) -> Iterable[Path]:
    """Paths that match; the part of the pattern before the first wildcard is the folder to start from."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return Path(*parts[:first]).glob(str(Path(*parts[first:])))


def _walk(folder: Path, recursive: bool, problems: list[Problem]) -> list[Path]:
    """Image files of a folder, in natural order."""

    def refuse(error: OSError) -> None:
        problems.append(Problem(str(error.filename or folder), f"cannot be read ({error.strerror or error})."))

    before = len(problems)
    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".")] if recursive else []
        files += [Path(root, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    if not files and len(problems) == before:
        deeper = "" if recursive else " Its own folders were not looked into."
        problems.append(Problem(str(folder), f"holds no image (looked for .jpg, .png, .webp and the like).{deeper}"))
    return sorted(files, key=natural_key)


def missing_path(path: Path) -> str:
    """Message for a path that does not exist, with the nearest that does."""
    if path.is_symlink():
        return f"{path}: is a link to '{path.readlink()}', which leads nowhere."
    guess = nearest_path(path)
    hint = f" Did you mean '{guess}'?" if guess else ""
    parent = next((p for p in path.parents if p.exists()), None)
    where = f" There is no folder '{path.parent}'." if parent is not None and parent != path.parent else ""
    return f"{path}: does not exist.{where}{hint}"


def nearest_path(path: str | Path) -> Path | None:
    """The existing path that looks most like one that is missing, or None if none comes close.

    The first component that does not exist is compared with what its folder holds, up to `NAMES_COMPARED` names.
    """
    missing = Path(path)
    tail: list[str] = []
    while not missing.parent.exists() and missing.parent != missing:
        tail.insert(0, missing.name)
        missing = missing.parent
    try:
        names = [entry.name for entry in islice(missing.parent.iterdir(), NAMES_COMPARED)]
    except OSError:
        return None
    if len(missing.name) > NAME_LENGTH:
        return None
    guess = nearest(missing.name, names) or nearest(missing.stem, names)
    if guess is None:
        return None
    near = missing.parent / guess
    return near.joinpath(*tail) if tail and near.joinpath(*tail).exists() else near


def as_text(name: str) -> str:
    r"""A name of a file as text that can be written anywhere: bytes that are no UTF-8 become escapes.

    >>> print(as_text("caf\udce9.png"))
    caf\xe9.png
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def listing(folder: Path, limit: int = 6) -> str:
    """What a folder holds, for messages.

    >>> listing(Path("/nowhere"))
    'no such folder'
    """
    if not folder.is_dir():
        return "no such folder"
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    except OSError:
        return "a folder that cannot be read"
    if not names:
        return "an empty folder"
    more = f" … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
