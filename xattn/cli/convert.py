"""`xattn convert`: a trained classifier becomes one whose attention can be read, and what that costs is measured."""

from __future__ import annotations

import csv
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.cli import console, options
from xattn.errors import DataError, ParameterError, XattnError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xattn.file_loop import Network
    from xattn.models import Classifier
    from xattn.models.fitting import Fit
    from xattn.spec import ModelSpec

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "xattn convert efficientnet_lite0 --data photos/ --out readable.safetensors",
        "xattn convert resnet50 --weights DEFAULT --resolution x2 --parts 4 --data photos/ --out readable.safetensors",
        "xattn convert efficientnet_lite0 --resolution x4 --data photos/ --fit others/ --out net.safetensors",
        "xattn convert nets:build --weights mine.safetensors --data photos/ --labels labels.csv --out net.safetensors",
        "xattn convert efficientnet_lite0 --resolution x4 --data photos/ --distil others/ --out net.safetensors",
        "Then: xattn explain photo.jpg --model readable.safetensors",
        "Images need no labels: what is measured is whether both networks say the same. With labels (a table, or "
        "folders called like the classes) it is told how many each of them has right, too.",
    )
)


def convert(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A trained CNN by name, one of your own, or a weights file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The converted network, .safetensors.")],
    weights: Annotated[
        str | None, typer.Option(metavar="DEFAULT|FILE", help="Weights of MODEL: those its library offers, or a file.")
    ] = None,
    head: Annotated[
        str, typer.Option(metavar="brnpa|bcnn", help="Pooling in place of the mean; bcnn needs --distil.")
    ] = "brnpa",
    parts: Annotated[int, typer.Option(metavar="N", help="Parts that the attention has.")] = 3,
    resolution: Annotated[
        str,
        typer.Option(metavar="low|x2|x4|x8|high", help="How much finer its maps are; high is x4."),
    ] = "low",
    weighting: Annotated[
        str | None,
        typer.Option(
            metavar="coverage|equal",
            help="Parts count as much as they cover (the default), or the same, as in the paper.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH|NAME:DIR", help="Images to measure on: files, folders, patterns, data sets."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table (CSV) of file and label: the index or the name of the class."),
    ] = None,
    recalibrate: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH|NAME:DIR", help="Other images, from which batch norm takes its statistics anew."),
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH|NAME:DIR", help="Other images, on which its classifier is fitted to MODEL at once."),
    ] = None,
    ridge: Annotated[
        float | None,
        typer.Option(
            metavar="R", help="Of --fit: more stays nearer to the old classifier; else what suits images held out."
        ),
    ] = None,
    distil: Annotated[
        str | None,
        typer.Option(metavar="DIR|NAME:DIR", help="Other images, without labels, on which it learns from MODEL."),
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="N", help="Of --distil: passes over the images.")] = 2,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Of --distil: highest learning rate.")] = 0.001,
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Of --distil: also those before the removed strides.")
    ] = False,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    size: options.Size = None,
    as_json: options.AsJson = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 8,
) -> None:
    """Turn a trained classifier into one whose attention can be read, without training, and measure the change.

    The mean over the cells becomes the part maps of BR-NPA, the trained classifier is shared by the parts, and for
    finer maps the last strides become dilation. Where a linear layer alone follows the mean, answers stay at low.
    """
    from xattn.cli.loading import advise, load
    from xattn.device import find_device
    from xattn.models import convert as converted
    from xattn.models import save_weights
    from xattn.models.agreement import relative_cost
    from xattn.models.converting import norms_behind, recalibrated, weighting_of
    from xattn.models.fitting import fit as fitted
    from xattn.models.heads import pooling_head
    from xattn.models.shifting import by_shifts

    options.check_numbers({"--parts": parts, "--batch-size": batch_size})
    if out.suffix != ".safetensors":
        raise ParameterError(f"--out {out}: must end in .safetensors.")
    options.check_folder(out.parent, out)
    if fit and ridge is not None and not ridge > 0:
        raise ParameterError(f"--ridge must be positive but is {ridge}.")
    if head == "bcnn" and distil is None:
        raise ParameterError("--head bcnn has attention of its own, which must be trained: pass --distil DIR.")
    if labels is not None and not data:
        raise ParameterError("--labels needs --data, the images that they are of.")
    network = load(model, weights=weights, device=find_device(device), given=options.given(mean, std, classes, size))
    warn = functools.cache(console.warn)  # the same images are read for each measurement
    first = next(iter(batches(data, network.spec, batch_size, warn=warn)), None) if data else None
    x = None if first is None else first[0][:2].to(_place(network.model))
    made = converted(
        network.model, head=head, parts=parts, resolution=resolution, weighting=weighting, spec=network.spec, x=x
    )
    advise(network)
    if distil is not None:
        pooling_head(made, "--distil")
    if recalibrate:
        norms_behind(made)
    say = lambda text: console.say(text, err=as_json)  # noqa: E731
    cells = _grid(made)
    say(f"{network.name}: {parts} parts on a grid of {cells[0]}x{cells[1]}, checked against the network itself")
    if weighting_of(made) == "coverage":
        say("each part counts as much as it covers, the last one for what the others leave")
    if shifted := by_shifts(made):
        say(f"its strides cannot become dilation, so it runs on {shifted} shifted copies of each image, unchanged")
    result: dict[str, Any] = {
        "model": network.name, "parts": parts, "resolution": resolution, "shifts": bool(shifted),
        "weighting": weighting_of(made), "grid": cells,
    }  # fmt: skip
    cost = relative_cost(network.model, made, _one(made) if x is None else x[:1])
    result["cost"] = round(cost, 3)
    say(f"a pass costs {cost:.2f} passes of {network.name}")
    if data:
        known = _labels(labels, network.spec) if labels is not None else None
        result["agreement"] = _measure(network, made, data, known, batch_size, say, warn, "as converted")
    if recalibrate:
        images = (x for x, _ in batches(recalibrate, network.spec, batch_size, warn=warn))
        count = recalibrated(made, (x.to(_place(made)) for x in images))
        say(f"batch norm took its statistics from {count} images")
        result["recalibrated_on"] = count
        if data:
            result["recalibrated"] = _measure(network, made, data, known, batch_size, say, warn, "recalibrated")
    if fit:
        images = (x for x, _ in batches(fit, network.spec, batch_size, warn=warn))
        found = fitted(network.model, made, (x.to(_place(made)) for x in images), spec=network.spec, ridge=ridge)
        result |= {"fitted_on": found.images, "ridge": found.ridge}
        say(_told(found, network.name))
        if data:
            result["fitted"] = _measure(network, made, data, known, batch_size, say, warn, "fitted")
    if distil is not None:
        _learn(network, made, distil, out, epochs, lr, all_layers, batch_size)
        result["distilled"] = {"on": distil, "epochs": epochs, "lr": lr, "all_layers": all_layers}
        if data:
            result["distilled"] |= _measure(network, made, data, known, batch_size, say, warn, "distilled")
    save_weights(made, out, extra={"conversion": result})
    say(f"wrote {out}; next: xattn explain photo.jpg --model {out}")
    if as_json:
        console.show_json({**result, "file": str(out)})


