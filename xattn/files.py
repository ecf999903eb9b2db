"""Files that appear whole or not at all, and that are read only if they are regular files of a bounded size."""

from __future__ import annotations

import functools
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xattn.errors import DataError

_PREFIX = ".xattn-"  # of temporary files
_LEFT_OVER_S = 3600.0  # a file is written within seconds


@contextmanager
def whole_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` to write to, moved into place at the end and removed after an error.

    It has a random name, which keeps the suffix by which many writers choose the format, and is made exclusively: what
    somebody laid in its place, a link among them, is never written to. What killed processes left in the folder is
    swept first.

    Args:
        path: a link in its place is replaced, not followed.
        durable: the content is on the disk before it moves into place, so that it survives a power failure.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     [p.name for p in Path(folder).iterdir()]
    ['a.txt']
    """
    path = Path(path)
    with _temporary(path) as temporary:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable and os.name == "posix":
            _sync(path.parent)


def write_once(path: Path, content: bytes) -> bool:
    """Write a file unless it is there, whole or not at all; whether it was written. Of two processes one is first."""
    if path.exists():
        return False
    with _temporary(path) as temporary:
        temporary.write_bytes(content)
        _sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            temporary.replace(path)
    return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file of a random name beside another one, removed at the end."""
    temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}{path.suffix[:16]}")
    try:
        _sweep_once(path.parent)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # messages name the file that was wanted
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_regular(path: str | Path, limit_bytes: int) -> bytes:
    """The content of a regular file; a pipe or device would wait for ever or never end.

    Raises:
        OSError: if there is none or it cannot be read.
        DataError: for anything but a regular file, and for one above the limit.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"'{path}' is no regular file.")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit_bytes:
        raise DataError(f"'{path}' is larger than {limit_bytes:,} bytes, the most that is read of such a file.")
    return content


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder: temporary files untouched for an hour."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.lstat().st_mtime > _LEFT_OVER_S:
                path.unlink(missing_ok=True)
        except OSError:
            continue  # another process was quicker, or it is somebody else's


@functools.lru_cache(maxsize=256)
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
