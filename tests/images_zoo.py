"""Good, odd and bad image files, built in a folder on demand; every one shows the same picture where it can.

The picture is 48 x 32 pixels in four quarters: red and green above, blue and white below.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 30), (30, 30, 200), (250, 250, 250)

# What Pillow must do to a picture so that a viewer who honours the EXIF value shows it upright again.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture() -> NDArray[np.uint8]:
    """The four quarters as uint8 (32, 48, 3)."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    h, w = HEIGHT // 2, WIDTH // 2
    pixels[:h, :w], pixels[:h, w:], pixels[h:, :w], pixels[h:, w:] = RED, GREEN, BLUE, WHITE
    return pixels


def rgb() -> Image.Image:
    return Image.fromarray(picture())


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, crc: int = 0) -> bytes:
    """A PNG written by hand, for what Pillow does not write: `colour` 0 is grey, 2 is RGB; `rows` without filters."""
    size = len(rows) // height if height and rows else 0
    filtered = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height)) if rows else b""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def exif(path: Path, orientation: int) -> None:
    """The picture stored turned, with the EXIF orientation that turns it back."""
    image = rgb()
    if orientation in STORED:
        image = image.transpose(STORED[orientation])
    tags = Image.Exif()
    tags[0x0112] = orientation
    image.save(path, exif=tags, quality=95, subsampling=0)


def deep_grey(path: Path) -> None:
    """16-bit grey from 0 to 65535 over the rows."""
    Image.fromarray(deep_values()).save(path)


def deep_values() -> NDArray[np.uint16]:
    return np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)


def deep_rgb(path: Path) -> None:
    values = (picture().astype(np.uint16) * 257).astype(">u2")
    path.write_bytes(png(WIDTH, HEIGHT, 16, 2, values.tobytes()))


def palette(path: Path) -> None:
    rgb().quantize(8).save(path)


def palette_alpha(path: Path) -> None:
    """Palette whose blue is transparent."""
    image = rgb().quantize(8)
    blue = image.getpixel((0, HEIGHT - 1))
    image.save(path, transparency=blue)


def alpha(path: Path) -> None:
    """RGBA whose blue quarter is transparent, over hidden black."""
    image = rgb().convert("RGBA")
    hidden = Image.new("RGBA", (WIDTH // 2, HEIGHT // 2), (0, 0, 0, 0))
    image.paste(hidden, (0, HEIGHT // 2))
    image.save(path)


def grey_alpha(path: Path) -> None:
    image = Image.new("LA", (WIDTH, HEIGHT), (100, 255))
    image.paste((0, 0), (0, HEIGHT // 2, WIDTH, HEIGHT))
    image.save(path)


def animated(path: Path) -> None:
    """The picture first, then a black frame."""
    black = Image.new("RGB", (WIDTH, HEIGHT))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    rgb().save(path, save_all=True, append_images=[black], duration=100, **options)


def truncated(path: Path) -> None:
    """Half of the bytes of a picture with detail, which no decoder can fill in."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def broken_crc(path: Path) -> None:
    path.write_bytes(png(WIDTH, HEIGHT, 8, 2, picture().tobytes(), crc=1))


GOOD: dict[str, Callable[[Path], object]] = {
    "rgb.png": lambda p: rgb().save(p),
    "photo.jpg": lambda p: rgb().save(p, quality=95, subsampling=0),
    "exif-3.jpg": lambda p: exif(p, 3),
    "exif-6.jpg": lambda p: exif(p, 6),
    "deep-grey.png": deep_grey,
    "deep-rgb.png": deep_rgb,
    "palette.png": palette,
    "palette-alpha.png": palette_alpha,
    "cmyk.jpg": lambda p: rgb().convert("CMYK").save(p, quality=95),
    "cmyk.tif": lambda p: rgb().convert("CMYK").save(p),
    "alpha.png": alpha,
    "grey.png": lambda p: rgb().convert("L").save(p),
    "grey-alpha.png": grey_alpha,
    "bilevel.png": lambda p: rgb().convert("1").save(p),
    "one-pixel.png": lambda p: Image.new("RGB", (1, 1), RED).save(p),
    "wide.png": lambda p: Image.new("RGB", (5000, 2), RED).save(p),
    "tall.png": lambda p: Image.new("RGB", (2, 5000), RED).save(p),
    "animated.gif": animated,
    "animated.png": animated,
    "animated.webp": animated,
    "pages.tif": lambda p: rgb().save(p, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]),
    "float.tif": lambda p: Image.fromarray((picture()[:, :, 0] / 255).astype(np.float32)).save(p),
    "name with spaces ü.png": lambda p: rgb().save(p),
    "no-ending": lambda p: rgb().save(p, format="PNG"),
    "png-inside.jpg": lambda p: rgb().save(p, format="PNG"),
}
"""Files that can be read, with what writes them."""

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (truncated, "truncated or damaged"),
    "truncated.png": (truncated, "truncated or damaged"),
    "truncated.gif": (truncated, "truncated or damaged"),
    "truncated.webp": (truncated, "not an image|truncated or damaged"),
    "broken-crc.png": (broken_crc, "not an image, or damaged"),
    "empty.jpg": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "text.jpg": (lambda p: p.write_text("no picture at all\n" * 9), "not an image"),
    "drawing.svg": (lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image.*PNG first"),
    "pickle.png": (lambda p: p.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00"), "not an image"),
    "bomb.png": (lambda p: p.write_bytes(png(100_000, 100_000, 8, 0, b"")), "decompression bomb"),
    "large.png": (lambda p: p.write_bytes(png(12_000, 11_000, 1, 0, b"")), r"132,000,000 pixels, over the limit"),
    "zero-width.png": (lambda p: p.write_bytes(png(0, 5, 8, 0, b"")), "0 x 5|not an image|damaged"),
    "nan.tif": (lambda p: Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(p), "NaN or infinite"),
    "folder.jpg": (lambda p: p.mkdir(), "is a folder"),
}
"""Paths that cannot be read, with what makes them and what the message says (a regular expression)."""

BAD_IN_FOLDER = tuple(name for name in BAD if name not in ("folder.jpg", "drawing.svg"))
"""The bad files that a walk through the folder finds: a folder is entered, an unknown ending left out."""

GOOD_IN_FOLDER = tuple(name for name in GOOD if name != "no-ending")


def build_good(folder: Path) -> dict[str, Path]:
    """Write all readable files into a folder; returns name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in GOOD.items():
        make(folder / name)
    return {name: folder / name for name in GOOD}


def build_bad(folder: Path) -> dict[str, Path]:
    """Make all paths that cannot be read inside a folder; returns name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in BAD.items():
        make(folder / name)
    return {name: folder / name for name in BAD}