def _learn(
    network: Network, made: Classifier, images: str, out: Path, epochs: int, lr: float, all_layers: bool, batch: int
) -> None:
    """Let the converted network learn from the network itself, in place; the run goes on where it was stopped."""
    from xattn.cli.train import Monitor
    from xattn.models import save_weights
    from xattn.models.checkpoint import digest_of, load_state, read_state
    from xattn.training.loop import train
    from xattn.training.recipe import Recipe
    from xattn.training.stopping import RunStoppedError

    spec = network.spec
    if spec.input_size[0] != spec.input_size[1]:
        raise ParameterError(f"--distil: images are square but {network.name} takes {spec.input_size}; pass --size.")
    # A folder for each pair of networks and each setting: a run goes on where its own was stopped, and no other.
    settings = (made.architecture, images, epochs, lr, all_layers, batch, spec.input_size)
    key = hashlib.blake2b(repr(settings).encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    folder = out.with_suffix(".distil") / f"{digest_of(network.model)[:8]}-{digest_of(made)[:8]}-{key}"
    teacher, student = folder / "teacher.safetensors", folder / "student.safetensors"
    # As the trainer normalizes: by the facts that the files say.
    network.model.spec = spec  # type: ignore[assignment]
    save_weights(network.model, teacher)
    save_weights(made, student)
    recipe = Recipe.build(
        {
            "data": {"source": images},
            "model": {
                "backbone": made.architecture["backbone"], "weights": str(student), "head": made.head.name,
                "parts": made.architecture["parts"], "freeze_batchnorm": True, "freeze_front": not all_layers,
            },
            "distill": {"teacher": str(teacher), "weight": 1.0, "temperature": 2.0, "labels": "teacher"},
            "optimizer": {"lr": lr, "weight_decay": 0.0, "label_smoothing": 0.0, "warmup_epochs": 0.1},
            "augment": {"resize": round(spec.input_size[0] / spec.crop)},
            "run": {
                "out": str(folder), "epochs": epochs, "batch_size": batch, "image_size": spec.input_size[0],
                "tensorboard": False, "accelerator": network_accelerator(network.model),
            },
        }
    )  # fmt: skip
    try:
        with console.progress(shown=console.is_watched()) as bar:
            result = train(recipe, Monitor(bar))
    except RunStoppedError as stopped:
        console.fail(str(stopped))
        raise typer.Exit(128 + stopped.number) from None
    load_state(made, read_state(result.best), str(result.best))


def network_accelerator(model: nn.Module) -> str:
    """Where the trainer computes: beside the network."""
    kind = str(_place(model).type)
    return kind if kind in ("cuda", "mps") else "cpu"


def _measure(
    network: Any, made: Any, data: Sequence[str], known: Any, batch_size: int, say: Any, warn: Any, what: str
) -> Any:
    from xattn.models.agreement import agreement

    place = _place(network.model)
    pairs = ((x.to(place), y) for x, y in batches(data, network.spec, batch_size, known, warn=warn))
    found = agreement(network.model, made, pairs, spec=network.spec, changed_spec=made.spec)
    say(f"{what}: {found}")
    if known is not None and not found.labelled:
        console.warn("--labels: none of its files is among the images of --data, so that no class is known.")
    if found.labelled:
        n = found.labelled
        say(f"right on {found.right_before / n:.1%} before and {found.right_after / n:.1%} now, of {n} labelled images")
    return found.to_dict()


def _told(found: Fit, name: str) -> str:
    """What came of fitting the classifier."""
    if found.ridge is None:
        return f"the classifier stays as it is: no fit to {found.images} images brings it nearer to {name} on others"
    text = f"the classifier was fitted to what {name} says of {found.images} images"
    if math.isnan(found.after):
        return text
    return f"{text}; on those held out it diverges by {found.after:.2g} in place of {found.before:.2g}"


def _place(model: nn.Module) -> Any:
    from xattn.trace import place_of

    return place_of(model)[0]


def _one(made: Any) -> Tensor:
    from xattn.models.trunk import noise

    return noise(made, made.spec.input_size)


def _grid(made: Any) -> tuple[int, int]:
    import torch

    with torch.no_grad():
        h, w = made.backbone(_one(made)).shape[2:]
    return h, w


def batches(
    texts: Sequence[str],
    spec: ModelSpec,
    size: int,
    known: dict[str, int] | None = None,
    *,
    warn: Callable[[str], None] = console.warn,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images (N, C, H, W) as a network takes them, with the classes (N,) that are known, -1 elsewhere.

    Args:
        texts: files, folders, patterns, or data sets.
        spec: facts about the network.
        size: images in a batch.
        known: class by name of file; None takes folders that are called like a class.
        warn: is told of each image that cannot be read and is left out.
    """
    import torch

    from xattn.data.preprocessing import preprocess

    xs: list[Any] = []
    ys: list[int] = []
    for image, label in _images(texts, spec, known):
        try:
            xs.append(preprocess(image, spec))
        except DataError as error:
            warn(f"left out: {error}")
            continue
        ys.append(label)
        if len(xs) == size:
            yield torch.stack(xs), torch.tensor(ys)
            xs, ys = [], []
    if xs:
        yield torch.stack(xs), torch.tensor(ys)


def _images(texts: Sequence[str], spec: ModelSpec, known: dict[str, int] | None) -> Iterator[tuple[Any, int]]:
    from xattn.data import open_dataset
    from xattn.data.finding import find_images

    seen: set[Path] = set()
    for text in texts:
        files, problems = find_images([text])
        if files:
            for file in files:
                if file not in seen:
                    seen.add(file)
                    yield str(file), _label(file, spec, known)
            continue
        try:
            samples = open_dataset(text)
        except XattnError as error:
            raise DataError(str(problems[0]) if problems and Path(text).exists() else str(error)) from None
        names = [_class(name, spec) for name in samples.classes]
        for sample in samples:
            yield sample.image, names[sample.label] if known is None and sample.label < len(names) else -1


def _label(file: Path, spec: ModelSpec, known: dict[str, int] | None) -> int:
    if known is None:
        return _class(file.parent.name, spec)
    return known.get(file.name, known.get(str(file), -1))


def _class(name: str, spec: ModelSpec) -> int:
    """The class of that name, -1 where there is none."""
    try:
        return spec.class_index(name) if spec.classes and not name.isdecimal() else -1
    except XattnError:
        return -1


def _labels(path: Path, spec: ModelSpec) -> dict[str, int]:
    """Class by name of file, from a table."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"--labels {path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from None
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise ParameterError(f"--labels {path}: expected a table with the columns file and label, separated by commas.")
    known: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        if not row["file"] or not row["label"]:
            raise ParameterError(f"--labels {path}: line {number} needs a file and a label.")
        index = spec.class_index(row["label"])
        if index < 0 or (spec.classes and index >= len(spec.classes)):
            raise ParameterError(
                f"--labels {path}: line {number}: class {index} is none of {len(spec.classes)}, from 0."
            )
        known[row["file"]] = index
    return known
