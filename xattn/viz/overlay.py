"""A map over its image: single maps in a colour map, signed maps around zero, BR-NPA parts in rank colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from xattn.errors import DataError, ParameterError, ShapeError
from xattn.explanation import constant
from xattn.functional.baselines import gaussian_kernel, separable_blur
from xattn.functional.resize import normalize, resize
from xattn.looks import COLORMAP
from xattn.viz.colors import DIVERGING, Floats, colorize, rank_color
from xattn.viz.text import tag

ImageLike = Image.Image | NDArray[np.uint8] | Tensor
MapLike = Tensor | NDArray[Any]

_COARSE = 4096  # cells of a map that is shown as it is
_SMOOTH = 150  # standard deviations of the Gaussian in the shorter side of a finer one

STATUS_TEXT = {
    "all-zero": "all-zero map",
    "constant": "constant map",
    "nan": "undefined values",
    "non-conserving": "not conserving",
}
"""What a picture says about a map whose status is not ok; other statuses are written as they are."""


def to_rgb(image: ImageLike, size: tuple[int, int] | None = None) -> Image.Image:
    """An image as an RGB picture.

    Args:
        image: a Pillow image, or uint8 (H, W, 3), (H, W, 1) or (H, W) as array or tensor.
        size: height and width to resize to.

    Raises:
        DataError: if the image is not 8 bit or has another shape.
    """
    if not isinstance(image, Image.Image):
        array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        if array.dtype != np.uint8:
            raise DataError(f"overlay: expected an image of uint8 values (0 to 255) but got {array.dtype}.")
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or array.size == 0:
            raise DataError(f"overlay: expected an image (H, W, 3) or (H, W) but got shape {array.shape}.")
        image = Image.fromarray(np.ascontiguousarray(array))
    picture = image.convert("RGB")
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return picture


def grey(picture: Image.Image) -> Floats:
    """Luma (H, W, 1) in [0, 1] (ITU-R BT.601)."""
    return (np.asarray(picture, dtype=np.float64) @ np.array([0.299, 0.587, 0.114]) / 255)[:, :, None]


def to_picture(colors: Floats) -> Image.Image:
    """Colours (H, W, 3) in [0, 1] as a picture."""
    return Image.fromarray(np.clip(np.rint(colors * 255), 0, 255).astype(np.uint8))


def overlay(
    image: ImageLike,
    values: MapLike,
    *,
    colormap: str = COLORMAP,
    alpha: float = 0.5,
    upsample: str = "bilinear",
    signed: str = "auto",
    status: str = "ok",
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """A single map over its image, which turns grey so that the colours belong to the map alone.

    Positive maps are scaled by their own minimum and maximum and shown in `colormap`, somewhat more opaque where they
    are high. Signed maps keep their zero: they are divided by the largest absolute value and laid over a pale image,
    the more opaque the further from zero, red above and blue below. Maps of more than 4096 cells, which are as fine as
    pixels, are drawn smoothed by a Gaussian of a 150th of their shorter side, as single pixels are lost in a small
    picture, and on a scale that leaves out the highest percent (of signed maps two), which would else darken the rest.

    Args:
        image: Pillow image, or uint8 (H, W, 3) or (H, W).
        values: the map (h, w), any scale; higher is more important.
        colormap: a name that `xattn.viz.colormap` knows; signed maps keep to blue and red.
        alpha: opacity of the map, from 0 to 1.
        upsample: `"bilinear"`, `"nearest"` or `"bicubic"`.
        signed: `"auto"` shows a map around zero if it has negative values, `"yes"` always, `"no"` never.
        status: of the map; any other than `"ok"` is written on the picture. Maps that are constant or hold nothing
            but NaN are found out here as well, and leave the image grey.
        size: height and width of the picture; those of the image by default.

    Raises:
        ShapeError: if the map is not (h, w).
        ParameterError: if an option is out of range.
    """
    _check(alpha, signed)
    base = to_rgb(image, size)
    maps, diverging, status = levels(values, signed=signed, status=status)
    ground = grey(base)
    if maps is None:
        return _marked(to_picture(np.repeat(ground, 3, axis=2)), status)
    if diverging:
        at = np.clip(np.nan_to_num(_enlarged(maps, base, upsample)), -1, 1)
        # Colours start at a third of the table, and the image is pale: else faint points are lost in its texture.
        colors = colorize((np.sign(at) * (0.35 + 0.65 * np.abs(at)) + 1) / 2, DIVERGING)
        opacity = _opacity(np.sqrt(np.abs(at)), 0.0, 1 - (1 - alpha) ** 4)
        return _marked(to_picture(opacity * colors + (1 - opacity) * (0.5 * ground + 0.5)), status)
    at = _enlarged(maps, base, upsample)
    opacity = _opacity(np.clip(at, 0, 1), alpha * (0.4 + 0.6 * alpha), 1 - (1 - alpha) ** 2)
    return _marked(to_picture(opacity * colorize(at, colormap) + (1 - opacity) * ground), status)


def levels(values: MapLike, *, signed: str = "auto", status: str = "ok") -> tuple[Tensor | None, bool, str]:
    """A single map on the scale of its colours.

    Args:
        values: the map (h, w).
        signed: as for `overlay`.
        status: as for `overlay`.

    Returns:
        The map (1, 1, h, w) in [0, 1], or in [-1, 1] if it is shown around zero, NaN where it is NaN, and None where
        there is no difference to show; whether it is shown around zero; its status.
    """
    maps = _maps(values, "map")
    status = _status(maps, status)
    if _flat(maps):
        return None, False, status
    diverging = signed == "yes" or (signed == "auto" and bool((maps < 0).any()))
    maps = _limited(_smoothed(maps), diverging)
    if not diverging:
        return normalize(maps, nan=torch.nan), False, status
    largest = float(maps[maps.isfinite()].abs().max())
    return maps.clamp(-largest, largest) / largest, True, status


def rank_overlay(
    image: ImageLike,
    parts: MapLike,
    *,
    alpha: float = 0.8,
    upsample: str = "bilinear",
    status: str = "ok",
    size: tuple[int, int] | None = None,
    only: int | None = None,
) -> Image.Image:
    """Parts in the colours of their rank over the grey image (BR-NPA: Gomez et al. 2022, arXiv:2106.02566, figure 3).

    One minimum and maximum for all parts; brightness is saliency. The grey image uses its full range of greys, as only
    a fifth of it is seen. Up to three parts are the red, green and blue
    channels, so that cells shared by parts mix. With more parts each cell takes the colour of its strongest part.

    Args:
        image: Pillow image, or uint8 (H, W, 3) or (H, W).
        parts: (P, h, w) by rank, already multiplied by the feature norm.
        alpha: share of the colour, from 0 to 1; the rest is the grey image.
        upsample: `"bilinear"`, `"nearest"`, which shows the cells as in the paper's figure, or `"bicubic"`.
        status: of the map; any other than `"ok"` is written on the picture.
        size: height and width of the picture; those of the image by default.
        only: rank, from 0, of the one part to show, on the scale of all.

    Raises:
        ShapeError: if the parts are not (P, h, w).
        ParameterError: if an option is out of range.
    """
    _check(alpha, "auto")
    base = to_rgb(image, size)
    maps = _maps(parts, "parts")
    status = _status(maps, status)
    if _flat(maps):
        return _marked(to_picture(np.repeat(grey(base), 3, axis=2)), status)
    ground = grey(ImageOps.autocontrast(base.convert("L"), cutoff=1).convert("RGB"))
    at = np.clip(_enlarged(normalize(maps), base, upsample).reshape(-1, base.height, base.width), 0, 1)
    if only is not None:
        at[[rank for rank in range(len(at)) if rank != only]] = 0
    palette = np.array([rank_color(rank) for rank in range(len(at))]) / 255
    if len(at) <= 3:
        colors = np.einsum("phw,pc->hwc", at, palette)
    else:
        colors = at.max(axis=0)[:, :, None] * palette[at.argmax(axis=0)]
    return _marked(to_picture(alpha * colors + (1 - alpha) * ground), status)


def shares(parts: MapLike) -> list[float]:
    """The share of each part (P, h, w) in the sum of all cells; NaN where that sum is zero.

    >>> shares(torch.tensor([[[3.0, 3.0]], [[1.0, 1.0]]]))
    [0.75, 0.25]
    """
    levels = _maps(parts, "parts")[0].double().clamp(min=0).sum(dim=(1, 2))
    return [float(level) for level in levels / levels.sum()]


def _opacity(saliency: Floats, low: float, high: float) -> Floats:
    """Opacity (H, W, 1) from `low` where there is no saliency to `high`; none at all where the map is NaN."""
    return np.nan_to_num(low + (high - low) * saliency)[:, :, None]


def _check(alpha: float, signed: str) -> None:
    if not 0 <= alpha <= 1:
        raise ParameterError(f"overlay: alpha must lie between 0 and 1 but is {alpha}.")
    if signed not in ("auto", "yes", "no"):
        raise ParameterError(f"overlay: signed must be one of auto, yes, no but is '{signed}'.")


def _maps(values: MapLike, what: str) -> Tensor:
    """A map (h, w) or parts (P, h, w) as a float tensor (1, P, h, w)."""
    maps = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    if what == "map":
        if maps.ndim != 2 or maps.numel() == 0:
            raise ShapeError(f"overlay: expected a map (h, w) but got shape {tuple(maps.shape)}.")
        return maps[None, None]
    if maps.ndim != 3 or maps.numel() == 0:
        raise ShapeError(f"rank_overlay: expected parts (P, h, w) but got shape {tuple(maps.shape)}.")
    return maps[None]


def _flat(maps: Tensor) -> bool:
    """Whether there is no difference to show, or none but rounding."""
    finite = maps[maps.isfinite()]
    return finite.numel() == 0 or bool(constant(finite[None]))


def _status(maps: Tensor, status: str) -> str:
    """The given status, or what can be seen on the map itself: nothing wrong is shown without a word."""
    if status != "ok":
        return status
    if not maps.isfinite().all():
        return "nan"
    if not maps.any():
        return "all-zero"
    return "constant" if _flat(maps) else "ok"


def fine(maps: Tensor) -> bool:
    """Whether maps (..., h, w) are as fine as pixels, so that they are smoothed and clipped in pictures."""
    return maps.shape[-2] * maps.shape[-1] > _COARSE


def _smoothed(maps: Tensor) -> Tensor:
    """Maps (1, 1, h, w) as fine as pixels through a Gaussian; others, and those with gaps, as they are."""
    sigma = min(maps.shape[-2:]) / _SMOOTH
    if not fine(maps) or not bool(maps.isfinite().all()):
        return maps
    return separable_blur(maps, gaussian_kernel(sigma, round(3 * sigma)), "replicate")


def _limited(maps: Tensor, diverging: bool) -> Tensor:
    """Values limited to all but the outermost, on maps as fine as pixels."""
    if not fine(maps):
        return maps
    finite = maps[maps.isfinite()]
    ordered = (finite.abs() if diverging else finite).sort().values
    # the highest kept value must not be the lowest one: a map of few points stays as it is
    top = ordered[min(len(ordered) - 1, int((0.98 if diverging else 0.99) * len(ordered)))]
    low = -top if diverging else ordered[0]
    return maps.clamp(low, top) if top > max(float(low), 0.0) else maps


def _enlarged(maps: Tensor, base: Image.Image, upsample: str) -> Floats:
    """Maps on the pixels of a picture, (H, W) for one and (P, H, W) for several."""
    at: Floats = resize(maps, (base.height, base.width), upsample, antialias=True)[0].double().numpy()
    return at[0] if len(at) == 1 else at


def _marked(picture: Image.Image, status: str) -> Image.Image:
    return picture if status == "ok" else tag(picture, STATUS_TEXT.get(status, status))
