"""Damaged, odd and dangerous image files."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, REFUSED, SOME_FAILED, Call, Outcome, case, damage

FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "webp": "WEBP",
    "ppm": "PPM",
    "tga": "TGA",
    "ico": "ICO",
    "jp2": "JPEG2000",
}
FAILS = frozenset({REFUSED})
READ_ONLY = frozenset({0})


def pictures(home: Path) -> int:
    """How many pictures were written."""
    return sum(1 for path in (home / "out").rglob("*.png"))


def has_picture(home: Path, outcome: Outcome) -> str:
    """A status of 0 comes with a picture."""
    return "" if outcome.status != 0 or pictures(home) else "status 0 without a picture"


def attempt(
    rng: random.Random, home: Path, suffix: str, data: bytes, name: str, statuses: frozenset[int] = ANY
) -> Call:
    """Explain a file by itself or among others, or compare it."""
    tail = ("-m", "gradcam", "--model", "tiny-cnn")
    how = rng.random()
    if how < 0.6:
        (home / f"a.{suffix}").write_bytes(data)
        return Call(("explain", f"a.{suffix}", *tail, "--out", "out"), statuses - {3}, has_picture, name=name)
    (home / "p").mkdir()
    (home / "p" / f"a.{suffix}").write_bytes(data)
    stock.photograph(home / "p")
    among = statuses - {REFUSED} | ({SOME_FAILED} if REFUSED in statuses else set())
    if how < 0.85:
        return Call(("explain", "p", *tail, "--out", "out"), among, has_picture, name=name)
    return Call(("compare", "p", *tail, "--no-curves", "--out", "page.html"), among, name=name)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes = b"", *, depth: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG by hand, of any size in its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(body, 1)) + chunk(b"IEND", b"")


@case("images", 6)
def damaged(rng: random.Random, home: Path) -> Call:
    """Any format with its bytes damaged."""
    suffix = rng.choice(list(FORMATS))
    data, what = damage(rng, stock.encoded(rng.randrange(4), FORMATS[suffix]))
    return attempt(rng, home, suffix, data, f"{suffix} {what}")


@case("images", 2)
def bomb(rng: random.Random, home: Path) -> Call:
    """A PNG whose header says far more than the file holds."""
    sizes = (
        (1, 119_999_999),
        (119_999_999, 1),
        (30_000, 30_000),
        (2**31 - 1, 2**31 - 1),
        (10_900, 10_900),
        (0, 9),
        (9, 0),
    )
    width, height = rng.choice(sizes)
    depth, colour = rng.choice(((8, 0), (1, 0), (16, 2), (8, 6), (16, 6)))
    body = b"" if rng.random() < 0.7 else bytes(min(width, 10_000) * 4)
    name = f"png header {width}x{height} depth {depth}"
    return attempt(rng, home, "png", png(width, height, body, depth=depth, colour=colour), name)


@case("images")
def inflated(rng: random.Random, home: Path) -> Call:
    """A small file of many true pixels, at the limit of what is read."""
    side = rng.choice((9_000, 10_900))
    body = zlib.compress((b"\0" + bytes(-(-side // 8))) * side)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return attempt(rng, home, "png", data, f"bilevel of {side} px")


@case("images")
def jpeg_bomb(rng: random.Random, home: Path) -> Call:
    """A JPEG whose frame header says another size."""
    data = bytearray(stock.encoded(0, "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    height, width = rng.choice(((65_500, 65_500), (10_500, 11_000), (1, 65_500), (0, 0), (8, 8)))
    data[place : place + 4] = struct.pack(">HH", height, width)
    return attempt(rng, home, "jpg", bytes(data), f"jpeg header {width}x{height}")


@case("images")
def other_headers(rng: random.Random, home: Path) -> Call:
    """Wrong sizes in the headers of simple formats."""
    wide = rng.choice((99_999, 10_900, 2**31 - 1, 0))
    bmp = bytearray(stock.encoded(0, "BMP"))
    bmp[18:26] = struct.pack("<ii", wide, rng.choice((wide, -wide, -5, 1)))
    gif = bytearray(stock.encoded(0, "GIF"))
    gif[6:10] = struct.pack("<HH", min(wide, 65_535), min(wide, 65_535))
    tiff = stock.encoded(0, "TIFF").replace(
        struct.pack("<HHIHH", 256, 4, 1, 48, 0), struct.pack("<HHII", 256, 4, 1, wide)
    )
    suffix, data = rng.choice(
        [
            ("bmp", bytes(bmp)),
            ("gif", bytes(gif)),
            ("tiff", tiff),
            ("ppm", f"P6 {wide} {wide} 255\n".encode() + b"abc"),
            ("pgm", f"P5 {wide} {wide} 65535\n".encode()),
            ("pbm", f"P1 {wide} 1\n".encode() + b"1 0 " * 50),
            ("ppm", b"P6 3 3 0\n" + bytes(27)),
            ("ppm", b"P6 " + b"9" * 10_000 + b" 3 255\n"),
        ]
    )
    return attempt(rng, home, suffix, data, f"{suffix} of {wide} px")


@case("images")
def wrong_suffix(rng: random.Random, home: Path) -> Call:
    """One format called like another: read."""
    inside, outside = rng.sample(["PNG", "JPEG", "GIF", "BMP", "WEBP"], 2)
    return attempt(rng, home, outside.lower(), stock.encoded(0, inside), f"{inside} called {outside}", READ_ONLY)


@case("images")
def no_image(rng: random.Random, home: Path) -> Call:
    """Other files called like an image."""
    data = rng.choice(
        [
            b"",
            b"\0",
            b"no picture\n" * 9,
            b"\x80\x04\x95\x0b",
            b"PK\x03\x04" + bytes(99),
            b"<svg/>",
            rng.randbytes(2000),
        ]
    )
    return attempt(rng, home, rng.choice(["png", "jpg", "tif", "webp"]), data, f"{data[:9]!r}", FAILS)


@case("images", 2)
def modes(rng: random.Random, home: Path) -> Call:
    """Modes of pixels that are rare."""
    mode = rng.choice(["1", "L", "LA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "RGBA", "RGBX"])
    values = np.random.default_rng(0).integers(0, 65_535, (SIDE, SIDE)).astype(np.uint16)
    image = Image.fromarray(values) if mode == "I;16" else stock.photo().convert("RGB")
    if mode not in ("I;16", "RGB"):
        image = image.convert("L").convert(mode) if mode in ("LA", "PA", "I", "F") else image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode not in ("1", "L", "LA", "P", "RGBA") else "PNG")
    return attempt(rng, home, "tiff", stream.getvalue(), mode)


SIDE = stock.SIDE


@case("images")
def floats(rng: random.Random, home: Path) -> Call:
    """Pixels that are no colours."""
    value = rng.choice([float("nan"), float("inf"), -1e38, 1e38, 300.0])
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(stream, "TIFF")
    return attempt(rng, home, "tif", stream.getvalue(), f"float {value}")


@case("images")
def metadata(rng: random.Random, home: Path) -> Call:
    """Orientation, profile and texts that are damaged or huge."""
    what = rng.choice(["orientation", "exif", "profile", "text bomb", "texts"])
    if what == "orientation":
        tags = Image.Exif()
        tags[0x0112] = rng.choice([0, 9, 255, 65_535])
        return attempt(rng, home, "jpg", stock.encoded(0, "JPEG", exif=tags), what)
    if what == "exif":
        return attempt(rng, home, "jpg", stock.encoded(0, "JPEG", exif=b"Exif\0\0" + rng.randbytes(300)), what)
    if what == "profile":
        return attempt(rng, home, "png", stock.encoded(0, "PNG", icc_profile=rng.randbytes(3000)), what)
    piece = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)) if what == "text bomb" else b""
    piece = piece or chunk(b"tEXt", b"Title\0\x1b]0;owned\x07" + b"x" * 99_999) * 50
    body = (b"\0" + bytes(8)) * 8
    return attempt(rng, home, "png", png(8, 8, body, before=piece), what)


@case("images")
def shapes(rng: random.Random, home: Path) -> Call:
    """Very small, very long, and many frames."""
    suffix, image, options = rng.choice(
        [
            ("png", Image.new("RGB", (1, 1)), {}),
            ("png", Image.new("RGB", (1, 60_000)), {}),
            ("png", Image.new("RGB", (60_000, 1)), {}),
            (
                "gif",
                Image.new("P", (8, 8)),
                {"save_all": True, "append_images": [Image.new("P", (8, 8), i) for i in range(99)]},
            ),
            ("tiff", Image.new("L", (8, 8)), {"save_all": True, "append_images": [Image.new("L", (9, 9))] * 50}),
        ]
    )
    stream = io.BytesIO()
    image.save(stream, FORMATS[suffix], **options)
    return attempt(rng, home, suffix, stream.getvalue(), f"{suffix} {image.size}", READ_ONLY)
