"""From an image file, its bytes or values in memory to upright 8-bit RGB."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from xattn.data.finding import missing_path
from xattn.errors import DataError, ParameterError, ShapeError

PIXEL_LIMIT = 120_000_000
"""Pixels above which an image is refused unless told otherwise: 360 MB as RGB, more than common cameras give."""

WHITE = 255

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# All that Pillow's decoders are known to raise on damaged files.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, OverflowError, TypeError),
    *(struct.error, zlib.error),
)


def read_image(path: str | Path, *, pixel_limit: int = PIXEL_LIMIT, upright: bool = True) -> Image.Image:
    """Read an image file of any kind as 8-bit RGB, upright.

    - The EXIF orientation is applied.
    - 16-bit grey values are divided by 257, so that 65535 becomes 255; nothing is clipped. 32-bit integers that fit
      16 bits are treated alike. Other integers, and floats outside [0, 1], are stretched from minimum to maximum.
    - Transparent pixels are laid on white.
    - CMYK and other colour spaces are converted without colour management, as training pipelines do.
    - Of an animation or a file of several pages the first is taken.

    Args:
        path: the file.
        pixel_limit: width x height above which the image is refused before it is decoded. Pillow's own bound (twice
            `PIL.Image.MAX_IMAGE_PIXELS`) holds as well.
        upright: apply the EXIF orientation. Data sets whose boxes were drawn on the stored pixels leave it.

    Returns:
        An image of mode RGB, detached from the file.

    Raises:
        DataError: in one line, if the file is missing, unreadable, empty, truncated, too large or no image.
    """
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise DataError(f"{file}: is a folder; expected an image file.")
        if not file.exists():
            raise DataError(missing_path(file))
        if not file.is_file():
            raise DataError(f"{file}: is neither a file nor a folder; expected an image file.")
        if file.stat().st_size == 0:
            raise DataError(f"{file}: is empty (0 bytes); expected an image. Copy or download it again.")
        with file.open("rb") as stream:
            return _decode(stream, str(file), pixel_limit, upright)
    except PermissionError:
        raise DataError(f"{file}: permission denied; make the file and its folders readable for this user.") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}).") from None


def decode_image(
    data: bytes, name: str = "image", *, pixel_limit: int = PIXEL_LIMIT, upright: bool = True
) -> Image.Image:
    """Decode the bytes of an image file as 8-bit RGB, by the rules of `read_image`.

    Args:
        data: content of the file.
        name: what messages call it.
        pixel_limit: as in `read_image`.
        upright: as in `read_image`.

    Raises:
        DataError: if the bytes are no complete image.
    """
    if not data:
        raise DataError(f"{name}: is empty (0 bytes); expected an image.")
    return _decode(BytesIO(data), name, pixel_limit, upright)


def _decode(stream: BinaryIO | BytesIO, name: str, pixel_limit: int, upright: bool) -> Image.Image:
    """Open, check and convert one image; every failure becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata of an image that can be read is of no interest
            with Image.open(stream) as image:
                width, height = image.size
                if width * height > pixel_limit:
                    raise DataError(
                        f"{name}: has {width} x {height} = {width * height:,} pixels, over the limit of "
                        f"{pixel_limit:,}; make it smaller or raise the limit (pixel_limit)."
                    )
                if width * height == 0:
                    raise DataError(f"{name}: is {width} x {height} pixels; expected at least 1 x 1.")
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image) if upright else 1)
    except DataError:
        raise
    except Image.DecompressionBombError:
        bound = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(
            f"{name}: has more than {bound:,} pixels, where Pillow suspects a decompression bomb; make it smaller."
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: is not an image, or damaged from its first bytes on.{_hint(name)}") from None
    except MemoryError:
        raise DataError(f"{name}: does not fit the memory; make it smaller.") from None
    except _DECODE_ERRORS as error:
        reason = str(error).split("\n", maxsplit=1)[0].rstrip(".") or type(error).__name__
        raise DataError(f"{name}: is truncated or damaged ({reason}); copy or download it again.") from None


def _hint(name: str) -> str:
    """What to do about formats that need something else."""
    hints = {
        ".heic": " Convert HEIC to JPEG first.",
        ".heif": " Convert HEIF to JPEG first.",
        ".svg": " Render the drawing as PNG first.",
        ".pdf": " Render the page as PNG first.",
    }
    return hints.get(Path(name).suffix.lower(), "")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1-8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode to RGB; the result shares nothing with `image`."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if mode == "I" or mode == "F" or mode.startswith("I;"):
        return _deep_grey(image, name)
    if mode in ("RGBa", "La"):  # premultiplied alpha
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 or 32 bits, integer or float, to RGB; `convert` would clip it at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: has pixels that are NaN or infinite; expected finite values.")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        grey = values * 255
    elif image.mode != "F" and low >= 0 and high <= 65535:
        grey = values / 257
    else:
        grey = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = WHITE
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def to_pil(image: Image.Image | NDArray[Any] | Tensor) -> Image.Image:
    """An image in memory as RGB.

    Args:
        image: Pillow image, or uint8 values (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); also (3, H, W) where the last
            side cannot be channels.

    Raises:
        ShapeError: for another shape.
        ParameterError: for values that are not uint8: their range is not known.
    """
    if isinstance(image, Image.Image):
        return _upright(_to_rgb(image, "image"), _orientation(image))
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype != np.uint8:
        raise ParameterError(
            f"image: expected uint8 values but got {values.dtype}; pass uint8 (H, W, 3), or a normalized float tensor "
            "(N, 3, H, W)."
        )
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise ShapeError(f"image: expected (H, W), (H, W, 3) or (H, W, 4) but got {tuple(values.shape)}.")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), "image")
