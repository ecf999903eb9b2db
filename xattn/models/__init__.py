"""Models: backbones, heads, adapters for torchvision and timm, and the networks that ship with the package."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xattn.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from xattn.models.checkpoint import save_weights
    from xattn.models.converting import convert
    from xattn.models.factory import create_model, load_model
    from xattn.models.heads import BCNNHead, BRNPAHead, Classifier, LinearHead, create_head
    from xattn.models.resnet import ResNet

models: Registry[nn.Module] = Registry("model", "xattn.models", "xattn.models")

_LAZY = {
    "BCNNHead": "heads",
    "BRNPAHead": "heads",
    "Classifier": "heads",
    "LinearHead": "heads",
    "ResNet": "resnet",
    "convert": "converting",
    "create_head": "heads",
    "create_model": "factory",
    "load_model": "factory",
    "save_weights": "checkpoint",
}

__all__ = [
    "BCNNHead",
    "BRNPAHead",
    "Classifier",
    "LinearHead",
    "ResNet",
    "convert",
    "create_head",
    "create_model",
    "load_model",
    "models",
    "save_weights",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that listing the models imports no torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"xattn.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'xattn.models' has no attribute '{name}'")
