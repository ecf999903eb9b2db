"""Pictures as files, within a size where one is given."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from xattn.errors import ParameterError
from xattn.files import whole_file

_SMALLEST_PX = 64  # of the longer side
_SAMPLE_PX = 500  # enough to choose a palette from


def save(picture: Image.Image, path: str | Path, *, limit_bytes: int | None = None) -> Path:
    """Write a picture as PNG.

    Args:
        picture: RGB.
        path: of the file; its folder is made if there is none.
        limit_bytes: of the file. A picture above it gets a palette of 256 colours, then fewer pixels.

    Raises:
        ParameterError: if the limit cannot be met.
    """
    path = Path(path)
    data = _png(picture)
    if limit_bytes is not None and len(data) > limit_bytes:
        data = _within(picture, limit_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def _png(picture: Image.Image, *, optimize: bool = False) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()


def _within(picture: Image.Image, limit_bytes: int) -> bytes:
    """The largest of a falling row of sizes whose PNG keeps to the limit."""
    picture = picture.convert("RGB")
    sample = picture.copy()
    sample.thumbnail((_SAMPLE_PX, _SAMPLE_PX), Image.Resampling.NEAREST)
    # Colours spread over those that occur, so that the rare bright ones of maps and legends are not averaged away.
    palette = sample.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
    factor = 1.0
    while factor * max(picture.size) >= _SMALLEST_PX:
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        smaller = picture if factor == 1 else picture.resize(size, Image.Resampling.LANCZOS)
        data = _png(smaller.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG), optimize=True)
        if len(data) <= limit_bytes:
            return data
        factor *= 0.93
    raise ParameterError(f"save: no picture fits {limit_bytes} bytes; allow more.")
