"""Text on pictures: a scalable font that Pillow carries, ellipses, and marks that stay legible on any ground."""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Color = tuple[int, int, int]

INK: Color = (34, 36, 40)
FAINT: Color = (110, 114, 122)
PAPER: Color = (252, 252, 250)

_PLAIN = str.maketrans("×–—‘’“”", "x--''\"\"")  # noqa: RUF001


@functools.cache
def font(size: float) -> Font:
    """Pillow's own font at a height in pixels."""
    return ImageFont.load_default(max(size, 4))


@functools.cache
def _wide_font(size: float) -> Font | None:
    """DejaVu Sans, which has more letters, from the system or from the files of matplotlib, if there."""
    places = ["DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"]
    package = importlib.util.find_spec("matplotlib")  # finds the folder without importing it
    if package is not None and package.origin is not None:
        places.append(str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for place in places:
        try:
            return ImageFont.truetype(place, max(size, 4))
        except OSError:
            continue
    return None


@functools.cache
def _has(character: str, wide: bool) -> bool:
    """Whether a font draws a character otherwise than as its box for unknown ones."""
    chosen = _wide_font(32) if wide else font(32)
    if chosen is None:
        return False
    if character == " ":
        return True
    box = chosen.getmask("\U000f0000")
    mask = chosen.getmask(character)
    return mask.size != box.size or bytes(mask) != bytes(box)


@functools.lru_cache(maxsize=4096)
def legible(text: str, size: float) -> tuple[str, Font]:
    """A text without line breaks and the font that can draw it.

    Signs with a plain twin are replaced by it. Letters that the default font lacks are looked for in a wider one;
    failing that accents are dropped, then the letter becomes a question mark.
    """
    text = " ".join(text.split()).translate(_PLAIN)
    if all(_has(c, wide=False) for c in text):
        return text, font(size)
    wider = _wide_font(size * 0.94)  # its letters are larger at the same nominal size
    if wider is not None:
        return "".join(c if _has(c, wide=True) else "?" for c in text), wider
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c if _has(c, wide=False) else "?" for c in decomposed if not unicodedata.combining(c)), font(size)


def width(text: str, size: float) -> float:
    """Width of a text in pixels."""
    shown, chosen = legible(text, size)
    return float(chosen.getlength(shown))


def shorten(text: str, size: float, room: float) -> str:
    """The text, or as much of its beginning as fits `room` pixels with an ellipsis; empty if nothing fits."""
    text = " ".join(text.split())
    if width(text, size) <= room:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width(text[:middle].rstrip() + "…", size) <= room else (low, middle - 1)
    return text[:low].rstrip(" ,;:-") + "…" if low else ""


def wrap(text: str, size: float, room: float, lines: int) -> list[str]:
    """The text in at most `lines` lines of `room` pixels, broken between words; the last one is shortened.

    A line break in the text is kept.
    """
    first, _, rest = text.strip().partition("\n")
    if rest and lines > 1:
        below = wrap(rest, size, room, 1)
        return [*wrap(first, size, room, lines - 1), *below]
    words = text.split()
    done: list[str] = []
    while words and len(done) < lines - 1:
        count = 1
        while count < len(words) and width(" ".join(words[: count + 1]), size) <= room:
            count += 1
        done.append(shorten(" ".join(words[:count]), size, room))
        words = words[count:]
    if words:
        done.append(shorten(" ".join(words), size, room))
    return done


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, color: Color = INK, **how: object
) -> None:
    """Draw a text.

    Args:
        draw: where.
        at: position in pixels.
        text: what.
        size: height of the font in pixels.
        color: of the letters.
        how: `anchor` as in Pillow ("la" is the top left), `bold` as a bool.
    """
    shown, chosen = legible(text, size)
    anchor = str(how.get("anchor", "la"))
    draw.text(at, shown, fill=color, font=chosen, anchor=anchor)
    if how.get("bold"):
        draw.text((at[0] + size / 48, at[1]), shown, fill=color, font=chosen, anchor=anchor)


def tag(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a small dark label in its lower left corner; a frame instead where a label has no room."""
    side = min(picture.size)
    size = min(max(side / 18, 11), 30)
    while size > 8 and width(text, size) > picture.width - 2 * size:
        size -= 0.5
    margin, pad = size * 0.5, size * 0.45
    shown = shorten(text, size, picture.width - 2 * (margin + pad))
    marked = picture.convert("RGBA")
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    if side < 40 or not shown:
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=(255, 170, 0, 255), width=1)
    else:
        high = size + 2 * pad * 0.7
        box = (margin, picture.height - margin - high, margin + width(shown, size) + 2 * pad, picture.height - margin)
        draw.rounded_rectangle(box, radius=high * 0.3, fill=(20, 22, 26, 205))
        write(draw, (box[0] + pad, (box[1] + box[3]) / 2), shown, size, (255, 214, 120), anchor="lm")
    return Image.alpha_composite(marked, layer).convert("RGB")
