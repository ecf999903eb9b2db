"""Names of files: no two alike in one run, none too long, whatever the images are called."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

_LONGEST = 200  # bytes of a name, less than file systems take, for the suffix


class Names:
    """Names that were given in a run; each is given once, also where a file system does not tell capitals apart.

    >>> names = Names()
    >>> [names.new(text) for text in ("a b", "a/b", "A_B", "a_b-2", "", "x" * 9999)][:5]
    ['a_b', 'a_b-2', 'A_B-3', 'a_b-2-2', 'image']
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def new(self, text: str, limit: int = _LONGEST) -> str:
        """A name that stands for a text, with a number where the text, or one that looks like it, came before."""
        name = plain(text, limit)
        count = self._counts.get(_key(name), 0) + 1
        while _key(unique := name if count == 1 else f"{name}-{count}") in self._counts:
            count += 1
        self._counts[_key(name)] = count
        self._counts.setdefault(_key(unique), 1)
        return unique


class FolderNames:
    """Names of files in folders; each is given once in its folder.

    >>> names = FolderNames()
    >>> [names.new(Path(folder), "a") for folder in ("cat", "dog", "Cat")]
    ['cat/a', 'dog/a', 'Cat/a-2']
    """

    def __init__(self) -> None:
        self._names: dict[str, Names] = {}

    def new(self, folder: Path, text: str, limit: int = _LONGEST) -> str:
        """As `Names.new`, with the folder before it."""
        name = self._names.setdefault(_key(folder.as_posix()), Names()).new(text, limit)
        return (folder / name).as_posix()


def folder_name(folder: Path) -> Path:
    """The folders of an image as names that every file system takes."""
    return Path(*(plain(part, 120) for part in folder.parts))


def plain(text: str, limit: int = _LONGEST) -> str:
    """A text as a name that every file system takes.

    >>> plain("cats & dogs")
    'cats_dogs'
    """
    return shortened(re.sub(r"[^\w.+-]+", "_", text) or "image", limit)


def shortened(name: str, limit: int = _LONGEST) -> str:
    """A name of at most `limit` bytes; a digest of the whole stands for what is cut off.

    >>> shortened("x" * 9999, 20)
    'xxxxxxxxxxx-39ac231a'
    """
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name.encode()[: limit - 9].decode(errors='ignore')}-{digest}"


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKD", name).casefold())
