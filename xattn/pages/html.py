"""What the pages share: templates, data that is safe inside a script, pictures as data, one look."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from xattn import __version__
from xattn.errors import DataError
from xattn.files import whole_file
from xattn.schema import finite
from xattn.viz import colormap

# Inside <script> these could end it, open a comment, or (as line ends of old JavaScript) break a string.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _visible(value: Any) -> Any:
    """A text without control characters and marks of direction, which would show something else than it says."""
    return _HIDDEN.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("xattn.pages"),
        autoescape=True,  # of every template, whatever its ending
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = as_json
    environment.globals["asset"] = asset
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template of this package and the values that it names; all text in them is escaped.

    Scripts run only with the nonce of the page, so that markup which slipped in could not run any.

    Args:
        template: file name inside `xattn/pages/templates`, such as `"compare.html.j2"`.
        values: of the variables. A name that the template asks for and that is missing is an error.
    """
    return "".join(_pieces(template, values))


def _pieces(template: str, values: dict[str, Any]) -> Iterator[str]:
    """A page piece by piece, so that rows which are iterated over need not be in memory together."""
    # From the content and not at random: the same run gives the same file. A digest stands for what can be read once.
    known = sorted((name, value) for name, value in values.items() if not isinstance(value, Iterator))
    nonce = hashlib.sha256(repr(known).encode("utf-8", "backslashreplace")).hexdigest()[:24]
    return _environment().get_template(template).generate(version=__version__, nonce=nonce, **values)


def write(path: str | Path, template: str, **values: Any) -> Path:
    """Render a page into a file, whole or not at all; its folder is made if there is none.

    Raises:
        DataError: if the file cannot be written.
    """
    path = Path(path)
    pieces = _pieces(template, values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(pieces)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error
    return path


class Spool:
    """Rows of a page on the disk until the page is written."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object)
        self._sum = hashlib.sha256()
        for row in rows:
            self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Put a row of plain values at the end."""
        data = json.dumps(row).encode() + b"\n"
        self._sum.update(data)
        self._file.seek(0, io.SEEK_END)
        self._file.write(data)
        self.count += 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        yield from map(json.loads, self._file)

    @property
    def digest(self) -> str:
        """What the rows are, in short."""
        return self._sum.hexdigest()

    def __del__(self) -> None:
        self._file.close()  # which is all that removes it


def asset(name: str) -> Markup:
    """A style sheet or a script of this package, to be put between its tags as it is."""
    loader = _environment().loader
    assert loader is not None  # noqa: S101 (a fact of the line that made it, for the type checker)
    return Markup(loader.get_source(_environment(), name)[0])


def as_json(value: Any) -> Markup:
    r"""Plain values as JSON that can stand in a script: it cannot end it, and what is not finite is null.

    >>> print(as_json(["</script>", float("nan")]))
    ["\u003c/script\u003e",null]
    """
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that needs no network.

    >>> data_uri(b"hi", "text/plain")
    'data:text/plain;base64,aGk='
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture_uri(picture: Image.Image, *, quality: int = 80) -> str:
    """A picture as WebP inside an address; as JPEG where this Pillow was built without WebP."""
    from PIL import features

    buffer = io.BytesIO()
    if features.check("webp"):
        picture.save(buffer, "WEBP", quality=quality, method=4)
        return data_uri(buffer.getvalue(), "image/webp")
    if "A" in picture.mode:  # JPEG has no transparency
        picture.save(buffer, "PNG", optimize=True)
        return data_uri(buffer.getvalue(), "image/png")
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def color_table(name: str) -> str:
    """The 256 colours of a colour map as base64 of their red, green and blue bytes."""
    table = np.rint(colormap(name) * 255).astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode("ascii")
