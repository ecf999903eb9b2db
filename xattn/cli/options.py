"""Options that several commands have, each written once, and their limits."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn.errors import ParameterError, reason_of

if TYPE_CHECKING:
    from xattn.file_loop import Settings

# The most that is asked for in earnest; each takes memory.
_LIMITS = {"--topk": 100, "--batch-size": 4096, "--parts": 1000, "--steps": 1000}
_FITS = ("crop", "squash", "whole")

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATHS", help="Images, folders and patterns such as 'photos/*.jpg'.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PACKAGE.MODULE:FACTORY|FILE",
        show_default="efficientnet_lite0",
        help="A model by name (xattn list models), one of your own, or a weights file that xattn wrote.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME|PACKAGE.MODULE:FACTORY|FILE",
        show_default="efficientnet_lite0, or a network inside the package that has what the methods read",
        help="A model by name (xattn list models), one of your own, or a weights file that xattn wrote; several models "
        "get a column each.",
    ),
]
ManyWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="DEFAULT|FILE",
        help="Weights of a model by name: those its library offers, or a file; of several models one for all, or one "
        "for each.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="DEFAULT|FILE", help="Weights of a model by name: those its library offers, or a file."),
]
Head = Annotated[
    str | None,
    typer.Option(
        metavar="linear|bcnn|brnpa",
        help="Put this head on the backbone of --model; brnpa shares the classifier of a trained one.",
    ),
]
Finer = Annotated[
    str | None,
    typer.Option(
        "--resolution",
        metavar="low|x2|x4|x8|high",
        help="Finer maps: of a copy whose last strides are dilation. high is x4; trained heads keep their own.",
    ),
]
Resolution = Annotated[
    str | None, typer.Option(metavar="low|high", help="high: without the strides of the last two stages.")
]
TopK = Annotated[
    int, typer.Option(metavar="K", help="Explain K classes: the target if there is one, then the most probable.")
]
Parts = Annotated[int | None, typer.Option(metavar="N", help="Number of parts, for methods and heads that have parts.")]
Alpha = Annotated[
    float | None, typer.Option(metavar="0-1", help="How much the map covers the image.", show_default="by method")
]
Colormap = Annotated[str, typer.Option(metavar="NAME", help="Colour map of single maps.")]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="crop|squash|whole", show_default="as the model was made", help="How an image fits the model's input."
    ),
]
Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Mean of the model's images, scaled to 0-1, if it does not say it.")
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation, likewise.")]
Classes = Annotated[
    str | None, typer.Option(metavar="FILE|A,B,…", help="Names of the classes in order: a file of lines, or a list.")
]
Size = Annotated[str | None, typer.Option(metavar="PIXELS|HxW", help="Size of the model's input.")]
Transform = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MODULE:NAME",
        help="A transform of your own, from a Pillow image to the model's input, in place of size, mean and std.",
    ),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Values shown as black and white in images of more than 8 bits."),
]
Score = Annotated[str, typer.Option(metavar="NAME", help="The number to explain: logit, prob, sigmoid or margin.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="DIR|NAME:DIR", help="Folder of the images, or a data set by name (xattn list datasets)."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result machine-readable; what people read goes to stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, only the result.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Precision = Annotated[str, typer.Option(metavar="fp32|bf16|fp16", help="Of the model's arithmetic.")]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Images that go through the model together.")]


def check_numbers(counts: Mapping[str, int | None], alpha: float | None = None) -> None:
    """Refuse counts outside the limits of their options, and an opacity that is none."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ParameterError(f"{option} must be at least 1 but is {value}.")
        if value is not None and value > _LIMITS[option]:
            raise ParameterError(f"{option} must be at most {_LIMITS[option]} but is {value}.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ParameterError(f"--alpha must lie between 0 and 1 but is {alpha}.")


def check_folder(folder: Path, out: Path | None = None) -> None:
    """Refuse a folder of `--out` that cannot be made, before the work whose results it is for; nothing is made yet.

    Args:
        folder: to be made.
        out: the value of the option, where that is a file in the folder.

    Raises:
        ParameterError: if a file is in its place or above it, or nothing can be written there.
    """
    reason = None
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not there.is_dir():
            reason = os.strerror(errno.ENOTDIR)
        elif not os.access(there, os.W_OK):
            reason = os.strerror(errno.EACCES)
    except OSError as error:  # such as a name that is too long
        reason = reason_of(error)
    if reason is not None:
        what = "" if out is None else f"{folder} "
        raise ParameterError(f"--out {folder if out is None else out}: {what}cannot be made a folder ({reason}).")


def check_file(out: Path, suffixes: tuple[str, ...], expected: str) -> None:
    """Refuse a file of `--out` that cannot be written, before the work whose result it is for.

    Args:
        out: the file.
        suffixes: those it may have, in lower case.
        expected: what the name must be, for the message.

    Raises:
        ParameterError: for a folder, another suffix, or a folder that cannot be made.
    """
    if out.suffix.lower() not in suffixes or out.is_dir():
        raise ParameterError(f"--out {out}: expected the name of {expected}.")
    check_folder(out.parent, out)


def given(mean: str | None, std: str | None, classes: str | None, size: str | None) -> dict[str, Any]:
    """What a person says about a model, as arguments of `ModelSpec.given`; what is not said is left out."""
    values: dict[str, Any] = {
        "mean": None if mean is None else numbers("--mean", mean),
        "std": None if std is None else numbers("--std", std),
        "classes": None if classes is None else _names(classes),
        "size": None if size is None else sides(size, "--size"),
    }
    for key in ("mean", "std"):
        if (value := values[key]) is not None and len(value) == 1:
            values[key] = value[0]
    return {key: value for key, value in values.items() if value is not None}


def sides(text: str, option: str) -> Any:
    """One side of a square, or height and width, of the text of an option."""
    found = numbers(option, text.lower().replace("x", ","), int)
    if len(found) > 2:
        raise ParameterError(f"{option}: expected one side or HxW but is '{text}'.")
    return found[0] if len(found) == 1 else found


def numbers(option: str, text: str, kind: type[float] | type[int] = float) -> tuple[float, ...]:
    """Numbers of an option with commas between them."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"{option}: expected numbers with commas between them but is '{text}'.") from None


def transform_of(name: str | None, fit: str | None, window: str | None, size: str | None) -> Callable[..., Any] | None:
    """The transform of `--transform`, which does alone what the other options of images do.

    Raises:
        ParameterError: beside one of these, or for what cannot be called.
        UnknownNameError: for a name that cannot be imported.
    """
    if name is None:
        return None
    from xattn.models.named import import_named

    if beside := [f"--{k}" for k, v in {"fit": fit, "window": window, "size": size}.items() if v is not None]:
        raise ParameterError(f"--transform prepares the images alone; leave {' and '.join(beside)} out.")
    return import_named(name, "--transform", "transform", "a function of a Pillow image")


def window_of(text: str | None) -> tuple[float, float] | None:
    """The window of `--window`."""
    if text is None:
        return None
    ends = numbers("--window", text)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ParameterError(f"--window: expected LOW,HIGH with LOW < HIGH but is '{text}'.")
    return ends[0], ends[1]


def _names(text: str) -> list[str]:
    """Names of classes: the lines of a file, or what stands between commas."""
    path = Path(text).expanduser()
    if not path.is_file():
        if path.suffix == ".txt":
            raise ParameterError(f"--classes: there is no file '{text}'.")
        return [name.strip() for name in text.split(",")]
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"--classes {text}: cannot be read as text ({reason_of(error)}).") from None
    return [line.strip() for line in content.splitlines() if line.strip()]


def settings(*, device: str, colormap: str, **values: Any) -> Settings:
    """What is asked of every image, once everything in it is known to exist.

    Args:
        device: where to compute; checked here too.
        colormap: of the pictures; checked here too.
        values: the fields of `Settings`.
    """
    from xattn.device import at_precision, find_device
    from xattn.file_loop import Settings
    from xattn.score import find_score
    from xattn.viz import colormap as find_colormap

    find_colormap(colormap)
    with at_precision(values["precision"], find_device(device)):
        find_score(values["score"])
    if values["fit"] not in (None, *_FITS):
        raise ParameterError(f"--fit must be crop, squash or whole but is '{values['fit']}'.")
    return Settings(**values)
