"""`xattn list`: the methods, models, scores, data sets and metrics there are."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from xattn.cli import console, options
from xattn.errors import unknown
from xattn.registry import first_sentence, paper_of

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn list methods",
        "xattn list models --filter resnet",
        "xattn list methods --json",
    )
)

Row = dict[str, Any]


def show(
    kind: Annotated[
        str, typer.Argument(metavar="WHAT", help="methods, models, scores, datasets or metrics.")
    ] = "methods",
    only: Annotated[str, typer.Option("--filter", "-f", help="Only names that contain this.", metavar="TEXT")] = "",
    as_json: options.AsJson = False,
) -> None:
    """List what there is, with one line each: methods (with paper and cost), models, scores, datasets, metrics."""
    if kind.lower() not in _ROWS:
        raise unknown("thing to list", kind, _ROWS)
    rows = [row for row in _ROWS[kind.lower()]() if only.lower() in row["name"].lower()]
    if as_json:
        console.show_json(rows)
        return
    foreign = [] if only.lower().startswith("timm") else [row for row in rows if row.get("from") == "timm"]
    rows = [row for row in rows if row not in foreign] if foreign else rows
    _print_table(kind.lower(), rows)
    if foreign:
        console.say(f"and {len(foreign)} of timm, as timm/NAME: xattn list models --filter timm/{only or 'resnet'}")
    if kind.lower() == "methods":
        console.say("Cost is what a method adds to the one forward pass that all of them share.")
        console.say("Parameters: xattn explain -m brnpa:parts=4 …   All that fit a model: -m all")


def _print_table(title: str, rows: list[Row]) -> None:
    if not rows:
        console.say(f"there are no {title} of that name.")
        return
    columns = [c for c in rows[0] if any(row[c] not in ("", None, {}, []) for row in rows) and c != "parameters"]
    heads = [
        {"header": c.replace("_", " "), **({"no_wrap": True, "style": "cyan"} if c == "name" else {})} for c in columns
    ]
    console.table([[_cell(row[c]) for c in columns] for row in rows], *heads)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _parameters(factory: Any) -> dict[str, str]:
    """Parameters of a factory with their defaults, as text."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return {}
    return {
        name: "" if p.default is inspect.Parameter.empty else repr(p.default)
        for name, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _methods() -> list[Row]:
    from xattn.explainers import explainers

    rows = []
    for name in explainers.names():
        kind: Any = explainers.get(name)
        family = getattr(kind, "family", "")
        rows.append(
            {
                "name": name,
                "what": first_sentence(kind),
                "family": getattr(family, "value", str(family)),
                "class_specific": bool(getattr(kind, "class_specific", True)),
                "cost": getattr(kind, "passes", ""),
                "paper": paper_of(kind),
                "parameters": _parameters(kind),
            }
        )
    return rows


def _models() -> list[Row]:
    from xattn.models import models, timm_models, torchvision_models

    rows: list[Row] = [
        {"name": name, "what": first_sentence(factory := models.get(name)), "from": "xattn", "paper": paper_of(factory)}
        for name in models.names()
    ]
    for name in torchvision_models.names():
        from torchvision.models import get_model_builder

        # "ResNet-50 from `Title <https://arxiv.org/abs/1512.03385>`__."
        text = " ".join((inspect.getdoc(get_model_builder(name)) or "").split())
        paper = re.search(r"`([^`<]*?)\s*<(?:https?://)?([^>]*)>`__?", text)
        what = re.split(r"\s+(?:architecture |model |based )*(?:architecture )?from\b", text)[0]
        what = re.sub(r"^Constructs an? ", "", what).split(". ")[0]
        source = "" if paper is None else f"{paper[1]}, {paper[2].replace('arxiv.org/abs/', 'arXiv:').rstrip('/')}"
        rows.append({"name": name, "what": what, "from": "torchvision", "paper": source})
    if importlib.util.find_spec("timm") is not None:
        import timm

        prefix = timm_models.PREFIX
        rows += [{"name": prefix + n, "what": "", "from": "timm", "paper": ""} for n in timm.list_models()]
    return rows


def _scores() -> list[Row]:
    from xattn.score import SCORES

    return [{"name": name, "what": first_sentence(function)} for name, function in SCORES.items()]


def _datasets() -> list[Row]:
    from xattn.data import datasets

    return [
        {"name": name, "what": first_sentence(factory := datasets.get(name)), "paper": paper_of(factory)}
        for name in datasets.names()
    ]


def _metrics() -> list[Row]:
    from xattn.metrics import metrics

    rows = []
    for name in metrics.names():
        kind: Any = metrics.get(name)
        columns = {column: direction.value for column, direction in getattr(kind, "columns", {}).items()}
        rows.append(
            {
                "name": name,
                "what": first_sentence(kind),
                "columns": [f"{column} ({better} is better)" for column, better in columns.items()],
                "paper": paper_of(kind),
                "parameters": _parameters(kind),
            }
        )
    return rows


_ROWS: dict[str, Callable[[], list[Row]]] = {
    "methods": _methods,
    "models": _models,
    "scores": _scores,
    "datasets": _datasets,
    "metrics": _metrics,
}
