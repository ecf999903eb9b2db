"""`xattn train`: train a network with attention on one's own images, or as a recipe says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn.cli import console, options

if TYPE_CHECKING:
    from xattn.training.checkpoint import Progress
    from xattn.training.recipe import Recipe


EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn train --data birds/ --backbone resnet18 --weights DEFAULT --out runs/low",
        "xattn train --data birds/ --backbone resnet18 --resolution high --teacher runs/low/best.safetensors "
        "--out runs/high",
        "xattn train --data cows/ --task reid --backbone resnet18 --image-size 128x64 --out runs/cows",
        "xattn train recipe.toml --set epochs=5 --set optimizer.lr=0.02",
        "xattn train --data birds/ --augment removal --start runs/low/best.safetensors --out runs/scorer",
        "torchrun --nproc-per-node 2 -m xattn train recipe.toml   [dim]# two processes; or --devices 2[/dim]",
        "The same command goes on where an earlier one stopped. See what was learned: "
        "xattn explain photo.jpg --model runs/high/best.safetensors",
        "DIR has one folder of images for each class, or parquet files, or is one of: xattn list datasets",
    )
)


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe (TOML); options override it.", metavar="RECIPE")
    ] = None,
    data: options.Data = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="classify|reid|fewshot",
            help="What is learned; with parameters, as in reid:instances=8. See: xattn list tasks",
        ),
    ] = None,
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="A CNN by name, such as resnet50.")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="NAME", help="Pretrained weights of the backbone, such as DEFAULT.")
    ] = None,
    head: Annotated[str | None, typer.Option(metavar="linear|bcnn|brnpa", help="Pooling.")] = None,
    parts: Annotated[int | None, typer.Option(metavar="N", help="Attention maps of the head.")] = None,
    resolution: options.Resolution = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="FILE", help="Distil from these weights, and start there.")
    ] = None,
    start: Annotated[str | None, typer.Option(metavar="FILE", help="Start from these weights.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="removal", help="Fine-tune a copy of --start to images that lack cells: a scorer for a benchmark."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the images.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images in a step, of each process.")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="PIXELS|HxW", help="Size of an image, such as 224 or 256x128.")
    ] = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="Highest learning rate.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="32-true|bf16-mixed", help="Arithmetic.")] = None,
    accelerator: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")] = None,
    devices: Annotated[str | None, typer.Option(metavar="N", help="Processes or devices.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything random.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any other key of the recipe.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even if the folder holds a run.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train or distil a CNN, B-CNN or BR-NPA; the best epoch on held-out training images is kept.

    Tasks: classify images, tell individuals apart (reid), or learn new classes from a few images (fewshot).
    """
    from xattn.errors import ParameterError
    from xattn.schema import toml
    from xattn.training.recipe import Recipe

    if recipe is None and data is None:
        raise ParameterError("train: pass a recipe, or the folder of your images with --data.")
    usual: dict[str, object] = {}
    if augment is not None:
        start, usual = _scorer(augment, start, backbone, recipe)
    given: dict[str, object] = {
        "data.source": data,
        "run.task": task,
        "model.backbone": backbone,
        "model.weights": weights,
        "model.head": head,
        "model.parts": parts,
        "model.resolution": resolution,
        "model.start": start,
        "distill.teacher": teacher,
        "run.out": out,
        "run.epochs": epochs,
        "run.batch_size": batch_size,
        "run.image_size": None if image_size is None else options.sides(image_size, "--image-size"),
        "optimizer.lr": lr,
        "run.precision": precision,
        "run.accelerator": accelerator,
        "run.devices": int(devices) if devices and devices.isdecimal() and len(devices) < 9 else devices,
        "run.seed": seed,
    }
    given = usual | {key: value for key, value in given.items() if value is not None}
    overrides = [f"{key}={toml(value)}" for key, value in given.items()]
    overrides += list(change or [])
    plan = Recipe.read(recipe, overrides) if recipe is not None else Recipe.build({}, overrides, "options")
    raise typer.Exit(_run(plan, fresh=fresh, quiet=quiet))


