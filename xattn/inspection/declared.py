"""What a model says of itself: the size of its input, how images are normalized, names of classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _origin(model: nn.Module) -> str:
    return type(model).__module__.split(".")[0]


def input_sizes(model: nn.Module, given: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Sizes to try, the likeliest first."""
    if given is not None:
        return [given]
    embedded = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm, also where it was overridden
    if isinstance(embedded, tuple):
        return [(embedded[0], embedded[1])]
    config = getattr(model, "pretrained_cfg", None) or {}
    if isinstance(config, dict) and config.get("input_size"):
        return [(config["input_size"][1], config["input_size"][2])]
    size = getattr(model, "image_size", None)  # torchvision's vision transformers
    if size is None:  # Hugging Face
        size = getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return [(int(size[0]), int(size[1]))]
    if isinstance(size, int):
        return [(size, size)]
    return [(224, 224), (299, 299), (64, 64), (32, 32)]


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
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count:
        return tuple(map(str, names))
    if count == 1000 and _origin(model) in ("torchvision", "timm"):
        try:
            from torchvision.models._meta import _IMAGENET_CATEGORIES
        except ImportError:
            return ()
        return tuple(_IMAGENET_CATEGORIES)
    return ()


def normalization(
    model: nn.Module,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, float, str]:
    """Mean, standard deviation, crop and interpolation of the images; None for the first two if unknown."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("mean"):
        return (
            tuple(config["mean"]),
            tuple(config["std"]),
            float(config.get("crop_pct") or 0.875),
            str(config.get("interpolation") or "bilinear"),
        )
    if _origin(model) == "torchvision":
        return IMAGENET_MEAN, IMAGENET_STD, 0.875, "bilinear"
    return None, None, 0.875, "bilinear"
