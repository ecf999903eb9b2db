"""Pictures side by side: titled columns, one row an image, captions and legends; composed with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from xattn.errors import ParameterError, ShapeError
from xattn.viz.colors import colormap
from xattn.viz.text import FAINT, INK, PAPER, Color, shorten, width, wrap, write

_PIXELS = 4_500_000  # of a whole panel: about as many bytes as PNG
_BAR = 80.0  # points that a colour map takes in the legend
_LEGEND = 11.0  # points that its letters are high
_NOTE: Color = (236, 237, 239)  # ground of a cell without a picture
_RIGHT: Color = (27, 120, 55)
_WRONG: Color = (178, 24, 43)


@dataclass(frozen=True)
class Swatch:
    """A colour and what it means."""

    color: Color
    text: str


@dataclass(frozen=True)
class Bar:
    """A colour map and what its two ends mean."""

    colormap: str
    low: str
    high: str


@dataclass(frozen=True)
class Note:
    """A remark of the legend."""

    text: str


Key = Swatch | Bar | Note


@dataclass(frozen=True)
class Cell:
    """One picture of a panel.

    Args:
        picture: what is shown; None leaves a pale field with the note in it, or nothing if there is no note.
        caption: a line below the picture, such as the predicted class.
        detail: a second, fainter line, such as its probability.
        key: colours of this picture and what they mean.
        note: why there is no picture.
        title: above the picture, where the columns have no titles in common.
        mark: `"right"` or `"wrong"`, a tick or a cross in the corner of the picture.
    """

    picture: Image.Image | None = None
    caption: str = ""
    detail: str = ""
    key: tuple[Swatch, ...] = field(default=())
    note: str = ""
    title: str = ""
    mark: str = ""


def panel(
    rows: Sequence[Sequence[Cell]],
    titles: Sequence[str] = (),
    *,
    legend: Sequence[Key] = (),
    cell: int | None = None,
    scale: float | None = None,
) -> Image.Image:
    """Pictures in a grid of equal fields on a light ground.

    Pictures keep their shape and are centred in their field. Texts that are too long end in an ellipsis.

    Args:
        rows: cells row by row, all rows of one length.
        titles: of the columns, as many as a row has cells.
        legend: keys below the whole panel.
        cell: longer side of a field in points; by default as large as fits, from 224 down to 64.
        scale: pixels per point; by default 2, less where the panel would pass some four million pixels.

    Returns:
        The panel as RGB.

    Raises:
        ShapeError: if rows or titles differ in length.
        ParameterError: if a size is not positive.
    """
    columns = len(rows[0]) if rows else 0
    if not columns:
        raise ShapeError("panel: there is nothing to show; pass at least one row with one cell.")
    if any(len(row) != columns for row in rows):
        raise ShapeError(f"panel: rows have {sorted({len(row) for row in rows})} cells; all need the same number.")
    if titles and len(titles) != columns:
        raise ShapeError(f"panel: {len(titles)} titles do not fit {columns} columns.")
    if (cell is not None and cell < 1) or (scale is not None and scale <= 0):
        raise ParameterError(f"panel: cell and scale must be positive but are {cell} and {scale}.")
    layout = _layout(rows, titles, legend, cell, scale)
    sheet = Image.new("RGB", (layout.px(layout.wide), layout.px(layout.high)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for c, title in enumerate(titles):
        _draw_title(draw, title, (layout.left(c), layout.margin), layout)
    for r, row in enumerate(rows):
        for c, content in enumerate(row):
            if not titles:
                _draw_title(draw, content.title, (layout.left(c), layout.top(r) - layout.head), layout)
            _draw_cell(sheet, draw, content, (layout.left(c), layout.top(r)), layout)
    if layout.legend:
        _draw_legend(sheet, draw, layout)
    return sheet


def field_size(rows: int, columns: int, shape: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Height and width in pixels that a picture of `shape` should have in a panel of so many cells.

    Pictures drawn at this size are not resampled again.
    """
    cell, scale = _choose(rows, columns, _ratio(shape), None, None)
    wide, high = _field(cell, _ratio(shape))
    return max(1, round(high * scale)), max(1, round(wide * scale))


@dataclass
class _Layout:
    """All measures in points, from the top left corner."""

    scale: float
    field: tuple[float, float]
    title: float
    title_lines: int
    repeated: bool  # titles stand over each row
    caption: float
    lines: int  # below a picture: caption, detail, key
    rows: int
    columns: int
    legend: list[list[Key]]
    margin: float
    gap: float

    @property
    def head(self) -> float:
        """Height of the titles."""
        return self.title_lines * self.title * 1.25 + self.title * 0.45 if self.title_lines else 0

    @property
    def foot(self) -> float:
        """Height of the lines below a picture."""
        return self.lines * self.caption * 1.35 + (self.caption * 0.35 if self.lines else 0)

    @property
    def wide(self) -> float:
        return 2 * self.margin + self.columns * self.field[0] + (self.columns - 1) * self.gap

    @property
    def grid_end(self) -> float:
        return self.top(self.rows - 1) + self.field[1] + self.foot

    @property
    def high(self) -> float:
        return self.grid_end + len(self.legend) * 20 + (8 if self.legend else 0) + self.margin

    def left(self, column: int) -> float:
        return self.margin + column * (self.field[0] + self.gap)

    def top(self, row: int) -> float:
        heads = row + 1 if self.repeated else 1
        return self.margin + heads * self.head + row * (self.field[1] + self.foot + self.gap)

    def px(self, points: float) -> int:
        return max(1, round(points * self.scale))

    def at(self, points: tuple[float, float]) -> tuple[int, int]:
        return round(points[0] * self.scale), round(points[1] * self.scale)


