"""What the pages of methods and of metrics share: the words of a class, its parameters, its source."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any

import griffe

from docs.generate.docstrings import readable
from xattn.registry import canonical, first_sentence, paper_of

_SOURCE = re.compile(r"\s*\((?:[^()]|\([^()]*\))*(?:arXiv:|\b(?:19|20)\d\d\b)(?:[^()]|\([^()]*\))*\)")  # in a sentence
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_DOI = re.compile(r"(?<![\w/])(10\.\d{4,}/[^\s,;)]+)")


def slug(name: str) -> str:
    """A registered name as part of an address."""
    return canonical(name)


def parsed(kind: type) -> tuple[str, dict[str, str]]:
    """The text of the docstring of a class, and the descriptions of its parameters."""
    text, parameters = [], {}
    doc = griffe.Docstring(readable(inspect.cleandoc(kind.__dict__.get("__doc__") or "")))
    for section in griffe.parse_google(doc, warn_missing_types=False, warn_unknown_params=False):
        if section.kind is griffe.DocstringSectionKind.text:
            text.append(section.value)
        elif section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
            parameters |= {item.name: " ".join(item.description.split()) for item in section.value}
    return "\n\n".join(text), parameters


def words(kind: type) -> tuple[str, str]:
    """The first sentence, without the source, and all that follows it."""
    text, _ = parsed(kind)
    first, *rest = text.split("\n\n")
    more = re.split(r"(?<=[^.\s]{2})\.(?:\s|$)", _SOURCE.sub("", " ".join(first.split())), maxsplit=1)[1:]
    return first_sentence(kind), "\n\n".join([*more, *rest])


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, empty if it has no rows."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    names = list(header)
    return "\n".join([f"| {' | '.join(names)} |", "|" + " --- |" * len(names), *lines]) + "\n" if lines else ""


def facts(**named: str) -> str:
    """Facts as one line, which breaks where the screen is narrow; `_` in a name is a blank."""
    return " · ".join(f"**{name.replace('_', ' ')}** {value}" for name, value in named.items()) + "\n{ .facts }\n"


def parameters(kind: Any) -> str:
    """The fields of a dataclass with their defaults and descriptions, from the class that has each."""
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("builtins"):
            continue
        described |= parsed(base)[1]
    hints = typing.get_type_hints(kind)
    rows = [
        (f"`{f.name}` = `{_plain(f.default)}`", _with_choices(described.get(f.name, ""), hints[f.name]))
        for f in dataclasses.fields(kind)
        if f.init
    ]
    return table(("parameter, default", "what it does"), rows)


def _plain(value: Any) -> str:
    """A default as it is written on the command line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def _with_choices(text: str, hint: Any) -> str:
    """The description of a parameter, with the values that it can take where it does not name them itself."""
    values = [str(v) for v in typing.get_args(hint)] if typing.get_origin(hint) is typing.Literal else []
    if all(value in text for value in values):
        return text
    return f"{text} One of {', '.join(f'`{value}`' for value in values)}."


def source(kind: Any) -> str:
    """The paper of a class with its address."""
    text = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", paper_of(kind))
    return _DOI.sub(r"[\1](https://doi.org/\1)", text)


def reference(kind: type) -> str:
    """A link to the class in the API reference, or its name where it is not of this package."""
    path = f"{kind.__module__}.{kind.__qualname__}"
    return f"[`{kind.__name__}`][{path}]" if kind.__module__.startswith("xattn.") else f"`{path}`"
