"""`xattn evaluate`: accuracy, sparsity, what each rank of parts knows, and speed of a trained network."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli import console, options

if TYPE_CHECKING:
    from xattn.training.evaluation import Evaluation

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn evaluate runs/high/best.safetensors --data birds/",
        "xattn evaluate tiny-brnpa --data tiny-imagenet:data/tiny-imagenet --json > result.json",
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
        typer.Option(metavar="NAME", help="Part of the data set.", show_default="the test part, else all there is"),
    ] = None,
    batch_size: options.BatchSize = 128,
    device: options.Device = "auto",
    workers: Annotated[int, typer.Option(metavar="N", help="Processes that decode large images.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Judge a trained network on labelled images: top-1, top-5, sparsity, accuracy by rank of the parts, speed."""
    from xattn.data.opening import NoPartError
    from xattn.device import find_device
    from xattn.errors import ParameterError, XattnWarning
    from xattn.models.embedded import FOLDER
    from xattn.models.factory import FactoryError
    from xattn.schema import Range, check
    from xattn.training.data import open_source
    from xattn.training.evaluation import evaluate as measure
    from xattn.training.evaluation import load_trained
    from xattn.training.recipe import DataSection

    options.check_numbers({"--batch-size": batch_size})
    if data is None:
        raise ParameterError("evaluate: pass the folder of the images with --data.")
    shipped = FOLDER / f"{checkpoint}.safetensors"
    if weights is None:
        file, factory = shipped if shipped.is_file() else Path(checkpoint), None
    else:
        file, factory = Path(weights), checkpoint
    try:
        model, ranks = load_trained(file, factory)
    except FactoryError as error:
        command = shlex.join(["xattn", "evaluate", error.factory, "--weights", error.path, "--data", data])
        raise FactoryError(error.path, error.factory, command) from None
    check(batch_size, Annotated[int, Range(1, 65_536)], "--batch-size")
    section = DataSection(source=data, workers=check(workers, Annotated[int, Range(0, 256)], "--workers"))
    try:
        source, used = open_source(section, split or "test"), split or "test"
    except NoPartError:
        if split is not None:
            raise
        source, used = open_source(section, None), "all"
        warnings.warn(
            f"'{data}' has no test part, so all of it is scored: if the network was trained on these images, new ones "
            "will score lower.",
            XattnWarning,
            stacklevel=2,
        )
    known = len(source.classes)
    if model.spec.classes and len(model.spec.classes) != known:
        raise ParameterError(
            f"evaluate: the network knows {len(model.spec.classes)} classes but the images have {known}; pass the data "
            "set that it was trained on."
        )
    result = measure(model, source, ranks=ranks, batch_size=batch_size, device=find_device(device))
    if as_json:
        about = {"checkpoint": checkpoint, "data": data, "split": used}
        console.show_json({**about, **result.to_dict()})
        return
    _show(result)


def _show(result: Evaluation) -> None:
    """The result as a table."""
    maps = "of the attention maps" if result.maps == "attention" else "of the class activation map"
    rows: list[tuple[str, str, str]] = [
        ("images", f"{result.images:,}", ""),
        ("top-1", f"{result.top1:.2%}", ""),
        ("top-5", f"{result.top5:.2%}", ""),
    ]
    if result.density is not None and result.sparsity is not None:
        rows += [
            ("density x", f"{result.density:.4f}", f"mean brightness {maps}"),
            ("sparsity 1/x", f"{result.sparsity:.2f}", "mean over images; high is sparse"),
        ]
    rows += [(f"parts {name}", f"{value:.2%}", f"top-1, {result.rank_heads}") for name, value in result.ranks.items()]
    rows += [
        ("images per second", f"{result.images_per_second:.0f}", "forward pass"),
        ("parameters", f"{result.parameters:,}", ""),
    ]
    console.table(rows, {"style": "cyan", "no_wrap": True}, {"justify": "right", "no_wrap": True}, {}, heads=False)
