"""Where the files of a run are: a folder, or a place of any file system that fsspec knows, such as `s3://bucket/run`.

Every file of a result folder is read, written and listed by these functions. A file appears whole or not at all
everywhere: beside its place and moved there on a disk, in one request in an object store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from xattn.errors import DataError, ParameterError, needs
from xattn.files import read_regular, sweep, whole_file, write_once

_MARK = "://"


def place(text: str | os.PathLike[str]) -> Path:
    """A path on the disk, or one of another file system where the text is a URL.

    The latter has the methods of a path that name things (`/`, `name`, `parent`), and is a path to callers.

    Raises:
        ParameterError: if it is no name of a place, the file system is not known, or what it needs is not installed.
    """
    if hasattr(text, "fs"):
        return cast(Path, text)
    if "\0" in str(text):
        raise ParameterError(f"{str(text)!r} is no name of a place: no file system has a null byte in a name.")
    if isinstance(text, Path) or _MARK not in str(text):
        return Path(text)
    needs("remote", f"'{text}'")
    from upath import UPath

    try:
        path = UPath(text)
        path.fs  # noqa: B018 (where the file system is made, or is not)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ParameterError(f"'{text}' is on a file system that cannot be opened here ({reason}).") from None
    return Path(path.path) if path.protocol in ("file", "local") else cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether a path is not one of the disk."""
    return not isinstance(path, Path) and hasattr(path, "fs")


def make(folder: Path, home: Path) -> None:
    """Make a folder within another one; object stores have none.

    Raises:
        DataError: if a link leads out of the latter.
    """
    if is_remote(folder):
        cast(Any, folder).fs.makedirs(cast(Any, folder).path, exist_ok=True)
        return
    if not folder.resolve().is_relative_to(home.resolve()):
        raise DataError(f"'{folder}' is or lies behind a link out of '{home}', where nothing is written.")
    folder.mkdir(parents=True, exist_ok=True)


def own(path: Path, home: Path) -> None:
    """Refuse a link to another place.

    Raises:
        DataError: for one.
    """
    if not is_remote(path) and not path.resolve().is_relative_to(home.resolve()):
        raise DataError(f"'{path}' is a link to another place; a report reads nothing outside '{home}'.")


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder by a pattern that may have folders in it, in order; none where there is no folder."""
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    there = cast(Any, folder)
    there.fs.invalidate_cache()  # other processes write
    start = f"{there.path.rstrip('/')}/"
    found = [name for name in there.fs.glob(start + pattern) if name.startswith(start)]
    return sorted((folder / name.removeprefix(start) for name in found), key=str)


def read(path: Path, limit_bytes: int) -> bytes:
    """The content of a file of a bounded size.

    Raises:
        FileNotFoundError: if there is none.
        DataError: for what is no regular file, or larger.
    """
    if not is_remote(path):
        return read_regular(path, limit_bytes)
    there = cast(Any, path)
    content = bytes(there.fs.cat_file(there.path, start=0, end=limit_bytes + 1))
    if len(content) > limit_bytes:
        raise DataError(f"'{path}' is larger than {limit_bytes:,} bytes, the most that is read of such a file.")
    return content


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file in place of what is there; nothing is visible of it until it is whole."""
    if is_remote(path):
        cast(Any, path).fs.pipe_file(cast(Any, path).path, bytes(content))
        return
    with whole_file(path, durable=True) as temporary:
        temporary.write_bytes(content)


def write_first(path: Path, content: bytes) -> bool:
    """Write a file unless it is there; whether it was written. Of two processes one is first."""
    if not is_remote(path):
        return write_once(path, content)
    there = cast(Any, path)
    there.fs.invalidate_cache()
    if there.fs.exists(there.path):
        return False
    try:
        there.fs.pipe_file(there.path, content, mode="create")
    except FileExistsError:
        return False
    return True


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written in a folder for an hour; object stores have none of it."""
    if not is_remote(folder):
        sweep(folder)


def modified(path: Path) -> float | None:
    """When a file was written, in seconds since 1970; None where the file system does not tell."""
    if not is_remote(path):
        return path.stat().st_mtime
    try:
        return float(cast(Any, path).fs.modified(cast(Any, path).path).timestamp())
    except (NotImplementedError, AttributeError, KeyError, TypeError):
        return None
