"""What a weights file says about itself, read and checked before anything is built: safetensors start with JSON."""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from xattn.errors import CheckpointError, SpecError
from xattn.schema import Length, Range, build, check, read_json
from xattn.spec import MOST_CLASSES, ModelSpec

Resolution = Literal["low", "high", "x2", "x4", "x8"]
Weighting = Literal["equal", "coverage"]

MOST_PARTS = 64
SMALLEST_SIDE = 8  # pixels of an input
MOST_TENSORS = 50_000  # the largest networks have some thousands
HEADER_BYTES = 2**25
DIGEST = "xattn.digest"  # of everything else in the file, in its metadata


@dataclass(frozen=True)
class Architecture:
    """Arguments of `create_model` that make a network.

    Args:
        backbone: name of the network that the head is put on.
        head: name of the head; None is the network's own.
        parts: attention maps of the head.
        resolution: `"high"` without the strides of the last two stages, `"x2"`, `"x4"`, `"x8"` with dilation instead.
        circular: circular padding.
        classes: number of logits; None is that of the weights.
        options: of the head, where they differ from the default, for ablations.
        converted: the head is that of `xattn.convert`, with what the network has between pooling and classifier.
        weighting: of the parts of a converted network.
    """

    backbone: Annotated[str, Length(1, 200)]
    head: Annotated[str, Length(1, 50)] | None = None
    parts: Annotated[int, Range(1, MOST_PARTS)] = 3
    resolution: Resolution = "low"
    circular: bool = False
    classes: Annotated[int, Range(1, MOST_CLASSES)] | None = None
    options: Annotated[dict[str, Any], Length(0, 20)] = field(default_factory=dict)
    converted: bool = False
    weighting: Weighting = "equal"

    def to_dict(self) -> dict[str, Any]:
        """As plain values; options, `converted` and `weighting` are left out where they are as usual."""
        left_out = {
            "options": not self.options, "converted": not self.converted, "weighting": self.weighting == "equal",
        }  # fmt: skip
        return {key: value for key, value in dataclasses.asdict(self).items() if not left_out.get(key)}


@dataclass(frozen=True)
class Header:
    """What the start of a weights file says.

    Args:
        architecture: how to build the network; None in a file of other origin.
        spec: facts about the network; None in a file of other origin.
        extra: whatever else the writer noted: recipe, epoch, accuracy on the held-out images.
        shapes: of the tensors by name.
    """

    architecture: Architecture | None = None
    spec: ModelSpec | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a name that is no name of a file is none either."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def read_start(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Metadata of a safetensors file and shapes of its tensors by name, without reading a tensor.

    Raises:
        CheckpointError: if the file is missing, is no safetensors file, or has more than a header needs.
    """
    path = Path(path)
    if not is_file(path):
        raise CheckpointError(f"no weights at '{path}'; pass a .safetensors file, such as best.safetensors of a run.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= path.stat().st_size - 8:
            raise CheckpointError(f"'{path}' is no safetensors file.")
        if length > HEADER_BYTES:
            raise CheckpointError(f"'{path}' has a header of {length:,} bytes; at most {HEADER_BYTES:,} are read.")
        text = file.read(length)
    header = read_json(
        text, f"'{path}' is no safetensors file: its header", max_bytes=HEADER_BYTES, error=CheckpointError
    )
    if not isinstance(header, dict):
        raise CheckpointError(f"'{path}' is no safetensors file: its header is no table.")
    metadata = check(header.pop("__metadata__", {}), dict[str, str], f"'{path}': metadata", CheckpointError)
    if len(header) > MOST_TENSORS:
        raise CheckpointError(f"'{path}' lists {len(header):,} tensors; at most {MOST_TENSORS:,} are read.")
    return metadata, {name: _shape(entry, f"'{path}': tensor '{name}'") for name, entry in header.items()}


def _shape(entry: Any, what: str) -> tuple[int, ...]:
    sides = entry.get("shape") if isinstance(entry, Mapping) else None
    shape: tuple[int, ...] = check(
        sides, tuple[Annotated[int, Range(0, 2**40)], ...], f"{what}: shape", CheckpointError
    )
    return shape


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata that a safetensors file was given, without reading a tensor; errors as of `read_start`."""
    return {key: text for key, text in read_start(path)[0].items() if key != DIGEST}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Which network the weights of a safetensors file belong to; empty for a file that xattn did not write.

    Raises:
        CheckpointError: if the file is missing, is no safetensors file or has a damaged header.
    """
    metadata, shapes = read_start(path)
    text = metadata.get("xattn")
    return (
        Header(shapes=shapes) if text is None else parse_header(text, shapes, f"'{path}' is damaged: header of xattn")
    )


def parse_header(text: str, shapes: dict[str, tuple[int, ...]], what: str) -> Header:
    """The header that a JSON text says; errors begin with `what`."""
    values = read_json(text, what, max_bytes=HEADER_BYTES, error=CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} is no table.")
    architecture, spec = values.pop("architecture", None), values.pop("spec", None)
    try:
        header = Header(
            build(Architecture, architecture, f"{what}: architecture", CheckpointError) if architecture else None,
            None if spec is None else ModelSpec.from_dict(spec, f"{what}: spec", CheckpointError),
            values,
            shapes,
        )
    except SpecError as error:  # facts that contradict each other
        raise CheckpointError(f"{what}: {error}") from None
    _agree(header, what)
    return header


def _agree(header: Header, what: str) -> None:
    """Numbers of the header fit each other and the tensors, so that nothing larger than the file is allocated."""
    if header.spec is not None and min(header.spec.input_size) < SMALLEST_SIDE:
        raise CheckpointError(f"{what}: spec: input_size must be at least {SMALLEST_SIDE} pixels each way.")
    classes = header.architecture.classes if header.architecture else None
    if classes is None:
        return
    if header.spec is not None and len(header.spec.classes) not in (0, classes):
        raise CheckpointError(f"{what}: {classes:,} classes but {len(header.spec.classes):,} names of classes.")
    if not any(shape[:1] == (classes,) for shape in header.shapes.values()):
        raise CheckpointError(f"{what}: {classes:,} classes but no tensor has that many rows.")
