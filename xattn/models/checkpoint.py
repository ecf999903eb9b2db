"""Weights on disk: safetensors whose header says which network they belong to; nothing here can run foreign code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import CheckpointError, XattnWarning, reason_of
from xattn.files import whole_file
from xattn.labels import counted
from xattn.models.header import DIGEST, MOST_TENSORS, is_file, parse_header, read_start
from xattn.spec import ModelSpec

RANKS = "ranks."  # prefix of the rank-ablation heads, which are stored beside the network but are no part of it
TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")
WEIGHT_FILES = (".safetensors", *TORCH_FILES)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
# What DataParallel, torch.compile, Lightning and people put before the names of a network that they hold.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


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
    with whole_file(path, durable=True) as temporary:
        content = save(plain, metadata={**metadata, DIGEST: _digest(plain, metadata)})
        temporary.write_bytes(content)  # save_file would hide it from other users
    return path


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A digest of names, tensors and metadata, by which a flipped bit is noticed."""
    digest = hashlib.blake2b(repr(sorted((k, v) for k, v in metadata.items() if k != DIGEST)).encode(), digest_size=16)
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(repr((name, str(t.dtype), tuple(t.shape))).encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name; half precision is promoted to float32.

    Safetensors, or a state dict that `torch.save` wrote, alone or under `state_dict` or `model`. The latter is read
    without running anything in it: a pickled model is refused.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix.lower() in TORCH_FILES:
        state = _read_torch(path)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        metadata, _ = read_start(path)
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}.") from None
        if DIGEST in metadata and metadata[DIGEST] != _digest(state, metadata):
            raise CheckpointError(f"'{path}' is damaged: its digest is another one; copy it again.")
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in state.items()}


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Tensors of a file that `torch.save` wrote, none of them larger than the file."""
    if not is_file(path):
        raise CheckpointError(f"no weights at '{path}'.")
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.compress_size for entry in archive.infolist())
                if size != sum(entry.file_size for entry in archive.infolist()):
                    raise CheckpointError(f"'{path}' is compressed, which torch.save does not do.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which are refused below anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # what damaged bytes make of a reader has no class of its own
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower():
            raise CheckpointError(
                f"'{path}' holds pickled objects, which could run code when loaded, and is refused; save "
                "model.state_dict() instead, best as safetensors."
            ) from None
        raise CheckpointError(
            f"'{path}' cannot be read as a file of torch.save ({type(error).__name__}: {reason_of(error)}); copy it "
            "again."
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"'{path}' is no state dict: expected tensors by name.")
    if len(content) > MOST_TENSORS:
        raise CheckpointError(f"'{path}' has {len(content):,} tensors; at most {MOST_TENSORS:,} are read.")
    for name, t in content.items():
        if t.is_meta or t.is_nested or t.is_quantized or t.layout != torch.strided:
            raise CheckpointError(f"'{path}': '{name}' is no plain tensor with values; save model.state_dict().")
        if t.numel() * t.element_size() > size:
            raise CheckpointError(f"'{path}': '{name}' is of shape {tuple(t.shape)}, larger than the file.")
    if any(str(name).startswith("module.") for name in content):
        _tell_prefix(str(path), "module.")
    return {str(name).removeprefix("module."): t for name, t in content.items()}


def _tell_prefix(source: str, prefix: str, rest: int = 0) -> None:
    more = f"; {counted(rest, 'other tensor')} left out" if rest else ""
    warnings.warn(
        f"'{source}': the prefix '{prefix}' was taken off the names of its tensors{more}.", XattnWarning, stacklevel=3
    )


def without_prefix(state: Mapping[str, Tensor], own: Collection[str], source: str) -> dict[str, Tensor]:
    """Tensors by the names of a network, out of what held it when it was saved; one line says what was taken off.

    A training module of Lightning has the network as `model.…` or `net.…` beside losses and measures of its own, which
    are left out.

    Args:
        state: tensors by name.
        own: names of the tensors of the network.
        source: where they come from, for the message.
    """
    wanted = set(own)

    def fit(prefix: str) -> int:
        return sum(name.startswith(prefix) and name[len(prefix) :] in wanted for name in state)

    prefixes = [""]
    for prefix in prefixes:  # which grows
        longer = [prefix + more for more in _PREFIXES if len(prefix) < 40]
        prefixes += [p for p in longer if any(name.startswith(p) for name in state)]
    best = max(prefixes, key=fit)  # the first of equals, which is the shortest
    if not best:
        return dict(state)
    inner = {name[len(best) :]: t for name, t in state.items() if name.startswith(best)}
    _tell_prefix(source, best, len(state) - len(inner))
    return inner


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
        CheckpointError: if a value has no place in half precision, or the header could not be read again.
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
    text = json.dumps(header)
    parse_header(text, {name: tuple(t.shape) for name, t in tensors.items()}, "save_weights: header")  # it can be read
    return write_tensors(tensors, path, {"format": "pt", "xattn": text})


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all tensors into `model`, or say in one line what does not fit.

    Args:
        model: the network; left as it is if the tensors do not fit.
        state: tensors by name; rank-ablation heads among them are skipped.
        source: where they come from, for the message.

    Raises:
        CheckpointError: for missing, unexpected, differently shaped tensors, or values that are not finite.
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
    parameters = {name for name, _ in model.named_parameters()}  # a buffer may be a mask of infinities
    for name, t in state.items():
        if t.is_floating_point() and not bool(t.isfinite().all() if name in parameters else not t.isnan().any()):
            raise CheckpointError(
                f"'{source}': '{name}' has values that are not finite, so that no answer would be; take the weights of "
                "an earlier epoch, or train again with a lower rate."
            )
    model.load_state_dict(dict(state))


def digest_of(model: nn.Module) -> str:
    """A short number for the weights."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
