"""Maps on another grid, and maps on the scale [0, 1]: two separate, named steps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xattn.errors import ParameterError, ShapeError

Mode = Literal["bilinear", "nearest", "bicubic"]


def resize(maps: Tensor, size: tuple[int, int], mode: str = "bilinear", *, antialias: bool = False) -> Tensor:
    """Maps on a grid of `size` cells, with half-pixel centres (`align_corners=False`).

    Nearest picks the cell whose area holds the centre of the new one. Bicubic overshoots: it can leave the range of
    the map. A NaN spreads to the cells that are interpolated from it.

    >>> resize(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
    [[[[0.0, 0.25, 0.75, 1.0]]]]

    Args:
        maps: (N, P, h, w); half precision is promoted to float32.
        size: new height and width.
        mode: `"bilinear"`, `"nearest"` or `"bicubic"`.
        antialias: average over the cells that a smaller grid merges; changes nothing where the grid grows.

    Returns:
        (N, P, height, width).

    Raises:
        ShapeError: if `maps` does not have four dimensions or `size` is empty.
        ParameterError: if `mode` is unknown.
    """
    if maps.ndim != 4:
        raise ShapeError(f"resize: expected maps (N, P, h, w) but got shape {tuple(maps.shape)}.")
    if min(size) < 1:
        raise ShapeError(f"resize: the new size must be at least 1x1 but is {size[0]}x{size[1]}.")
    if mode not in get_args(Mode):
        raise ParameterError(f"resize: mode must be one of {', '.join(get_args(Mode))} but is '{mode}'.")
    maps = _full(maps)
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if mode == "nearest":
        # "nearest" of torch takes the corner of the area, which shifts a map that shrinks; "nearest-exact" its centre
        return interpolate(maps, size=size, mode="nearest-exact")
    return interpolate(maps, size=size, mode=mode, align_corners=False, antialias=antialias)


def normalize(maps: Tensor, *, nan: float = 0.0) -> Tensor:
    """Min-max of each image by itself: all its maps together go to [0, 1].

    A constant map becomes zeros. NaN and infinite cells do not move the range: NaN becomes `nan`, infinities 0 or 1.

    >>> normalize(torch.tensor([[[[2.0, 4.0, 3.0]]], [[[5.0, 5.0, 5.0]]]])).flatten(1).tolist()
    [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]

    Args:
        maps: (N, ...), such as (N, 1, h, w) or (N, P, h, w); half precision is promoted to float32.
        nan: value of cells that are NaN; `math.nan` leaves them as they are.

    Returns:
        The shape of `maps`, in [0, 1].
    """
    maps = _full(maps)
    if maps.numel() == 0:
        return maps
    flat = maps.reshape(maps.shape[0], -1)
    finite = flat.isfinite()
    some = finite.any(dim=1, keepdim=True)
    lowest = torch.where(finite, flat, torch.inf).amin(dim=1, keepdim=True).where(some, flat.new_zeros(()))
    highest = torch.where(finite, flat, -torch.inf).amax(dim=1, keepdim=True).where(some, flat.new_zeros(()))
    span = highest - lowest
    scaled = (torch.clamp(flat, lowest, highest) - lowest) / torch.where(span > 0, span, 1.0)
    return torch.where(flat.isnan(), nan, scaled).reshape(maps.shape)


def _full(maps: Tensor) -> Tensor:
    """In float32, or in float64 if the maps are."""
    return maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
