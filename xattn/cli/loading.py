"""Models from the command line, and files that appear whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xattn.cli import console
from xattn.errors import DataError, ParameterError, XattnError, reason_of
from xattn.files import whole_file

if TYPE_CHECKING:
    import torch

    from xattn.file_loop import Network
    from xattn.models.header import Architecture

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def load(
    name: str,
    *,
    weights: str | None = None,
    head: str | None = None,
    resolution: str | None = None,
    parts: int | None = None,
    device: torch.device | None = None,
    given: Mapping[str, Any] | None = None,
    transform: Callable[..., Any] | None = None,
) -> Network:
    """Load a model by name, by `package.module:factory`, or from a weights file that says what it is.

    Args:
        name: one of the three.
        weights: `DEFAULT` for the weights that a library offers, or a file; None leaves what the model comes with.
        head: `linear`, `bcnn` or `brnpa`; a trained network without such a head is converted to `brnpa`.
        resolution: `low`, `x2`, `x4`, `x8` or `high`: finer maps by dilation. With a head that is trained or to be
            trained `high` is without the last strides, as it was trained.
        parts: number of attention maps of the head.
        device: where to put it.
        given: what a person says about its images and classes, as arguments of `ModelSpec.given`.
        transform: what prepares its images.

    Raises:
        UnknownNameError: for a model, module or factory that does not exist.
        CheckpointError: for weights that do not fit or cannot be loaded safely.
        SpecError: if facts about the model cannot be inferred.
    """
    from xattn.file_loop import Network
    from xattn.inspection import infer_spec
    from xattn.inspection.processors import prepared_by, transformed
    from xattn.models import create_model, models
    from xattn.models.checkpoint import read_state
    from xattn.models.embedded import FOLDER
    from xattn.spec import ModelSpec

    file = Path(name).suffix.lower() in _WEIGHT_SUFFIXES and ":" not in Path(name).name
    own = ":" in name and not file
    if file:
        read_state(name)  # what is wrong with the file itself comes first
    given = given or {}
    hub = name.startswith("hf/")  # comes with its weights
    complete = file or own or hub or name in models
    saved = _saved(name if file else weights)
    has_head = saved is not None and saved.head not in (None, "linear")
    shared = head == "brnpa" and (complete or weights is not None) and not has_head
    own_head = head if not shared else None
    # A converted network is made as fine as it is asked to be; dilating its dilated layers would be another network.
    remade = saved is not None and saved.converted
    finer = resolution not in (None, "low") and (own_head is None or resolution != "high") and not remade
    asked = {
        "head": own_head, "resolution": None if finer else resolution,
        "parts": parts if own_head is not None else None, "input_size": given.get("size"),
    }  # fmt: skip
    options: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    try:
        model = create_model(name, weights=weights, **options)
    except XattnError:
        raise
    except Exception as error:  # whatever foreign code raises
        if not own:
            raise
        raise ParameterError(
            f"--model {name} raised {type(error).__name__} ({reason_of(error)}); --debug shows where."
        ) from error
    label = name.rpartition(":")[2] if own else str(Path(*Path(name).with_suffix("").parts[-2:])) if file else name
    label = Path(name).name if hub else label
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        spec = infer_spec(model, name=label, transform=transform)
    if transform is not None:
        spec = prepared_by(spec, transformed(transform))
    spec = spec.given(**given)
    if device is not None:
        model = model.to(device)
    random: Literal["", "weights", "head"] = ""
    embedded = (FOLDER / f"{name}.safetensors").is_file()  # of these, one with another head is another network
    if weights is None and (not complete or (own_head is not None and embedded)):
        random = "weights"
    elif own_head is not None and (saved is None or (saved.head or "linear") != own_head):
        random = "head"
    network = Network(model.eval(), spec, label, random=random)
    if shared and spec.attention == "brnpa" and parts is not None:
        raise ParameterError(f"--parts {parts}: {label} has a brnpa head of its own; leave out --head.")
    if shared and spec.attention != "brnpa":
        return _changed(network, "brnpa", 3 if parts is None else parts, resolution or "low")
    if finer and not (resolution == "high" and getattr(model, "architecture", {}).get("resolution") == "high"):
        return _changed(network, None, 0, str(resolution))
    return network


def _saved(weights: str | None) -> Architecture | None:
    """What a file says of the network whose weights it has."""
    from xattn.models.header import is_file, read_header

    if weights is None or not (weights.endswith(".safetensors") and is_file(Path(weights))):
        return None
    return read_header(weights).architecture


def _changed(network: Network, head: str | None, parts: int, resolution: str) -> Network:
    """A copy with the pooling of a head, with finer maps, or both; it remembers the network."""
    import dataclasses

    from xattn.models import convert
    from xattn.models.converting import finer
    from xattn.models.dilation import factor_of

    spec = network.spec
    name = " ".join([network.name, *([head] if head else []), *([resolution] if resolution != "low" else [])])
    if head is not None:
        made: Any = convert(network.model, head=head, parts=parts, resolution=resolution, spec=spec)
        return dataclasses.replace(network, model=made, spec=made.spec, name=name, original=network)
    copy, spec = finer(network.model, factor_of(resolution), spec=spec)
    return dataclasses.replace(network, model=copy, spec=spec, name=name, original=network)


def advise(network: Network) -> None:
    """Warn of what a network does not say or does not know, and of what takes long."""
    from xattn.models.shifting import by_shifts

    if network.random == "weights":
        console.warn(f"{network.name} has random weights, so its maps mean nothing; pass --weights DEFAULT or a file.")
    elif network.random == "head":
        console.warn(
            f"{network.name} has a random head, so its classes and maps mean nothing; train it (xattn train), pass the "
            "file of one, or take --head brnpa alone, which shares the trained classifier."
        )
    if network.spec.mean is None:
        console.warn(
            f"{network.name} does not say how its images are normalized; they are passed as they are, from 0 to 1. "
            "Pass --mean and --std if it was trained otherwise."
        )
    if network.original is not None and (copies := by_shifts(network.model)):
        console.warn(
            f"{network.name} runs on {copies} shifted copies of each image, as its strides cannot become dilation: "
            f"{copies} passes of {network.original.name} each."
        )


@contextmanager
def picture_file(path: Path) -> Iterator[Path]:
    """As `whole_file`; a file that cannot be written is told by its own name.

    Raises:
        DataError: if the disk is full or the folder cannot be written to.
    """
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error
