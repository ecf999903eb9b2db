r"""Formulas: LaTeX in the sources, MathML in the pages, so that no script and no network is needed to read them."""

from __future__ import annotations

import html
import re
import tomllib
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("formulas.toml")
_LONG = 110  # characters of LaTeX, which are about a line
_MATH = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


@cache
def formulas(kind: str) -> dict[str, str]:
    """LaTeX by registered name, of `methods` or `metrics`."""
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))[kind]


def display(kind: str, name: str) -> str:
    """The formula of an entry as a paragraph of Markdown, on several lines if it is long; empty where there is none."""
    latex = formulas(kind).get(name, "").strip()
    if len(latex) > _LONG:
        latex = "\\begin{array}{l}" + re.sub(r",?\s*\\qquad", r" \\\\", latex) + "\\end{array}"
    return f"$$\n{latex}\n$$" if latex else ""


def to_mathml(page: str) -> str:
    """Replace what the extension arithmatex marked in the HTML of a page."""
    from latex2mathml.converter import convert

    def converted(match: re.Match[str]) -> str:
        tag, bracket, latex = match.groups()
        found = convert(html.unescape(latex).strip(), display="block" if bracket == "[" else "inline")
        return f'<{tag} class="formula">{found}</{tag}>'

    return _MATH.sub(converted, page)
