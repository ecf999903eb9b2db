"""What was made once and is still true: files under `build/docs`, by a digest of all that they depend on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "docs"


def digest(parts: Iterable[str | Path]) -> str:
    """A short number for texts and for the content of files and of folders of Python code."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else _content(part))
        state.update(b"\0")
    return state.hexdigest()


@cache
def _content(path: Path) -> bytes:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return b"\0".join(file.read_bytes() for file in files)


def kept(name: str, parts: Iterable[str | Path], make: Callable[[Path], None]) -> Path:
    """The file or folder `name`, made by `make` unless it is there and was made of the same parts.

    Args:
        name: `folder/stem.suffix`, or `folder/stem` of a folder; the digest goes between stem and suffix.
        parts: texts and files that it depends on.
        make: writes the file, or makes the folder, at the path that it is given.
    """
    path = HOME / name
    path = path.with_name(f"{path.stem}.{digest(parts)}{path.suffix}")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{Path(name).stem}.{'?' * 16}{path.suffix}"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        temporary = path.with_name(f".{path.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # of a build that was ended
        make(temporary)
        temporary.replace(path)
    return path