def _scorer(
    augment: str, start: str | None, backbone: str | None, recipe: Path | None
) -> tuple[str | None, dict[str, object]]:
    """The file to start from, and what options leave open: the network in it, and how a scorer is fine-tuned."""
    from xattn.errors import ParameterError
    from xattn.models.embedded import FOLDER
    from xattn.models.header import read_header

    if augment != "removal":
        raise ParameterError(
            f"--augment must be removal but is '{augment}'; other changes are keys, augment.flip=false."
        )
    usual: dict[str, object] = {"augment.removal": "mixed"}
    if recipe is not None:
        return start, usual
    if start is None:
        raise ParameterError(
            "train: --augment removal fine-tunes a copy of a network; name its weights with --start, "
            "as runs/low/best.safetensors or tiny-cnn."
        )
    shipped = FOLDER / f"{start}.safetensors"
    start = str(shipped) if shipped.is_file() else start
    header = read_header(start)
    network, spec = header.architecture, header.spec
    usual |= {"run.epochs": 5, "optimizer.lr": 0.01, "optimizer.label_smoothing": 0.0}
    if network is not None:
        if ":" in network.backbone and backbone is None:
            raise ParameterError(
                f"'{start}' names '{network.backbone}', and a file does not choose what code is run here; if you trust "
                f"that code, name it yourself: --backbone {shlex.quote(network.backbone)}"
            )
        usual |= {
            "model.backbone": network.backbone,
            "model.head": network.head or "linear",
            "model.parts": network.parts,
            "model.resolution": network.resolution,
            "model.circular": network.circular,
        }
        keys = {"refine": "model.refine", "seed": "model.seed", "width": "model.attention_width"}
        usual |= {keys[name]: value for name, value in network.options.items() if name in keys}
    if spec is not None:
        usual["run.image_size"] = spec.input_size[0]
        if spec.crop < 1:
            usual["augment.resize"] = round(spec.input_size[0] / spec.crop)
    return start, usual


def _run(plan: Recipe, *, fresh: bool, quiet: bool) -> int:
    import logging

    import lightning.fabric  # noqa: F401

    from xattn.training.loop import train
    from xattn.training.stopping import RunStoppedError

    for name in ("lightning.fabric", "lightning.pytorch"):  # after the import, which sets another level
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with console.progress(shown=not quiet) as bar:
            monitor = Monitor(bar)
            result = train(plan, monitor, fresh=fresh)
    except RunStoppedError as stopped:
        console.fail(str(stopped))
        return 128 + stopped.number  # 130 after Ctrl-C
    if monitor.begun:  # the first process alone
        where = f"the {plan.data.validation} part" if plan.data.validation else "held-out training images"
        console.say(f"{result.best}: {result.measure} {result.value:.2%} on {where}, epoch {result.epoch}")
        backbone = plan.model.backbone
        names = [backbone, "--weights", str(result.best)] if ":" in backbone else [str(result.best)]
        console.say(f"next: xattn explain photo.jpg --model {shlex.join(names)}")
    return 0


class Monitor:
    """Progress on the terminal: a bar for the epoch under way, a line for each one done."""

    def __init__(self, bar: console.Bar) -> None:
        self.bar = bar
        self.begun = False
        self.steps = 0
        self.epochs = 0
        self.measure = ""

    def begin(self, recipe: Recipe, progress: Progress, steps_per_epoch: int, images: int, held_out: int) -> None:
        """Say what is trained, and from where it goes on."""
        self.begun = True
        self.steps, self.epochs, self.measure = steps_per_epoch, recipe.run.epochs, recipe.task.measure
        model = recipe.model
        self.bar.say(
            f"{model.backbone}, {model.head} head, {model.resolution} resolution: {images:,} images, "
            f"{held_out:,} held out"
        )
        if not (model.weights or model.start or recipe.distill.teacher):
            self.bar.say("starts from random weights; --weights DEFAULT takes pretrained ones")
        if progress.step:
            self.bar.say(f"goes on after {progress.epoch} epochs, step {progress.step}")
        self.bar.update(total=steps_per_epoch)

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Move the bar."""
        note = f"loss {loss:.3f}  accuracy {accuracy:.1%}  {rate:.0f} images/s"
        self.bar.update(done=step, what=f"epoch {epoch}/{self.epochs}", note=note)

    def epoch(self, row: dict[str, float], best: bool) -> None:
        """One line that stays."""
        self.bar.say(
            f"epoch {row['epoch']:.0f}/{self.epochs}  loss {row['train_loss']:.3f}  held-out {self.measure} "
            f"{row[f'held_out_{self.measure}']:.2%}{'  best so far' if best else ''}"
        )
