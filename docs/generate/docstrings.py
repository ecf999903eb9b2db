"""Docstrings as Markdown: their examples are code, and their brackets are no links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def readable(text: str) -> str:
    """The text of a docstring with its doctests fenced and `[a][b]` outside code kept as it is written."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        starts = line.lstrip().startswith(">>>")
        if starts and not inside:
            lines += ["", _indent(line) + "```pycon"]
        elif inside and not line.strip():
            lines.append(_indent(lines[-1]) + "```")
        inside = starts or (inside and bool(line.strip()))
        lines.append(line)
    if inside:
        lines.append(_indent(lines[-1]) + "```")
    pieces = _CODE.split("\n".join(lines))
    return "".join(piece if number % 2 else piece.replace("[", "&#91;") for number, piece in enumerate(pieces))


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


class Readable(griffe.Extension):
    """Every docstring of the API reference, made `readable`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object once it is complete."""
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
