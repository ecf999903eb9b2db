"""Layers that skip cells: of any kind, changed in place, with the names, weights and hooks that they had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from xattn.errors import NotApplicableError


def pair(value: Any) -> tuple[int, int]:
    """Height and width of what is given as one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def native(module: nn.Module) -> bool:
    """Whether torch has the layer with dilation."""
    if isinstance(module, nn.MaxPool2d):
        return not module.return_indices and type(module).forward is nn.MaxPool2d.forward
    if not isinstance(module, nn.Conv2d) or module.padding_mode not in ("zeros", "circular"):
        return False
    own = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    plain = module.padding_mode == "zeros" or max(pair(module.stride)) == 1
    return (own and plain and module.padding != "same") or _pads_itself(module)


def _pads_itself(conv: nn.Conv2d) -> bool:
    """Whether it is timm's convolution that pads as TensorFlow does."""
    return type(conv).__name__ == "Conv2dSame"


def spread(module: nn.Module, rate: int, stride: int, what: str, *, first: int = 0) -> None:
    """Let a layer skip cells in place: it reads a map of that rate, and its stride is removed.

    Args:
        module: the layer.
        rate: how many times finer the map is that it reads.
        stride: its stride, which makes its output so many times finer still.
        what: how messages call it.
        first: how many of the new cells come before its first old one, counted at the rate; below the stride.
    """
    made: Any = module
    strides = pair(getattr(module, "stride", stride) or stride)
    if native(module) and strides[0] != strides[1]:
        raise NotApplicableError(f"{what} has strides {strides}, which differ in height and width.")
    if isinstance(module, nn.Conv2d) and native(module) and (stride == 1 or max(module.kernel_size) == 1 == stride):
        if not isinstance(module.padding, str):
            module.padding = tuple(rate * p for p in pair(module.padding))
            module._reversed_padding_repeated_twice = [rate * p for p in module._reversed_padding_repeated_twice]
        module.dilation = tuple(rate * d for d in pair(module.dilation))
        made.rate = rate
        return
    base: type[Spread] = _SpreadGrids
    if native(module):
        base = _SpreadConv if isinstance(module, nn.Conv2d) else _SpreadMaxPool
    module.__class__ = _class_of(base, type(module))
    made.rate, made.removed, made.first = rate, stride, first
    if isinstance(module, nn.Conv2d) and base is _SpreadConv:
        module.stride = (1, 1)


_CLASSES: dict[tuple[type, type], type[nn.Module]] = {}


def _class_of(base: type[Spread], kind: type[nn.Module]) -> type[nn.Module]:
    """A layer of a kind that skips cells: of the same names, weights and hooks."""
    if (base, kind) not in _CLASSES:
        _CLASSES[base, kind] = type(f"Dilated{kind.__name__}", (base, kind), {"__module__": __name__})
    return _CLASSES[base, kind]


class Spread:
    """What layers have that make a map finer, by skipping cells or by shifts.

    Attributes:
        rate: how many times finer the map is that it reads.
        removed: its stride before; its output is so many times finer still.
        first: cells at that rate before the first old one.
    """

    rate: int
    removed: int
    first: int


def old_cells(model: nn.Module) -> slice:
    """Where the cells of before are among those of a finer map, in height and width.

    Args:
        model: with layers that skip cells; without any these are all cells.
    """
    levels = {m.rate: m for m in model.modules() if isinstance(m, Spread) and m.removed > 1}
    step = max((m.rate * m.removed for m in levels.values()), default=1)
    return slice(sum(m.rate * m.first for m in levels.values()), None, step)


def displacement(module: nn.Module, cells: int) -> float | None:
    """How far the middle of what the first output cell of a convolution or pool reads lies behind the first input cell.

    Args:
        module: a layer with a stride.
        cells: of its input, in height.

    Returns:
        Input cells: 0 where the layer pads both sides alike, 1 for a kernel of 3 that pads the end alone, as
        TensorFlow's; None for a layer of another kind.
    """
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return None
    extent = pair(getattr(module, "dilation", 1))[0] * (pair(module.kernel_size)[0] - 1) + 1
    return (extent - 1) / 2 - _before(module, 0, cells, extent, pair(module.stride)[0])


