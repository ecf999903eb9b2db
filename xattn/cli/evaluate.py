"""`xattn evaluate`: what a trained network is worth, by the measures of the task that it was trained for."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import console, options

if TYPE_CHECKING:
    from xattn.training.data import Source
    from xattn.training.tasks import Task

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn evaluate runs/high/best.safetensors --data birds/",
        "xattn evaluate runs/high/best.safetensors --data birds/ --out evaluation/  [dim]# tables by class[/dim]",
        "xattn evaluate tiny-brnpa --data tiny-imagenet:data/tiny-imagenet --json > result.json",
        "xattn evaluate runs/cows/best.safetensors --data cows/        [dim]# query against gallery[/dim]",
        "xattn evaluate runs/few/best.safetensors --data cifar-fs:data/cifar-fs --task fewshot:shot=5",
    )
)


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="best.safetensors of a run, or an embedded network by name.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="best.safetensors, if CHECKPOINT is a package.module:factory.")
    ] = None,
    data: options.Data = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Part of the data set.", show_default="the test part, or query in gallery for reid"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="classify|reid|fewshot",
            help="What to judge by; with parameters, as in fewshot:shot=5.",
            show_default="what it was trained for",
        ),
    ] = None,
    class_list: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only the classes that a file names, one a line.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Write classes.csv and confusion.csv (true class by predicted)."
        ),
    ] = None,
    batch_size: options.BatchSize = 128,
    device: options.Device = "auto",
    workers: Annotated[int, typer.Option(metavar="N", help="Processes that decode large images.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Judge a trained network by the measures of its task.

    Classes: top-1, top-5, accuracy class by class and what the rest is taken for, sparsity, accuracy by rank of the
    parts, speed. Individuals: rank-1, rank-5, rank-10, mAP.
    Few-shot: accuracy over episodes with its 95 % interval.
    """
    from xattn.device import find_device
    from xattn.errors import ParameterError
    from xattn.models.embedded import FOLDER
    from xattn.models.factory import FactoryError, is_weights_file
    from xattn.schema import Range, check
    from xattn.training.data import open_source
    from xattn.training.evaluation import load_trained
    from xattn.training.recipe import DataSection

    options.check_numbers({"--batch-size": batch_size})
    if data is None:
        raise ParameterError("evaluate: pass the folder of the images with --data.")
    if out is not None:
        options.check_folder(out)
    shipped = FOLDER / f"{checkpoint}.safetensors"
    if weights is None:
        file, factory = shipped if shipped.is_file() else Path(checkpoint), None
    else:
        file, factory = Path(weights), checkpoint
    if weights is None and not file.exists() and not is_weights_file(checkpoint):
        own = ", ".join(sorted(path.stem for path in FOLDER.glob("*.safetensors")))
        raise ParameterError(
            f"evaluate: '{checkpoint}' is no best.safetensors of a run and none of {own}. How often any network is "
            "right on labelled folders tells "
            f"`{shlex.join(['xattn', 'explain', data, '--model', checkpoint])}`."
        )
    try:
        model, ranks = load_trained(file, factory)
    except FactoryError as error:
        command = shlex.join(["xattn", "evaluate", error.factory, "--weights", error.path, "--data", data])
        raise FactoryError(error.path, error.factory, command) from None
    check(batch_size, Annotated[int, Range(1, 65_536)], "--batch-size")
    section = DataSection(
        source=data,
        workers=check(workers, Annotated[int, Range(0, 256)], "--workers"),
        class_list=class_list or "",
    )

    def open_part(part: str | None) -> Source:
        return open_source(section, part)

    goal = _task_of(file, task)
    facts, rows = goal.evaluate(model, open_part, split, ranks=ranks, batch_size=batch_size, device=find_device(device))
    if out is not None:
        if "per_class" not in facts:
            raise ParameterError(f"--out: {type(goal).__name__} has no classes to write a table of; leave --out out.")
        console.say(f"wrote {' and '.join(map(str, write_classes(out, facts['per_class'])))}", err=as_json)
    if as_json:
        console.show_json({"checkpoint": checkpoint, "data": data, "task": repr(goal), **facts})
        return
    console.table(
        [(row.name, row.value, row.note) for row in rows],
        *({"style": "cyan", "no_wrap": True}, {"justify": "right", "no_wrap": True}, {}),
        heads=False,
    )


def write_classes(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write accuracy class by class, and the confusion matrix: a row a true class, a column a predicted one."""
    from xattn.files import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    names = [r["name"] for r in results]
    columns = [*names, *dict.fromkeys(n for r in results for n in r["taken_for"] if n not in names)]
    hits = [round((r["top1"] or 0) * r["images"]) for r in results]
    matrix = [
        [r["name"], *(hit if name == r["name"] else r["taken_for"].get(name, 0) for name in columns)]
        for r, hit in zip(results, hits, strict=True)
    ]
    accuracies = [[r["name"], r["images"], hit, r["top1"]] for r, hit in zip(results, hits, strict=True)]
    tables = {
        "classes.csv": [["class", "images", "right", "top1"], *accuracies],
        "confusion.csv": [["true class", *columns], *matrix],
    }
    for name, table in tables.items():
        with whole_file(folder / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    return [folder / name for name in tables]


def _task_of(file: Path, text: str | None) -> Task:
    """The task that a person names, else the one that a network was trained for."""
    from xattn.errors import XattnError
    from xattn.models.header import read_header
    from xattn.training.tasks import tasks

    if text is not None:
        return tasks.parse(text)
    recipe = read_header(file).extra.get("recipe")
    run = recipe.get("run") if isinstance(recipe, dict) else None
    trained = run.get("task") if isinstance(run, dict) else None
    try:
        return tasks.parse(trained) if isinstance(trained, str) else tasks.create("classify")
    except XattnError:  # a task of another package that is not here
        return tasks.create("classify")
