"""Networks of Hugging Face as `hf/NAME_OR_FOLDER`: from a folder of `save_pretrained` or from the local cache.

What a folder says is data here: no code of its own is run, weights are safetensors, nothing that it names is fetched.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from xattn.errors import CheckpointError, needs
from xattn.inspection.processors import quiet
from xattn.models import timm_models
from xattn.schema import read_json

PREFIX = "hf/"
_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "*processor_config.json"]
# Keys by which a configuration has code or weights fetched that are not in the folder.
_CODE = ("auto_map", "custom_pipelines")
_FOREIGN = ("checkpoint_path", "pretrained_cfg_overlay", "use_pretrained_backbone", "quantization_config")
_TOWERS = ("VisionModelWithProjection", "VisionModel")  # image part of a network of images and text, the best first


def build(name: str, *, weights: bool = True, download: bool = False) -> nn.Module:
    """An image classifier of Hugging Face, or the image tower of a network that gives embeddings.

    Args:
        name: `hf/` and a folder, or a name such as `google/vit-base-patch16-224`.
        weights: load those of the folder; without them the network is random.
        download: fetch what is missing in the cache.

    Raises:
        CheckpointError: if there is no such folder, it needs code of its own, or its weights are missing or no
            safetensors.
    """
    needs("hf", name)
    import transformers

    folder = _folder(name, download)
    values = _checked(folder, name)
    kind = _class_of(values, name)
    if weights and not any(folder.glob("*.safetensors")):
        others = sorted(path.name for path in folder.glob("*.bin"))
        raise CheckpointError(
            f"{name}: has no weights as safetensors{f' but {others[0]}, which is not read' if others else ''}; load "
            "the network with transformers and write it with save_pretrained."
        )
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if not isinstance(config, kind.config_class):  # of images and text: the part of the image tower
                config.vision_config.projection_dim = getattr(config, "projection_dim", None)
                config = config.vision_config
            if not weights:
                made: nn.Module = kind._from_config(config, attn_implementation="eager")
                config._name_or_path = str(folder)  # where its image processor is
                return made.eval()
            model, report = kind.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                attn_implementation="eager",
            )
        except Exception as error:  # whatever the library and its many networks raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{name}: transformers cannot load it ({reason}).") from error
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        raise CheckpointError(
            f"{name}: {len(missing)} weights of {kind.__name__} are not in its files (first '{missing[0]}'); write the "
            "network that was trained with save_pretrained."
        )
    return model.float().eval()


def _folder(name: str, download: bool) -> Path:
    """The folder of a network: as given, or in the cache of Hugging Face."""
    short = name.removeprefix(PREFIX)
    folder = Path(short).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name}: the folder has no config.json; expected what save_pretrained writes.")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", short):
        raise CheckpointError(
            f"{name}: no such folder; expected one, or a name such as {PREFIX}google/vit-base-patch16-224."
        )
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    try:
        if download:
            return Path(snapshot_download(short, allow_patterns=_FILES))
        config = try_to_load_from_cache(short, "config.json")
    except Exception as error:  # of the HTTP library, the cache or the check of the name
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: cannot be downloaded ({reason}); pass a folder of save_pretrained.") from None
    if not isinstance(config, str):
        raise CheckpointError(
            f"{name}: is neither a folder nor in the cache of Hugging Face; weights DEFAULT downloads it there."
        )
    return Path(config).parent


def _checked(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a folder, refused where it names code or weights from elsewhere."""
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{name}: holds an adapter of another network; merge the two and save the result.")
    try:
        text = (folder / "config.json").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{name}: config.json cannot be read ({error.strerror or error}).") from None
    values = read_json(text, f"{name}: config.json", max_bytes=2**24, error=CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError(f"{name}: config.json is no table.")
    for key, value in _entries(values):
        if not value:
            continue
        if key in _CODE:
            raise CheckpointError(f"{name}: needs code of its own ('{key}'), which is not run here.")
        named = key in ("backbone", "attn_implementation", "_attn_implementation", "experts_implementation")
        if key in _FOREIGN or (named and isinstance(value, str) and not re.fullmatch(r"[a-z0-9_]+", value)):
            raise CheckpointError(f"{name}: '{key}' of its config.json is not supported; save the plain network.")
    if "pretrained_cfg" in values:  # of timm
        values.setdefault("model_type", "timm_wrapper")
    if values.get("model_type") == "timm_wrapper" and not timm_models.knows(f"timm/{values.get('architecture')}"):
        raise CheckpointError(f"{name}: timm has no network '{values.get('architecture')}'.")
    return values


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """All keys of nested tables with their values."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield str(key), value
        yield from _entries(value)


def _class_of(values: Mapping[str, Any], name: str) -> Any:
    """The class that reads images: the classifier that was saved, the image tower, or the plain network."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    kind = str(values.get("model_type"))
    saved = [str(item) for item in values.get("architectures") or ()]
    mappings: tuple[Mapping[str, Any], ...] = (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
    )
    known: list[str] = []
    for mapping in mappings:
        entry = mapping.get(kind, ())
        known += [entry] if isinstance(entry, str) else entry
    if known and not saved:
        return _own(known[0], name)
    for item in saved:
        if item in known or item.endswith(_TOWERS):
            return _own(item, name)
    for item in saved:  # a network of images and text: its image tower
        for tower in _TOWERS:
            if item.endswith("Model") and hasattr(transformers, made := item.removesuffix("Model") + tower):
                return _own(made, name)
    raise CheckpointError(
        f"{name}: {saved[0] if saved else kind} is no image classifier and no image tower that transformers has; build "
        "it yourself and pass package.module:factory."
    )


def _own(name: str, model: str) -> Any:
    """A class of transformers by its name."""
    found = getattr(importlib.import_module("transformers"), name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise CheckpointError(f"{model}: transformers has no network '{name}'.")
    return found
