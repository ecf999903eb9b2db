"""Finer maps without touching a layer: the network runs on shifted copies of the image, whose maps are interleaved.

What dilation computes for convolutions (Shelhamer et al. 2017, arXiv:1605.06211, sec. 3.2) at its full cost, factor^2
passes: the way for networks whose layers cannot skip cells, such as those with several resolutions side by side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from xattn.models.dilated_layers import Spread, together
from xattn.models.dilation import looks_at


class Shifts(Spread, nn.Module):
    """Copies of an image, each moved by a share of the cell of a feature map.

    Args:
        factor: copies in each direction.
        step: pixels between two of them.
        first: copies that come before the image itself; the others look on.
    """

    def __init__(self, factor: int, step: int, first: int) -> None:
        super().__init__()
        self.rate, self.removed, self.first, self.step = 1, factor, first, step

    def forward(self, x: Tensor) -> Tensor:
        """Images (N * factor^2, C, H, W) of images (N, C, H, W); the border is repeated beyond them."""
        moves = self.step * (torch.arange(self.removed, device=x.device) - self.first)
        h, w = x.shape[2:]
        rows, columns = (torch.arange(side, device=x.device) + moves[:, None] for side in (h, w))  # (f, h), (f, w)
        moved = x[:, :, rows.clamp(0, h - 1)][..., columns.clamp(0, w - 1)]  # (N, C, f, h, f, w)
        return moved.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def extra_repr(self) -> str:
        """Options, for the printed model."""
        return f"factor={self.removed}, step={self.step}, first={self.first}"


class Together(nn.Module):
    """The maps of shifted copies as one finer map.

    Args:
        factor: copies in each direction.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, factor h, factor w) of maps (N * factor^2, C, h, w)."""
        return together(maps, 1, self.factor)


def by_shifts(model: nn.Module) -> int:
    """On how many shifted copies of an image a network runs; 0 where it reads the image as it is."""
    return next((module.removed**2 for module in model.modules() if isinstance(module, Shifts)), 0)


@torch.no_grad()
def shift(trunk: fx.GraphModule, factor: int, x: Tensor) -> bool:
    """Make the feature map of a traced trunk finer in place, by shifted copies of the image; no layer changes.

    Args:
        trunk: from images to features, as `split` makes it.
        factor: 2, 4 or 8.
        x: images (N, C, H, W) that it runs on.

    Returns:
        Whether it could: its cells must be a multiple of the factor in pixels.
    """
    cells = trunk(x).shape[2]
    stride, middle = looks_at(trunk, x)
    if stride % factor:
        return False
    step = stride // factor
    # The middle of the map looks at the middle of the image.
    further = (factor * cells - 1) / 2 + (middle - (x.shape[2] - 1) / 2) / step
    first = min(max(math.floor(further + 0.5), 0), factor - 1)
    trunk.add_submodule("shifts", Shifts(factor, step, first))
    trunk.add_submodule("together", Together(factor))
    image = next(n for n in trunk.graph.nodes if n.op == "placeholder")
    output = next(n for n in trunk.graph.nodes if n.op == "output")
    with trunk.graph.inserting_after(image):
        copies = trunk.graph.call_module("shifts", (image,))
    image.replace_all_uses_with(copies, delete_user_cb=lambda user: user is not copies)
    with trunk.graph.inserting_before(output):
        output.args = (trunk.graph.call_module("together", (output.args[0],)),)
    trunk.recompile()
    return True
