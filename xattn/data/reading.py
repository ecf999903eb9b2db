"""From an image file, its bytes or values in memory to upright 8-bit RGB."""

from __future__ import annotations

import math
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from xattn.data.finding import missing_path
from xattn.errors import DataError, ParameterError, ShapeError, XattnError, XattnWarning, reason_of
from xattn.schema import check

PIXEL_LIMIT = 120_000_000
"""Pixels above which an image is refused unless told otherwise: 360 MB as RGB, more than common cameras give."""

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "HEIF"),
    *("PCX", "SGI", "QOI"),
)
"""What is read, by Pillow's names. Not EPS, for which Pillow runs Ghostscript, nor formats that few programs write."""

Window: TypeAlias = tuple[float, float]
"""Values that become black and white."""

SCAN_LIMIT = 100  # a progressive JPEG has ten or so; each costs the time of an image
STRIP_PIXELS = 2**21
WHITE = 255

# Decoders that take more memory than others get images of fewer pixels.
_SHARE_OF_LIMIT = {"WEBP": 1 / 3, "AVIF": 1 / 2, "JPEG2000": 1 / 4}
# No complete file holds more: a byte of deflate stands for 1,032 at most, one of LZW for 4,096, and 64 pixels of a JPEG
# take a bit, in the channel that has the fewest.
_PIXELS_PER_BYTE = {"PNG": 8 * 1032, "GIF": 4096, "JPEG": 2048, "MPO": 2048}
_TILE_WIDTH, _TILE_HEIGHT = 322, 323

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


