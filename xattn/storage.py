"""Explanations in files, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from xattn import __version__
from xattn.errors import DataError, ParameterError
from xattn.explainers import explainers
from xattn.explanation import Explanation
from xattn.files import whole_file
from xattn.spec import ModelSpec

_FORMAT = 1  # of saved files


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
    kept = {name: getattr(explanation, name) for name in ("maps", "target", "parts", "probability")}
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


def load_explanation(path: str | Path) -> Explanation:
    """Read what `save_explanation` wrote; nothing in the file is executed.

    Raises:
        DataError: if the file is missing, damaged or not an explanation.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                text = (file.metadata() or {})["xattn_explanation"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        else:
            with np.load(path, allow_pickle=False) as arrays:
                text = str(arrays["metadata"])
                tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "metadata"}
        metadata = json.loads(text)
    except FileNotFoundError:
        raise DataError(f"load: there is no file '{path}'.") from None
    except Exception as error:  # zipfile, numpy, safetensors and json each have their own
        raise DataError(f"load: '{path.name}' is not a saved explanation ({error}).") from None
    return Explanation(
        maps=tensors["maps"],
        target=tensors["target"],
        method=explainers.create(metadata["method"], **metadata["parameters"]),
        input_size=(metadata["input_size"][0], metadata["input_size"][1]),
        parts=tensors.get("parts"),
        status=tuple(metadata["status"]),
        probability=tensors.get("probability"),
        inputs=tensors.get("images"),
        spec=ModelSpec.from_dict(metadata["spec"]) if metadata["spec"] else None,
    )
