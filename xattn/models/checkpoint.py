"""Weights on disk: safetensors whose header says which network they belong to; nothing here can run foreign code."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError
from xattn.files import whole_file
from xattn.spec import ModelSpec

RANKS = "ranks."  # prefix of the rank-ablation heads, which are stored beside the network but are no part of it
_HEADER_LIMIT = 100_000_000
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclasses.dataclass(frozen=True)
class Header:
    """What the metadata of a weights file says.

    Args:
        architecture: arguments of `create_model`: backbone, head, parts, resolution, circular, classes (a number);
            under `options` attributes of the attention that differ from the default, for ablations.
        spec: facts about the network, None in a file of other origin.
        extra: whatever else the writer noted: recipe, epoch, accuracy on the held-out images.
    """

    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)
    spec: ModelSpec | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file under a temporary name and move it into place, so that no reader sees half of it.

    Args:
        tensors: any tensors by name; copied, so that shared memory is no obstacle.
        path: the file; its folder is created.
        metadata: text by name.

    Returns:
        The path.
    """
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A scalar or a channels-last weight would not be contiguous enough for the format.
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(save(plain, metadata=dict(metadata)))  # save_file would hide it from other users
    return path


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without reading a tensor.

    Raises:
        CheckpointError: if the file is missing or is no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights at '{path}'; pass a .safetensors file, such as best.safetensors of a run.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, path.stat().st_size):
            raise CheckpointError(f"'{path}' is no safetensors file.")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise CheckpointError(f"'{path}' is no safetensors file.") from None
    return dict(header.get("__metadata__", {})) if isinstance(header, dict) else {}


def read_header(path: str | os.PathLike[str]) -> Header:
    """Which network the weights of a safetensors file belong to; empty for a file that xattn did not write.

    Raises:
        CheckpointError: if the file is missing, is no safetensors file or has a damaged header.
    """
    text = read_metadata(path).get("xattn")
    if text is None:
        return Header()
    try:
        values = json.loads(text)
        spec = values.get("spec")
        return Header(
            architecture=dict(values.get("architecture") or {}),
            spec=None if spec is None else ModelSpec.from_dict(spec),
            extra={k: v for k, v in values.items() if k not in ("architecture", "spec")},
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}': the header of xattn is damaged ({error}).") from None


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name; half precision is promoted to float32.

    Safetensors, or a state dict that `torch.save` wrote, alone or under `state_dict` or `model`. The latter is read
    without running anything in it: a pickled model is refused.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        state = _read_torch(path)
    else:
        read_metadata(path)
        state = _read_safetensors(path)
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}.") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    import pickle

    if not path.is_file():
        raise CheckpointError(f"no weights at '{path}'.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused below anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if "weights_only" in str(error).lower() or isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"'{path}' holds pickled objects, which could run code when loaded, and is refused; save "
                "model.state_dict() instead, best as safetensors."
            ) from None
        raise CheckpointError(f"'{path}' cannot be read: {str(error).splitlines()[0]}.") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"'{path}' is no state dict: expected tensors by name.")
    return {str(name).removeprefix("module."): t for name, t in content.items()}


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    half: bool = False,
    *,
    architecture: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network with what is needed to build it again.

    Args:
        model: a network with a `spec`; `create_model` and `load_model` give it an `architecture` as well.
        path: the file, `.safetensors`.
        half: store floating-point tensors in half precision; loading promotes them to float32.
        architecture: arguments of `create_model` (backbone, head, parts, resolution, circular, classes); None takes
            `model.architecture`.
        state: tensors to write instead of those of `model`, for example a moving average.
        extra: plain values for the header.

    Returns:
        The path.

    Raises:
        CheckpointError: if a value has no place in half precision.
    """
    tensors = dict(model.state_dict() if state is None else state)
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
        broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if broken:
            raise CheckpointError(f"'{broken[0]}' has values without a place in half precision; use half=False.")
    spec = getattr(model, "spec", None)
    header = {
        "architecture": dict(architecture if architecture is not None else getattr(model, "architecture", None) or {}),
        "spec": spec.to_dict() if isinstance(spec, ModelSpec) else None,
        **(extra or {}),
    }
    return write_tensors(tensors, path, {"format": "pt", "xattn": json.dumps(header)})


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all tensors into `model`, or say in one line what does not fit.

    Args:
        model: the network; left as it is if the tensors do not fit.
        state: tensors by name; rank-ablation heads among them are skipped.
        source: where they come from, for the message.

    Raises:
        CheckpointError: for missing, unexpected or differently shaped tensors.
    """
    state = {name: t for name, t in state.items() if not name.startswith(RANKS)}
    own = model.state_dict()
    # Files older than the counter of batch norm do not have it, and nothing depends on it in evaluation mode.
    state = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | state
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [name for name, t in state.items() if name in own and own[name].shape != t.shape]
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{len(names)} {what} (first '{names[0]}')")
    if shapes:
        first = shapes[0]
        problems.append(
            f"{len(shapes)} of another shape (first '{first}': {tuple(state[first].shape)} instead of "
            f"{tuple(own[first].shape)})"
        )
    if problems:
        raise CheckpointError(f"'{source}' does not fit {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(dict(state))


def facts_of(model: nn.Module, written: ModelSpec) -> ModelSpec:
    """Facts from a file about a network, with the names that its layers have here."""
    from xattn.models.heads import Classifier

    return type(model)(model.backbone, model.head, written).spec if isinstance(model, Classifier) else written


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Build the network that a weights file describes and load it, in float32 and in eval mode.

    Args:
        path: a file that `save_weights` wrote, for example `best.safetensors` of a training run.

    Returns:
        The network; it has `spec` and `architecture`.

    Raises:
        CheckpointError: if the file does not say which network it belongs to, or does not fit it.
    """
    from xattn.models import create_model

    header = read_header(path)
    if not header.architecture.get("backbone"):
        raise CheckpointError(
            f"'{path}' does not say which network it belongs to; create the model by name and load the tensors with "
            "xattn.models.checkpoint.load_state."
        )
    known = ("head", "parts", "resolution", "circular")
    arguments = {k: header.architecture[k] for k in known if k in header.architecture}
    model = create_model(
        header.architecture["backbone"], weights=None, num_classes=header.architecture.get("classes"), **arguments
    )
    for name, value in header.architecture.get("options", {}).items():
        setattr(model.get_submodule("head.attention"), name, value)
    load_state(model, read_state(path), str(path))
    if header.spec is not None:
        model.spec = facts_of(model, header.spec)  # type: ignore[assignment]
    model.architecture = dict(header.architecture)  # type: ignore[assignment]
    return model.eval()
