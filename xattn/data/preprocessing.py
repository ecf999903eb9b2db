"""From an image to what a model takes: resizing, cropping, normalizing, batches, and where points come to lie."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xattn.data.reading import Window, read_image, to_pil
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.functional.pixels import normalize_pixels
from xattn.spec import ModelSpec

Fit: TypeAlias = Literal["crop", "squash", "whole"]
ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Tensor"

WHOLE_MULTIPLE = 32  # the total stride of common networks: sides of "whole" images are multiples of it
WHOLE_ASPECT = 4  # a longer image would cost memory without bound
WHOLE_RESIZE = 16  # a resized image of more times the crop is never made as a whole

VIEW_PX = 448
"""Longer side, at least, of what is shown of an image."""
LARGEST_VIEW_PX = 2048
"""Longer side, at most, of what is shown of a photograph in its own resolution."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def preprocess(image: ImageLike, spec: ModelSpec, *, fit: Fit | None = None, window: Window | None = None) -> Tensor:
    """Turn an image into what a model takes, as the evaluation of torchvision and timm does.

    Args:
        image: path, Pillow image or uint8 values (H, W, 3).
        spec: `input_size`, `crop`, `interpolation`, `mean` and `std` are read. Without `mean` and `std` the values stay
            in [0, 1].
        fit: how an image of another aspect ratio fits `spec.input_size`; None is `spec.fit`.
            `"crop"`: the shorter side is resized to the input divided by `spec.crop`, then the centre is cut out.
            `"squash"`: the whole image is resized to the input size, its aspect ratio is lost.
            `"whole"`: the whole image with its aspect ratio; the shorter side becomes that of the input and the longer
            side a multiple of 32, at most four times the shorter. For models that take any size.
        window: as in `read_image`.

    Returns:
        Normalized float32 (3, H, W), or (1, H, W) where the model takes one channel; (H, W) is `spec.input_size` unless
        `fit="whole"`.

    Raises:
        DataError: for a model of another number of channels than 1 and 3, which an image has not.

    >>> spec = ModelSpec(feature_layer="", input_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> preprocess(Image.new("RGB", (80, 60), "white"), spec).unique()
    tensor([1.])
    """
    rgb = read_image(image, window=window) if isinstance(image, (str, Path)) else to_pil(image, window=window)
    channels = spec.channels or (1 if spec.mean is not None and len(spec.mean) == 1 else 3)
    if channels not in (1, 3):
        raise DataError(
            f"image: the model takes {channels} channels; pass a normalized float tensor (N, {channels}, H, W)."
        )
    if channels == 1:
        rgb = rgb.convert("L")
    resized = place(rgb.size, spec, fit).apply(rgb, _resampling(spec))
    values = np.array(resized, dtype=np.uint8).reshape(resized.height, resized.width, channels)
    x = torch.from_numpy(values).permute(2, 0, 1).to(torch.float32).div(255)
    return normalize_pixels(x, spec.mean, spec.std).contiguous()


