"""Explanations in files, and back."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from xattn import __version__
from xattn.errors import DataError, ParameterError
from xattn.explainers import explainers
from xattn.explanation import Explanation
from xattn.files import whole_file
from xattn.schema import Length, Range, build, read_json
from xattn.spec import LARGEST_SIDE, ModelSpec

_FORMAT = 1  # of saved files
_LARGEST = 1 << 32  # bytes of a file, unpacked
_DIMENSIONS = {"maps": 4, "target": 1, "parts": 4, "probability": 1, "predicted": 1, "images": 4}


def save_explanation(explanation: Explanation, path: str | Path, *, images: bool = False) -> Path:
    """Write maps, parts and provenance to an `.npz` or `.safetensors` file, whole or not at all.

    Args:
        explanation: what to keep.
        path: the suffix decides on the format.
        images: keep the images too (uint8), so that overlays can be made after loading.

    Raises:
        ParameterError: for another suffix.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ParameterError(f"save: '{path.name}' must end in .npz or .safetensors.")
    if explanation.maps.ndim != _DIMENSIONS["maps"]:
        raise ParameterError("save: explanations of volumes have no file format; torch.save(explanation.maps, …) does.")
    kept = {name: getattr(explanation, name) for name in ("maps", "target", "parts", "probability", "predicted")}
    if images:
        kept["images"] = explanation.images.permute(0, 3, 1, 2)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items() if tensor is not None}
    text = json.dumps(
        {
            "format": _FORMAT,
            "xattn": __version__,
            "method": explanation.method.name,
            "parameters": dataclasses.asdict(explanation.method),  # type: ignore[call-overload]
            "input_size": explanation.input_size,
            "status": explanation.status,
            "spec": explanation.spec.to_dict() if explanation.spec is not None else None,
            **{key: value for key in ("described", "labels") if (value := getattr(explanation, key))},
        }
    )
    with whole_file(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
                np.savez_compressed(file, metadata=np.array(text), **arrays)
        else:
            from safetensors.torch import save_file

            save_file(tensors, temporary, metadata={"xattn_explanation": text})
    return path


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands beside the tensors of a file."""

    format: Annotated[int, Range(_FORMAT, _FORMAT)]
    xattn: Annotated[str, Length(0, 100)]
    method: Annotated[str, Length(1, 100)]
    parameters: Annotated[dict[str, Any], Length(0, 100)]
    input_size: tuple[Annotated[int, Range(1, LARGEST_SIDE)], Annotated[int, Range(1, LARGEST_SIDE)]]
    status: tuple[Annotated[str, Length(1, 100)], ...]
    spec: ModelSpec | None
    described: tuple[Annotated[str, Length(0, 2000)], ...] = ()
    labels: tuple[Annotated[str, Length(0, 2000)], ...] = ()


def load_explanation(path: str | Path) -> Explanation:
    """Read what `save_explanation` wrote; nothing in the file is executed.

    Raises:
        DataError: if the file is missing, damaged, larger than 4 GiB in memory, or not an explanation.
        UnknownNameError: if its method or a parameter of it is not known here.
    """
    path = Path(path)
    what = f"load: '{path.name}'"
    try:
        text, tensors = (_read_safetensors if path.suffix == ".safetensors" else _read_npz)(path)
    except FileNotFoundError:
        raise DataError(f"load: there is no file '{path}'.") from None
    except Exception as error:  # zipfile, numpy and safetensors each have their own
        raise DataError(f"{what} is not a saved explanation ({error}).") from None
    header = build(_Header, read_json(text, f"{what}: metadata", max_bytes=2**24), what)
    _check(tensors, len(header.status), what)
    for name, texts in (("descriptions", header.described), ("labels", header.labels)):
        if texts and len(texts) != len(header.status):
            raise DataError(f"{what}: {len(texts)} {name} do not fit {len(header.status)} images.")
    return Explanation(
        maps=tensors["maps"],
        target=tensors["target"],
        method=explainers.create(header.method, **header.parameters),
        input_size=header.input_size,
        parts=tensors.get("parts"),
        status=header.status,
        probability=tensors.get("probability"),
        inputs=tensors.get("images"),
        spec=header.spec,
        described=header.described,
        predicted=tensors.get("predicted"),
        labels=header.labels,
    )


def _bounded(sizes: Iterable[int]) -> None:
    if (size := sum(sizes)) > _LARGEST:
        raise DataError(f"its {size:,} bytes are more than the {_LARGEST:,} that are read")


def _read_npz(path: Path) -> tuple[str, dict[str, Tensor]]:
    with zipfile.ZipFile(path) as archive:
        _bounded(item.file_size for item in archive.infolist())
    with np.load(path, allow_pickle=False) as arrays:
        text = str(arrays["metadata"])
        return text, {name: torch.from_numpy(arrays[name]) for name in arrays.files if name in _DIMENSIONS}


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    from safetensors import safe_open

    _bounded([path.stat().st_size])
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {})["xattn_explanation"]
        return text, {name: file.get_tensor(name) for name in file.keys() if name in _DIMENSIONS}  # noqa: SIM118


def _check(tensors: dict[str, Tensor], n: int, what: str) -> None:
    """Refuse tensors that are missing, or of another kind, number of dimensions or number of images."""
    for name in ("maps", "target"):
        if name not in tensors:
            raise DataError(f"{what}: '{name}' is missing.")
    for name, tensor in tensors.items():
        whole = {"target": torch.int64, "predicted": torch.int64, "images": torch.uint8}.get(name)
        fits = tensor.is_floating_point() if whole is None else tensor.dtype == whole
        if (
            not fits
            or tensor.ndim != _DIMENSIONS[name]
            or len(tensor) != n
            or (name == "maps" and tensor.shape[1] != 1)
        ):
            raise DataError(f"{what}: '{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}, for {n} images.")