def read_image(
    path: str | Path,
    *,
    pixel_limit: int = PIXEL_LIMIT,
    upright: bool = True,
    stored: bool = False,
    window: Window | None = None,
) -> Image.Image:
    """Read an image file of any kind as 8-bit RGB, upright.

    - The EXIF orientation is applied.
    - Grey values of more than 8 bits are shown in a window of values, from black to white. It is what the person says,
      else all of 16 bits where the image uses more than 14 of them, or all of [0, 1] for floats. Any other window is a
      guess, which a warning tells: 8, 10, 12 or 14 bits, whichever the largest value needs, else from the smallest
      value to the largest.
    - Transparent pixels are laid on white.
    - CMYK and other colour spaces are converted without colour management, as training pipelines do.
    - Of an animation or a file of several pages the first is taken.
    - The format is known by the content, not by the name, and is one of `FORMATS`.

    Args:
        path: the file.
        pixel_limit: width x height above which the image is refused before it is decoded; a half of it for AVIF, a
            third for WebP and a quarter for JPEG 2000, whose decoders take more memory. Pillow's own bound (twice
            `PIL.Image.MAX_IMAGE_PIXELS`) holds as well.
        upright: apply the EXIF orientation. Data sets whose boxes were drawn on the stored pixels leave it.
        stored: leave mode and values as they are, for masks whose values are numbers of regions.
        window: values (low, high) that become black and white where an image has more than 8 bits, such as
            (-1000, 400) for lungs in CT numbers; beyond them it is clipped. None chooses one.

    Returns:
        An image of mode RGB, detached from the file and without its metadata.

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
            return _decode(stream, str(file), pixel_limit, upright, stored, window)
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


def _decode(
    stream: BinaryIO | BytesIO,
    name: str,
    pixel_limit: int,
    upright: bool,
    stored: bool = False,
    window: Window | None = None,
) -> Image.Image:
    """Open, check and convert one image; every failure becomes one line."""
    guesses: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata of an image that can be read is of no interest
            with Image.open(stream, formats=_known_formats()) as image:
                _check_size(image, stream, name, pixel_limit)
                with _quiet(image.format):
                    image.load()
                if stored:
                    return image.copy()
                # A warning is for the person, unlike those of damaged metadata.
                rgb = _to_rgb(image, name, window, guesses)
                result = _upright(rgb, _orientation(image) if upright else 1)
    except XattnError:
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
        raise DataError(f"{name}: is truncated or damaged ({reason_of(error)}); copy or download it again.") from None
    _tell(guesses)
    return result


def _tell(guesses: list[str]) -> None:
    for guess in guesses:
        warnings.warn(guess, XattnWarning, stacklevel=4)


def _known_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image, stream: BinaryIO | BytesIO, name: str, pixel_limit: int) -> None:
    """Refuse what would take too much memory or time, before anything is decoded."""
    width, height = image.size
    pixels = width * height
    limit = int(pixel_limit * _SHARE_OF_LIMIT.get(image.format or "", 1))
    if pixels > limit:
        raise DataError(
            f"{name}: has {width} x {height} = {pixels:,} pixels, over the limit of {limit:,}; make it smaller or "
            "raise the limit (pixel_limit)."
        )
    if pixels == 0:
        raise DataError(f"{name}: is {width} x {height} pixels; expected at least 1 x 1.")
    place = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    if pixels > size * _PIXELS_PER_BYTE.get(image.format or "", pixels):
        raise DataError(
            f"{name}: is truncated or damaged ({size:,} bytes cannot hold {width} x {height} pixels); copy or download "
            "it again."
        )
    stream.seek(0)
    if image.info.get("progressive") and (scans := stream.read().count(b"\xff\xda")) > SCAN_LIMIT:
        raise DataError(f"{name}: has {scans} scans, more than the {SCAN_LIMIT} that are read; save it again.")
    stream.seek(place)
    tags = getattr(image, "tag_v2", {})
    tile = [tags.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_HEIGHT)]
    if not all(isinstance(side, int) for side in tile) or math.prod(tile) > pixel_limit:
        raise DataError(f"{name}: is damaged (tiles of {tile[0]} x {tile[1]} pixels); copy or download it again.")


_stderr_lock = threading.Lock()


@contextmanager
def _quiet(kind: str | None) -> Iterator[None]:
    """Without the lines that libtiff writes to the error output of the process by itself."""
    if kind != "TIFF":
        yield
        return
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # there is no error output
            kept = -1
        if kept >= 0:
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            if kept >= 0:
                os.dup2(kept, 2)
                os.close(kept)


def _hint(name: str) -> str:
    """What to do about formats that need something else."""
    hints = {
        ".heic": " Convert HEIC to JPEG first.",
        ".heif": " Convert HEIF to JPEG first.",
        ".tif": " Values of 64 bits are not read: save them as float32.",
        ".tiff": " Values of 64 bits are not read: save them as float32.",
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
    """The image turned by its orientation, without the metadata that would have it turned again."""
    turn = _TURNS.get(orientation)
    result = image.copy() if turn is None and _orientation(image) != 1 else image
    result = result if turn is None else result.transpose(turn)
    result.info = {}
    return result


def _to_rgb(image: Image.Image, name: str, window: Window | None, guesses: list[str]) -> Image.Image:
    """Any mode to RGB, a strip of rows after the other, so that memory holds two images and no more.

    A window that is guessed is added to `guesses`.
    """
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if deep := mode in ("I", "F") or mode.startswith("I;"):
        shown = _window(_span(image, name), image.mode == "F", window, name, guesses)
    result = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        if deep:
            strip = _deep_grey(strip, *shown)
        if strip.mode in ("RGBa", "La"):  # premultiplied alpha
            strip = strip.convert("RGBA" if strip.mode == "RGBa" else "LA")
        if strip.mode in ("RGBA", "LA", "PA") or "transparency" in strip.info:
            rgba = strip.convert("RGBA")
            ground = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, 255))
            strip = Image.alpha_composite(ground, rgba)
        result.paste(strip.convert("RGB"), (0, top))
    result.info = {"exif": image.info["exif"]} if "exif" in image.info else {}
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of rows, each with the place of its first row."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _span(image: Image.Image, name: str) -> tuple[float, float]:
    """Smallest and largest value of a grey image of 16 or 32 bits."""
    ends = []
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise DataError(f"{name}: has pixels that are NaN or infinite; expected finite values.")
        ends.append((float(values.min()), float(values.max())))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _window(
    span: tuple[float, float], floats: bool, given: Window | None, name: str, guesses: list[str]
) -> tuple[float, float]:
    """The values that become black and white.

    Raises:
        ParameterError: for a window that is none.
    """
    if given is not None:
        low, high = check(given, tuple[float, float], "window", ParameterError)
        if not low < high:
            raise ParameterError(f"window: expected low < high but got {low:g}, {high:g}.")
        return low, high
    low, high = span
    if floats and low >= 0 and high <= 1:
        return 0, 1
    if not floats and low >= 0 and high <= 65535:
        bits = next(b for b in (8, 10, 12, 14, 16) if high < 2**b)
        low, high = 0, 2**bits - 1
        if bits == 16:
            return low, high
    guesses.append(
        f"{name}: its values from {span[0]:g} to {span[1]:g} are shown from {low:g} (black) to {high:g} (white), which "
        f"is a guess; --window {low:g},{high:g} or window=({low:g}, {high:g}) fixes it, or another one."
    )
    return low, high


def _deep_grey(image: Image.Image, low: float, high: float) -> Image.Image:
    """Grey of 16 or 32 bits, integer or float, to 8 bits; `convert` would clip it at 255.

    Args:
        image: a strip of the image.
        low: value that becomes black.
        high: value that becomes white.
    """
    values = np.asarray(image).astype(np.float64)
    grey = np.clip((values - low) * (255 / (high - low)), 0, 255) if high > low else np.zeros_like(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = WHITE
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def to_pil(image: Image.Image | NDArray[Any] | Tensor, *, window: Window | None = None) -> Image.Image:
    """An image in memory as RGB.

    Args:
        image: Pillow image, or uint8 values (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); also (3, H, W) where the last
            side cannot be channels. Numbers of another kind need a window.
        window: values (low, high) that become black and white, of numbers that are not uint8.

    Raises:
        ShapeError: for another shape.
        ParameterError: for values that are not uint8 without a window: their range is not known.
    """
    guesses: list[str] = []
    if isinstance(image, Image.Image):
        result = _upright(_to_rgb(image, "image", window, guesses), _orientation(image))
        _tell(guesses)
        return result
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if values.dtype != np.uint8:
        if window is None or values.dtype.kind not in "iuf":
            raise ParameterError(
                f"image: expected uint8 values but got {values.dtype}; pass uint8 (H, W, 3), a normalized float tensor "
                "(N, 3, H, W), or window=(low, high), the values that are black and white."
            )
        low, high = _window((0, 0), False, window, "image", guesses)
        if not np.isfinite(values).all():
            raise DataError("image: has pixels that are NaN or infinite; expected finite values.")
        values = np.rint(np.clip((values.astype(np.float64) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in values.shape:
        raise ShapeError(f"image: expected (H, W), (H, W, 3) or (H, W, 4) but got {tuple(values.shape)}.")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), "image", None, guesses)
