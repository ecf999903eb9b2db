"""The networks that ship with the package: a compact ResNet for 64 pixels with each head, and a transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from xattn.errors import CheckpointError, NotApplicableError, ParameterError
from xattn.inspection import IMAGENET_MEAN, IMAGENET_STD
from xattn.models import models
from xattn.models.checkpoint import load_state, read_state
from xattn.models.header import Architecture, Resolution, read_header
from xattn.models.heads import Classifier, create_head
from xattn.models.resnet import ResNet
from xattn.models.vit import TokenClassifier, TokenHead, VisionTransformer
from xattn.spec import ModelSpec

FOLDER = Path(__file__).parent / "weights"
_CLASSES = 200  # of Tiny-ImageNet


def _create(
    name: str,
    own_head: str,
    *,
    weights: str | None = None,
    head: str | None = None,
    parts: int = 3,
    resolution: Resolution = "low",
    circular: bool = False,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The embedded network, or one like it with random weights where a head or a number of classes is given."""
    if weights not in (None, "DEFAULT"):
        raise ParameterError(f"{name}: weights must be None, DEFAULT or a file but is '{weights}'.")
    if head is None and num_classes is None:
        return _load(name, {"resolution": "high"} if resolution == "high" else {}, circular)
    architecture = Architecture(
        backbone="tiny-vit" if name == "tiny-vit" else "tiny-cnn",
        head=head or own_head,
        parts=parts,
        resolution=resolution,
        circular=circular,
        classes=num_classes or _CLASSES,
        options=dict(options or {}),
    )
    model = build(architecture, name)
    if weights == "DEFAULT":
        path = _path(name)
        state = {k.removeprefix("backbone."): t for k, t in read_state(path).items() if k.startswith("backbone.")}
        load_state(model.backbone, state, str(path))
    return model


def build(architecture: Architecture, name: str = "tiny-cnn") -> Classifier:
    """The compact ResNet or the small transformer with random weights.

    Args:
        architecture: see there.
        name: for tables.
    """
    facts = ModelSpec(
        feature_layer="backbone", input_size=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=1.0, name=name
    )
    if architecture.backbone == "tiny-vit":
        return _transformer(architecture, facts)
    strides = (1, 2, 1, 1) if architecture.resolution == "high" else (1, 2, 2, 2)
    backbone = ResNet(strides=strides, circular=architecture.circular)
    head = create_head(
        architecture.head or "linear",
        backbone.channels,
        architecture.classes or _CLASSES,
        parts=architecture.parts,
        options=architecture.options,
    )
    model = Classifier(backbone, head, facts)
    model.architecture = architecture.to_dict()
    return model.eval()


def _transformer(architecture: Architecture, facts: ModelSpec) -> TokenClassifier:
    if architecture.head != "linear" or architecture.resolution == "high" or architecture.circular:
        raise NotApplicableError(
            "tiny-vit is a transformer: it has its own linear head, and neither strides to remove nor a padding to "
            "make circular; choose tiny-cnn for these."
        )
    backbone = VisionTransformer()
    model = TokenClassifier(backbone, TokenHead(backbone.channels, architecture.classes or _CLASSES), facts)
    model.architecture = architecture.to_dict()
    model.eval()
    return model


def _path(name: str) -> Path:
    path = FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{name}: its weights are missing at '{path}'; install the package again, train them by the recipe, or "
            "pass head and num_classes for random weights."
        )
    return path


def _load(name: str, changes: dict[str, Any], circular: bool) -> nn.Module:
    path = _path(name)
    header = read_header(path)
    if header.architecture is None:
        raise CheckpointError(f"{name}: '{path}' does not say which network it belongs to; install the package again.")
    circular = circular or header.architecture.circular
    model = build(dataclasses.replace(header.architecture, circular=circular, **changes), name)
    load_state(model, read_state(path), str(path))
    if header.spec is not None:
        model.spec = dataclasses.replace(model.facts_of(header.spec), name=name)
    return model


@models.register("tiny-cnn")
def tiny_cnn(**options: Any) -> nn.Module:
    """Compact ResNet for 64 px with average pooling and a linear layer, trained on Tiny-ImageNet (arXiv:1512.03385)."""
    return _create("tiny-cnn", "linear", **options)


@models.register("tiny-bcnn")
def tiny_bcnn(**options: Any) -> nn.Module:
    """The compact ResNet with learned attention maps, B-CNN, trained on Tiny-ImageNet (arXiv:1901.09891)."""
    return _create("tiny-bcnn", "bcnn", **options)


@models.register("tiny-brnpa")
def tiny_brnpa(**options: Any) -> nn.Module:
    """The compact ResNet with BR-NPA at high resolution, trained on Tiny-ImageNet (arXiv:2106.02566)."""
    return _create("tiny-brnpa", "brnpa", **options)


@models.register("tiny-vit")
def tiny_vit(**options: Any) -> nn.Module:
    """Small vision transformer for 64 px, patches of 8 px, trained on Tiny-ImageNet (arXiv:2010.11929)."""
    return _create("tiny-vit", "linear", **options)