def _before(module: Any, axis: int, cells: int, extent: int, stride: int) -> int:
    """Cells that a convolution or pool adds before a map, in height (axis 0) or width (1)."""
    if _pads_itself_before(module):  # an odd one goes behind the map
        return max((-(-cells // stride) - 1) * stride + extent - cells, 0) // 2
    return 0 if isinstance(module.padding, str) else pair(module.padding)[axis]


def _pads(cells: int, rate: int, stride: int, dilation: int, kernel: int, before: int, made: int) -> tuple[int, int]:
    """Cells to add before and after a finer map, for an output of `rate * stride * made` cells.

    More of them before it let the old cells come later.
    """
    read = rate * stride * made + rate * dilation * (kernel - 1)
    return rate * before, read - rate * before - cells


class _SpreadConv(Spread, nn.Conv2d):
    """A convolution whose stride became dilation of all that follows; zeros around the map as before."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of `rate * removed` times the cells of before."""
        pads: list[int] = []
        for side in (3, 2):
            k, d = self.kernel_size[side - 2], pair(self.dilation)[side - 2]
            n = x.shape[side] // self.rate
            extent = d * (k - 1) + 1
            before = _before(self, side - 2, n, extent, self.removed)
            same = _pads_itself_before(self)
            made = -(-n // self.removed) if same else (n + 2 * before - extent) // self.removed + 1
            pads += _pads(x.shape[side], self.rate, self.removed, d, k, before + self.first, made)
        dilation = tuple(self.rate * d for d in pair(self.dilation))
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, 1, 0, dilation, self.groups)


def _pads_itself_before(conv: nn.Module) -> bool:
    return any(kind.__name__ == "Conv2dSame" for kind in type(conv).__mro__)


class _SpreadMaxPool(Spread, nn.MaxPool2d):
    """A max pool that skips cells."""

    def forward(self, x: Tensor) -> Tensor:
        """Output of `rate * removed` times the cells of before."""
        pads: list[int] = []
        own = pair(self.stride)[0]
        for side in (3, 2):
            k, d, p = (pair(v)[side - 2] for v in (self.kernel_size, self.dilation, self.padding))
            n = x.shape[side] // self.rate
            over = n + 2 * p - d * (k - 1) - 1
            made = (-(-over // own) if self.ceil_mode else over // own) + 1
            if self.ceil_mode and (made - 1) * own >= n + p:
                made -= 1
            pads += _pads(x.shape[side], self.rate, self.removed, d, k, p + self.first, made)
        dilation = tuple(self.rate * d for d in pair(self.dilation))
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), self.kernel_size, 1, 0, dilation)


class _SpreadGrids(Spread, nn.Module):
    """Any layer, run as it is on each of the interleaved grids, and on shifted ones where it had a stride."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of `rate * removed` times the cells of before."""
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim == 4)
        copies = (self.rate * self.removed) ** 2
        inner: Callable[..., Any] = super().forward

        def apart(value: Any) -> Any:
            if not isinstance(value, Tensor) or len(value) != len(first):
                return value
            if value.ndim != 4 or value.shape[2:].numel() == 1:
                return value.repeat_interleave(copies, 0)
            return _apart(value, self.rate, self.removed, self.first)

        def joined(value: Any) -> Any:
            several = isinstance(value, Tensor) and value.ndim == 4 and len(value) == copies * len(first)
            return together(value, self.rate, self.removed) if several else value

        return tree_map(joined, inner(*tree_map(apart, args), **tree_map(apart, kwargs)))


def _apart(x: Tensor, rate: int, shifts: int, first: int) -> Tensor:
    """The interleaved grids of a map (N, C, rate h, rate w), as a batch.

    Each as often as there are shifts: by -first and so on, a cell more each time.
    """
    grids = x.unflatten(3, (-1, rate)).unflatten(2, (-1, rate)).permute(0, 3, 5, 1, 2, 4)  # (N, r, r, C, h, w)
    if shifts == 1:
        return grids.flatten(0, 2)
    h, w = grids.shape[-2:]
    moves = torch.arange(shifts, device=x.device) - first
    rows, columns = (torch.arange(side, device=x.device)[:, None] + moves for side in (h, w))  # (h, s), (w, s)
    # The border is repeated where a shifted grid goes beyond it.
    moved = grids[..., rows.clamp(0, h - 1), :][..., columns.clamp(0, w - 1)]  # (N, r, r, C, h, s, w, s)
    return moved.permute(0, 1, 2, 5, 7, 3, 4, 6).flatten(0, 4)


def together(x: Tensor, rate: int, shifts: int) -> Tensor:
    """The inverse for the outputs (N r r s s, C, h, w): a map (N, C, r s h, r s w)."""
    parts = x.unflatten(0, (-1, rate, rate, shifts, shifts))  # (N, ay, ax, ty, tx, C, h, w)
    return parts.permute(0, 5, 6, 3, 1, 7, 4, 2).flatten(5, 7).flatten(2, 4)
