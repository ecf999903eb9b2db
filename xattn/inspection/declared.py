"""What a model says of itself: the size of its input, how images are normalized, names of classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from xattn.inspection.processors import Preprocessing, processor_of, timm_config
from xattn.spec import ASSUMED, Evidence

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _origin(model: nn.Module) -> str:
    return type(model).__module__.split(".")[0]


def input_sizes(
    model: nn.Module, given: tuple[int, int] | None, wanted: tuple[int, int] | None
) -> list[tuple[int, int]]:
    """Sizes to try, the likeliest first.

    Args:
        model: the network.
        given: the size that a person gave.
        wanted: the size to which the library of the model brings images.
    """
    if given is not None:
        return [given]
    embedded = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm, also where it was overridden
    if isinstance(embedded, tuple):
        return [(embedded[0], embedded[1])]
    size = getattr(model, "image_size", None)  # torchvision's vision transformers
    if size is None:  # Hugging Face
        config = getattr(model, "config", None)
        size = getattr(config, "image_size", None) or getattr(
            getattr(config, "vision_config", None), "image_size", None
        )
    known = [] if wanted is None else [wanted]
    if isinstance(size, (tuple, list)) and len(size) == 2:
        known.append((int(size[0]), int(size[1])))
    elif isinstance(size, int):
        known.append((size, size))
    return list(dict.fromkeys(known)) or [(224, 224), (299, 299), (64, 64), (32, 32)]


def input_channels(model: nn.Module) -> Iterator[int]:
    """Numbers of channels to try, the likeliest first: of the first convolution, of the others, grey and colour."""
    numbers = [m.in_channels for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    yield from dict.fromkeys([*numbers[:1], *(n for n in (3, 1) if n not in numbers[:1]), *numbers[1:8]])


def class_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the classes: of the model itself, or of ImageNet for 1,000 classes of a library."""
    names = getattr(model, "classes", None) or getattr(model, "class_names", None)
    labels = getattr(getattr(model, "config", None), "id2label", None)  # Hugging Face
    if isinstance(labels, dict) and sorted(labels) == list(range(count)):
        names = [labels[i] for i in range(count)]
        if all(name == f"LABEL_{i}" for i, name in enumerate(names)):  # nobody named them
            return ()
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count:
        return tuple(map(str, names))
    if count == 1000 and _origin(model) in ("torchvision", "timm"):
        try:
            from torchvision.models._meta import _IMAGENET_CATEGORIES
        except ImportError:
            return ()
        return tuple(_IMAGENET_CATEGORIES)
    return ()


def preprocessing(model: nn.Module) -> Preprocessing:
    """How images become inputs, as the library that the model comes from says."""
    inner = getattr(model, "timm_model", model)  # as Hugging Face wraps it
    if isinstance(getattr(inner, "pretrained_cfg", None), dict) and "timm" in sys.modules:
        return timm_config(inner)
    if _origin(model) == "torchvision":
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, evidence=Evidence(ASSUMED, "as torchvision's networks are"))
    if "transformers" in sys.modules and hasattr(model, "config"):
        return processor_of(model)
    return Preprocessing()


def for_channels(images: Preprocessing, channels: int) -> Preprocessing:
    """Mean and standard deviation for an input of this number of channels."""
    if images.mean is None or images.std is None or len(images.mean) == channels:
        return images
    if channels == 1:  # colour weights that were summed for grey images
        mean, std = (sum(values) / len(values) for values in (images.mean, images.std))
        return replace(images, mean=(mean,), std=(std,))
    return replace(
        images, mean=None, std=None, evidence=Evidence(ASSUMED, f"it is given for {len(images.mean)} channels")
    )