def _ratio(shape: tuple[int, int]) -> float:
    """Width over height, kept within what a field can have: very long images lie in a field of 4 to 1."""
    return min(max(shape[1] / shape[0], 0.25), 4.0)


def _field(cell: float, ratio: float) -> tuple[float, float]:
    return (cell, cell / ratio) if ratio >= 1 else (cell * ratio, cell)


def _choose(rows: int, columns: int, ratio: float, cell: int | None, scale: float | None) -> tuple[float, float]:
    """Side of a field and scale such that the panel stays within its pixels, legible first, then sharp."""

    def pixels(side: float, factor: float) -> float:
        wide, high = _field(side, ratio)
        return columns * (wide + 10) * rows * (high + 40) * factor**2

    side, factor = float(cell or 224), scale or 2.0
    while cell is None and side > 112 and pixels(side, factor) > _PIXELS:
        side -= 8
    while scale is None and factor > 1 and pixels(side, factor) > _PIXELS:
        factor -= 0.25
    while cell is None and side > 64 and pixels(side, factor) > _PIXELS:
        side -= 8
    return side, factor


def _layout(
    rows: Sequence[Sequence[Cell]],
    titles: Sequence[str],
    legend: Sequence[Key],
    cell: int | None,
    scale: float | None,
) -> _Layout:
    shapes = {(c.picture.height, c.picture.width) for row in rows for c in row if c.picture is not None}
    ratios = {round(_ratio(shape), 2) for shape in shapes}
    ratio = ratios.pop() if len(ratios) == 1 else 1.0
    side, factor = _choose(len(rows), len(rows[0]), ratio, cell, scale)
    title = min(max(side / 15, 9.5), 14.0)
    caption = min(max(side / 18, 8.5), 11.5)
    wide, high = _field(side, ratio)
    box = round(wide * factor) / factor, round(high * factor) / factor  # whole pixels, so that all gaps are equal
    room = box[0] * factor
    cells = [c for row in rows for c in row]
    heads = list(titles) or [c.title for c in cells]
    long = any("\n" in t or width(t, title * factor) > room for t in heads)
    lines = max(bool(c.caption) + bool(c.detail) + bool(c.key) for c in cells)
    layout = _Layout(
        scale=factor,
        field=box,
        title=title,
        title_lines=0 if not any(h.strip() for h in heads) else 2 if long else 1,
        repeated=not titles,
        caption=caption,
        lines=lines,
        rows=len(rows),
        columns=len(rows[0]),
        legend=[],
        margin=round(16 * factor) / factor,
        gap=round(max(6.0, side / 22) * factor) / factor,
    )
    room = layout.wide - 2 * layout.margin
    for key in legend:  # keys flow into lines of the panel's width
        if not layout.legend or _key_widths([*layout.legend[-1], key], layout) > room:
            layout.legend.append([])
        layout.legend[-1].append(key)
    return layout


def _draw_title(draw: ImageDraw.ImageDraw, title: str, at: tuple[float, float], layout: _Layout) -> None:
    """On the lowest of the lines for titles, and those above where it is long."""
    lines = wrap(title, layout.px(layout.title), layout.px(layout.field[0]), layout.title_lines)
    for i, line in enumerate(lines):
        down = (layout.title_lines - len(lines) + i) * layout.title * 1.25
        write(draw, layout.at((at[0], at[1] + down)), line, layout.px(layout.title), INK, bold=True)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, content: Cell, at: tuple[float, float], layout: _Layout
) -> None:
    x, y = layout.at(at)
    wide, high = layout.px(layout.field[0]), layout.px(layout.field[1])
    if content.picture is None and content.note:
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=_NOTE)
        size = layout.px(layout.caption)
        lines = wrap(content.note, size, wide - 2 * size, max(1, int(high / size / 1.35) - 1))
        for i, line in enumerate(lines):
            middle = y + high / 2 + (i - (len(lines) - 1) / 2) * size * 1.3
            write(draw, (x + wide / 2, middle), line, size, FAINT, anchor="mm")
    elif content.picture is not None:
        picture = content.picture.convert("RGB")
        factor = min(wide / picture.width, high / picture.height)
        fitted = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        if max(abs(fitted[0] - picture.width), abs(fitted[1] - picture.height)) > 1:
            picture = picture.resize(fitted, Image.Resampling.LANCZOS)
        offset = (wide - picture.width) // 2, (high - picture.height) // 2
        sheet.paste(picture, (x + offset[0], y + offset[1]))
        if content.mark:
            radius = max(6, round(min(wide, high) / 18))
            corner = x + offset[0] + picture.width - round(1.5 * radius), y + offset[1] + round(1.5 * radius)
            _draw_mark(draw, content.mark == "right", corner, radius)
    size = layout.px(layout.caption)
    below = y + high + layout.px(layout.caption * 0.35)
    for text, color in ((content.caption, INK), (content.detail, FAINT)):
        if text:
            write(draw, (x, below), shorten(text, size, wide), size, color)
            below += layout.px(layout.caption * 1.35)
    if content.key:
        _draw_swatches(draw, content.key, (x, below), wide, size)


