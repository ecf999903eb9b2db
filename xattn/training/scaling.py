"""Scaling and shifting: a trained network whose weights stay, while a number for each kernel is learned (MTL)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_ORIGINAL = ".parametrizations.weight.original"
_SCALE = ".parametrizations.weight.0.scale"


class _Scale(nn.Module):
    """A weight (O, I, h, w) times one number for each of its kernels, which begins at one."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(*weight.shape[:2], 1, 1, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


def scale_weights(model: nn.Module) -> None:
    """Freeze a network but for a scale of each kernel and a shift of each channel (Sun et al. 2019, arXiv:1812.02391).

    The paper scales each kernel and shifts the bias of each filter. Where a convolution has no bias the one of the
    batch norm behind it is shifted: with the statistics kept, as they are here, one can express the other.

    Args:
        model: a network with its weights; changed in place.
    """
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            parametrize.register_parametrization(module, "weight", _Scale(module.weight))
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and module.bias is not None:
            module.bias.requires_grad_(True)


def is_scale(name: str) -> bool:
    """Whether a parameter of this name is a scale."""
    return name.endswith(_SCALE)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a plain network: each weight times its scale, under the name that it had before."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_ORIGINAL):
            module = name.removesuffix(_ORIGINAL)
            found[f"{module}.weight"] = tensor * state[module + _SCALE]
        elif not is_scale(name):
            found[name] = tensor
    return found