def view_of(image: Image.Image, spec: ModelSpec, fit: Fit | None = None, *, sharp: bool = False) -> Image.Image:
    """What a model sees of an image, with more pixels, so that the maps fit it exactly.

    Args:
        image: upright.
        spec: facts about the model.
        fit: as in `preprocess`.
        sharp: with the resolution of the image itself, up to `LARGEST_VIEW_PX`; else with `VIEW_PX` pixels at least.
    """
    wide, largest = VIEW_PX, max(spec.input_size)
    if sharp:
        seen = place(image.size, spec, fit)
        finer = max(image.width / seen.full[0], image.height / seen.full[1])
        wide = min(max(VIEW_PX, round(largest * finer)), LARGEST_VIEW_PX)
    scale = max(1.0, wide / largest)
    size = (round(spec.input_size[0] * scale), round(spec.input_size[1] * scale))
    plain = dataclasses.replace(spec, input_size=size, channels=3, mean=None, std=None)
    pixels = preprocess(image, plain, fit=fit)
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Placement:
    """Where an image lies in what a model sees: resized to `full`, of which `size` is kept from `offset` on.

    Sizes are (width, height) and points (x, y), as in Pillow.

    Args:
        image: the image itself.
        full: the image after resizing.
        offset: left and top of the part that is kept.
        size: the part that is kept.
    """

    image: tuple[int, int]
    full: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Resize and cut an image by antialiased resampling."""
        (width, height), (left, top), (full_w, full_h) = self.size, self.offset, self.full
        if full_w * full_h <= WHOLE_RESIZE * width * height:
            return image.resize(self.full, resample).crop((left, top, left + width, top + height))
        # A very wide image would have no bound here. Resampling only the part that is kept gives the same pixels up to
        # rounding, for Pillow's filter reads beyond the box.
        scale_x, scale_y = image.width / full_w, image.height / full_h
        right, bottom = min((left + width) * scale_x, image.width), min((top + height) * scale_y, image.height)
        return image.resize(self.size, resample, box=(left * scale_x, top * scale_y, right, bottom))

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points (..., 2) of the image as points of what the model sees; they may lie outside."""
        scale = np.array(self.full, np.float64) / np.array(self.image, np.float64)
        return (np.asarray(points, np.float64) * scale - np.array(self.offset, np.float64)).astype(np.float32)

    def boxes(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (B, 4) of xmin, ymin, xmax, ymax, cut to what the model sees; one outside has no area."""
        corners = self.points(np.asarray(boxes, np.float32).reshape(-1, 2, 2))
        return np.clip(corners, 0, np.array(self.size, np.float32)).reshape(-1, 4)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (H, W) of the image as the model sees it: cells of which at least half is covered."""
        grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
        return np.asarray(self.apply(grey, Image.Resampling.BILINEAR)) >= 128


def place(size: tuple[int, int], spec: ModelSpec, fit: Fit | None = None) -> Placement:
    """Where an image of `size` (width, height) comes to lie under `preprocess(image, spec, fit=fit)`."""
    height, width = spec.input_size
    if fit is None and spec.fit == "squash":  # and cropped, as the model's own evaluation does
        full_w, full_h = round(width / spec.crop), round(height / spec.crop)
        return Placement(size, (full_w, full_h), ((full_w - width) // 2, (full_h - height) // 2), (width, height))
    fit = fit or spec.fit
    if fit == "squash":
        return Placement(size, (width, height), (0, 0), (width, height))
    if fit == "whole":
        whole = whole_size(size, spec.input_size)
        return Placement(size, whole, (0, 0), whole)
    if fit != "crop":
        raise ParameterError(f"fit must be one of {', '.join(get_args(Fit))} but is '{fit}'.")
    full = _resized_size(size, spec)
    return Placement(size, full, (round((full[0] - width) / 2), round((full[1] - height) / 2)), (width, height))


def _resampling(spec: ModelSpec) -> Image.Resampling:
    if spec.interpolation not in _RESAMPLING:
        raise ParameterError(f"interpolation must be one of {', '.join(_RESAMPLING)} but is '{spec.interpolation}'.")
    return _RESAMPLING[spec.interpolation]


def _resized_size(size: tuple[int, int], spec: ModelSpec) -> tuple[int, int]:
    """Width and height of the image after resizing and before cropping, never smaller than the crop."""
    w, h = size
    if not 0 < spec.crop <= 1:
        raise ParameterError(f"crop must be in (0, 1] but is {spec.crop}.")
    # 1e-4 mends crops given as a rounded fraction: 224 / 0.9655 is meant to be 232
    goal_h, goal_w = (math.floor(side / spec.crop + 1e-4) for side in spec.input_size)
    if goal_h == goal_w:
        short = goal_h
        full = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    else:
        ratio = min(h / goal_h, w / goal_w)
        full = (round(w / ratio), round(h / ratio))
    return max(full[0], spec.input_size[1]), max(full[1], spec.input_size[0])


def whole_size(size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height that `fit="whole"` gives to an image of `size` (width, height).

    >>> whole_size((640, 480), (224, 224))
    (288, 224)
    """
    w, h = size
    short = min(input_size)
    aspect = min(max(w, h) / min(w, h), WHOLE_ASPECT)
    long = max(short, round(short * aspect / WHOLE_MULTIPLE) * WHOLE_MULTIPLE)
    return (long, short) if w >= h else (short, long)


def to_batch(
    images: ImageLike | Sequence[ImageLike], spec: ModelSpec, *, fit: Fit | None = None, window: Window | None = None
) -> Tensor:
    """A batch for a model from nearly anything that is an image.

    Args:
        images: one or a sequence of paths, Pillow images and uint8 arrays (H, W, 3), which are preprocessed; a uint8
            array (N, H, W, 3); a float tensor (N, 3, H, W) or (3, H, W), which is taken as already normalized, keeps
            dtype and device and is passed through; a sequence of float tensors (3, H, W).
        spec: facts about the model.
        fit: as in `preprocess`.
        window: as in `read_image`.

    Returns:
        (N, 3, H, W), float32 unless a float tensor of another precision was passed.

    Raises:
        DataError: if there is no image, one cannot be read, or one holds NaN or infinite values.
        ShapeError: if images cannot form one batch.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        if images.ndim not in (3, 4) or 0 in images.shape:
            raise ShapeError(f"images: expected a float tensor (N, 3, H, W) but got {tuple(images.shape)}.")
        return _finite(images if images.ndim == 4 else images[None])
    rows: list[Tensor] = []
    for item in listed(images):
        if isinstance(item, Tensor) and item.is_floating_point():
            rows.append(to_batch(item, spec)[0] if item.ndim == 3 else _refuse_row(item))
        else:
            rows.append(preprocess(item, spec, fit=fit, window=window))
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ShapeError(f"images: shapes {shapes} do not form one batch; pass them one by one or use fit='crop'.")
    return _finite(torch.stack(rows))


def pictures(images: ImageLike | Sequence[ImageLike], *, window: Window | None = None) -> list[Image.Image]:
    """Images as upright RGB, for a transform of one's own; they may be what `to_batch` takes, but no float tensors."""
    return [
        read_image(item, window=window) if isinstance(item, (str, Path)) else to_pil(item, window=window)
        for item in listed(images)
    ]


def listed(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several as a list."""
    if isinstance(images, (str, Path, Image.Image)):
        items: list[ImageLike] = [images]
    elif isinstance(images, (Tensor, np.ndarray)):
        items = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        items = list(images)
    else:
        raise DataError(f"images: expected paths, images or tensors but got {type(images).__name__}.")
    if not items:
        raise DataError("images: there is none; pass at least one.")
    return items


def _refuse_row(item: Tensor) -> Tensor:
    raise ShapeError(f"images: expected float tensors (3, H, W) in a sequence but got {tuple(item.shape)}.")


def _finite(x: Tensor) -> Tensor:
    """`x` unchanged; an image with NaN or infinite values is refused by its place in the batch."""
    finite = torch.isfinite(x).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [i for i, good in enumerate(finite.tolist()) if not good]
        raise DataError(f"images: {len(bad)} of {len(x)} hold NaN or infinite values (first: image {bad[0]}).")
    return x