def _draw_mark(draw: ImageDraw.ImageDraw, right: bool, at: tuple[int, int], radius: int) -> None:
    """A tick on green or a cross on red; the shape tells them apart without colours."""
    x, y = at
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_RIGHT if right else _WRONG, outline=PAPER)
    r, stroke = radius * 0.45, max(1, round(radius / 4))
    if right:
        draw.line((x - r, y, x - r * 0.25, y + r * 0.8, x + r * 1.05, y - r * 0.8), fill=PAPER, width=stroke)
    else:
        draw.line((x - r, y - r, x + r, y + r), fill=PAPER, width=stroke)
        draw.line((x - r, y + r, x + r, y - r), fill=PAPER, width=stroke)


def _draw_swatches(
    draw: ImageDraw.ImageDraw, key: Sequence[Swatch], at: tuple[float, float], room: float, size: float
) -> None:
    """Dots with texts on one line; where these do not fit, smaller, then without the first word, then dots alone."""

    def needed(texts: Sequence[str], height: float) -> float:
        return sum(height * 0.95 + width(t, height) for t in texts) + (len(texts) - 1) * height * 0.7

    whole = [s.text for s in key]
    last = [s.text.partition(" ")[2] for s in key]
    texts, height = [""] * len(key), min(size, room / (1.65 * len(key)))
    for choice, smaller in ((whole, 1.0), (whole, 0.85), (last, 1.0), (last, 0.8)):
        if needed(choice, size * smaller) <= room:
            texts, height = choice, size * smaller
            break
    x, middle, radius = at[0], at[1] + size * 0.55, height * 0.34
    for swatch, text in zip(key, texts, strict=True):
        draw.ellipse((x, middle - radius, x + 2 * radius, middle + radius), fill=swatch.color)
        if text:
            write(draw, (x + height * 0.95, middle), text, height, FAINT, anchor="lm")
        x += height * 0.95 + width(text, height) + height * 0.7


def _key_widths(keys: Sequence[Key], layout: _Layout) -> float:
    """Width in points of keys on one line."""
    return sum(_key_width(key, layout) + 22 for key in keys) - 22


def _key_width(key: Key, layout: _Layout, bar: float = _BAR, size: float = _LEGEND) -> float:
    """Width in points of a key whose letters are of `size` points."""
    texts = (key.low, key.high) if isinstance(key, Bar) else (key.text,)
    written = sum(width(text, layout.px(size)) for text in texts) / layout.scale
    return written + (bar + 12 if isinstance(key, Bar) else 12 if isinstance(key, Swatch) else 0)


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout) -> None:
    room = layout.wide - 2 * layout.margin
    for i, keys in enumerate(layout.legend):
        x, middle = layout.margin, layout.grid_end + 8 + i * 20 + 10
        for key in keys:
            # A key wider than the panel gets a shorter bar, then smaller letters.
            bar, points = _BAR, _LEGEND
            while _key_width(key, layout, bar, points) > room and points > 3:
                bar, points = (bar - 2, points) if bar > 40 else (bar * 0.95, points * 0.95)
            size = layout.px(points)
            if isinstance(key, Swatch):
                left, top = layout.at((x, middle - 4))
                draw.ellipse((left, top, left + layout.px(8), top + layout.px(8)), fill=key.color)
                write(draw, layout.at((x + 12, middle)), key.text, size, FAINT, anchor="lm")
            elif isinstance(key, Note):
                write(draw, layout.at((x, middle)), key.text, size, FAINT, anchor="lm")
            else:
                start = x + width(key.low, size) / layout.scale + 6
                write(draw, layout.at((x, middle)), key.low, size, FAINT, anchor="lm")
                strip = gradient(key.colormap, layout.px(bar), layout.px(points * 0.8))
                sheet.paste(strip, layout.at((start, middle - points * 0.4)))
                write(draw, layout.at((start + bar + 6, middle)), key.high, size, FAINT, anchor="lm")
            x += _key_width(key, layout) + 22


def gradient(name: str, wide: int, high: int) -> Image.Image:
    """A colour map from left to right."""
    table = colormap(name)
    line = table[np.linspace(0, len(table) - 1, wide).round().astype(int)]
    return Image.fromarray(np.repeat(np.rint(line * 255).astype(np.uint8)[None], high, axis=0))
