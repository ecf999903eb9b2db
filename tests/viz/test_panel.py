from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from xattn.errors import ParameterError, ShapeError
from xattn.viz import Bar, Cell, Swatch, field_size, panel
from xattn.viz.text import PAPER, legible, shorten, tag, width, wrap, write

RED, BLUE = (200, 30, 30), (30, 30, 200)


def square(color: tuple[int, int, int], size: tuple[int, int] = (50, 50)) -> Image.Image:
    return Image.new("RGB", size, color)


def where(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == np.array(color)).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 12), (3, 4), (40, 12)])
def test_all_sizes_are_drawn_within_bounds(rows: int, columns: int) -> None:
    cells = [[Cell(square(RED), "a class", "12.3 %") for _ in range(columns)] for _ in range(rows)]
    sheet = panel(cells, ["a method"] * columns, legend=[Bar("plasma", "low", "high")])
    assert sheet.width * sheet.height < 6_000_000
    assert sheet.width / columns >= 64
    assert sheet.getpixel((0, 0)) == sheet.getpixel((sheet.width - 1, sheet.height - 1)) == PAPER


def test_a_large_panel_of_noise_stays_below_some_megabytes() -> None:
    noise = Image.effect_noise((64, 64), 60).convert("RGB").resize((300, 300))
    sheet = panel([[Cell(noise)] * 13] * 40, ["m"] * 13)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    assert buffer.tell() < 8_000_000


def test_fields_are_equal_and_aligned() -> None:
    colors = [[(200, 10 * r, 10 * c) for c in range(3)] for r in range(2)]
    cells = [[Cell(square(colors[r][c], (40 + 20 * r, 40 + 20 * r)), "x" * r) for c in range(3)] for r in range(2)]
    sheet = panel(cells, ["a", "b" * 99, "c"])
    boxes = [[where(sheet, color) for color in row] for row in colors]
    sizes = {(b[2] - b[0], b[3] - b[1]) for row in boxes for b in row}
    assert sizes == {(448, 448)}
    for row in boxes:
        assert len({(b[1], b[3]) for b in row}) == 1
    for column in zip(*boxes, strict=True):
        assert len({(b[0], b[2]) for b in column}) == 1
    gaps = [b[0] - a[2] for a, b in zip(boxes[0], boxes[0][1:], strict=False)]
    assert len(set(gaps)) == 1


def test_pictures_keep_their_shape_and_are_centred() -> None:
    sheet = panel([[Cell(square(RED)), Cell(square(BLUE, (100, 20)))]], cell=100, scale=1)
    field, wide = where(sheet, RED), where(sheet, BLUE)
    assert (field[2] - field[0], field[3] - field[1]) == (100, 100)
    assert (wide[2] - wide[0], wide[3] - wide[1]) == (100, 20)
    assert wide[1] - field[1] == field[3] - wide[3] == 40


def test_very_long_pictures_do_not_flatten_the_field() -> None:
    sheet = panel([[Cell(square(RED, (2000, 3)))]], cell=200, scale=1)
    box = where(sheet, RED)
    assert box[2] - box[0] == 200
    assert box[3] - box[1] == 1
    assert sheet.height >= 50


@pytest.mark.parametrize("shape", [(224, 224), (300, 451), (64, 64), (30, 400)])
def test_pictures_of_the_field_size_are_not_resampled(shape: tuple[int, int]) -> None:
    high, wide = field_size(2, 3, shape)
    noise = np.random.default_rng(0).integers(0, 255, (high, wide, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    sheet = np.asarray(panel([[Cell(picture)] * 3] * 2, ["t"] * 3))
    first = noise[high // 2]
    assert any((sheet[r, 32 : 32 + wide] == first).all() for r in range(sheet.shape[0]))


def test_titles_stand_over_their_columns() -> None:
    plain = np.asarray(panel([[Cell(square(RED)), Cell(square(RED))]], ["", " "], cell=100, scale=2)).astype(int)
    one = np.asarray(panel([[Cell(square(RED)), Cell(square(RED))]], ["", "Title"], cell=100, scale=2)).astype(int)
    assert one.shape[0] > plain.shape[0]
    ink = (np.abs(one - np.array(PAPER)).sum(axis=2) > 60).any(axis=0)
    boxes = where(Image.fromarray(one.astype(np.uint8)), RED)
    above = one[: boxes[1]]
    columns = np.nonzero((np.abs(above - np.array(PAPER)).sum(axis=2) > 60).any(axis=0))[0]
    assert columns.min() >= 32 + 200  # nothing over the first column
    assert ink.any()


def test_cells_may_carry_their_own_titles_row_by_row() -> None:
    cells = [[Cell(square(RED), title="one")], [Cell(square(BLUE), title="two")]]
    with_titles = panel(cells, cell=100, scale=2)
    without = panel([[Cell(square(RED))], [Cell(square(BLUE))]], cell=100, scale=2)
    gap = where(with_titles, BLUE)[1] - where(with_titles, RED)[3]
    assert gap > where(without, BLUE)[1] - where(without, RED)[3]


def test_a_note_stands_where_there_is_no_picture() -> None:
    noted = np.asarray(panel([[Cell(square(RED)), Cell(note="needs a linear layer")]], cell=100, scale=2))
    field = noted[40:220, 260:440]
    assert (field[0, 0] == field[-1, -1]).all()
    assert (field.reshape(-1, 3) < 150).any()
    empty = np.asarray(panel([[Cell(square(RED)), Cell()]], cell=100, scale=2))
    assert (empty[40:220, 260:440] == np.array(PAPER)).all()


def test_the_legend_shows_its_colours_and_wraps() -> None:
    colors = [(10 * i, 200, 255 - 10 * i) for i in range(12)]
    legend = [Bar("viridis", "less", "more"), *(Swatch(c, "a long explanation") for c in colors)]
    sheet = panel([[Cell(square(RED))]], legend=legend, cell=200, scale=2)
    tops = []
    for color in colors:
        box = where(sheet, color)
        assert box[2] <= sheet.width - 30
        tops.append(box[1])
    assert tops == sorted(tops)
    assert len(set(tops)) > 3
    for end in ((68, 1, 84), (253, 231, 36)):
        assert (np.abs(np.asarray(sheet).astype(int) - np.array(end)).max(axis=2) <= 1).any()


@pytest.mark.parametrize("cell", [300, 224, 150, 64])
def test_a_long_key_stays_within_a_narrow_panel(cell: int) -> None:
    for key in (Bar("plasma", "less important", "more important"), Swatch(BLUE, "many words about this colour")):
        sheet = np.asarray(panel([[Cell(square(RED))]], legend=[key], cell=cell, scale=2)).astype(int)
        written = np.abs(sheet - np.array(PAPER)).max(axis=2) > 12
        assert written[32 + 2 * cell :].any()
        assert not written[:, -30:].any()


def test_keys_of_a_cell_shrink_to_dots() -> None:
    key = (Swatch((255, 0, 0), "1st 50 %"), Swatch((0, 255, 0), "2nd 30 %"), Swatch((0, 0, 255), "3rd 20 %"))
    for cell in (224, 90, 40, 24):
        sheet = panel([[Cell(square((90, 90, 90)), key=key)]], cell=cell, scale=2)
        for swatch in key:
            box = where(sheet, swatch.color)
            assert box[2] <= 32 + 2 * cell + 1


def test_refusals() -> None:
    with pytest.raises(ShapeError, match="nothing to show"):
        panel([])
    with pytest.raises(ShapeError, match=r"rows have \[1, 2\] cells"):
        panel([[Cell()], [Cell(), Cell()]])
    with pytest.raises(ShapeError, match="3 titles do not fit 1 columns"):
        panel([[Cell()]], ["a", "b", "c"])
    with pytest.raises(ParameterError, match="must be positive but are 0 and None"):
        panel([[Cell()]], cell=0)


# -------------------------------------------------------------------------------------------------------------- text


def test_shorten_keeps_what_fits() -> None:
    name = "German short-haired pointer"
    assert shorten(name, 20, 1000) == name
    for room in (30, 60, 100, 150):
        short = shorten(name, 20, room)
        assert short.endswith("…")
        assert width(short, 20) <= room
        assert name.startswith(short[:-1])
    longer = name[: len(shorten(name, 20, 100))]
    assert width(longer + "…", 20) > 100  # one letter more would not fit
    assert shorten(name, 20, 3) == ""


def test_wrap_breaks_between_words_and_shortens_the_last_line() -> None:
    lines = wrap("Guided Grad-CAM++ of a very deep layer", 20, 120, 2)
    assert len(lines) == 2
    assert all(width(line, 20) <= 120 for line in lines)
    assert lines[0] == "Guided"
    assert lines[1].endswith("…")
    assert wrap("CAM", 20, 120, 2) == ["CAM"]
    assert wrap("", 20, 120, 2) == []


@pytest.mark.parametrize("text", ["tabby", "Müller", "Ωμέγα", "日本", "a\nb\tc", "\xd7", "\x00"])
def test_any_text_is_drawn(text: str) -> None:
    shown, _ = legible(text, 20)
    assert "\n" not in shown
    picture = square((255, 255, 255), (200, 40))
    write(ImageDraw.Draw(picture), (0, 0), text, 20)
    assert np.asarray(picture).min() < 128


def test_letters_of_the_usual_scripts_survive() -> None:
    pytest.importorskip("matplotlib")
    assert legible("Müller Ωμέγα Жук", 20)[0] == "Müller Ωμέγα Жук"
    assert legible("input × gradient – 3", 20)[0] == "input x gradient - 3"  # noqa: RUF001


@pytest.mark.parametrize("size", [(448, 448), (64, 64), (40, 300), (5, 5)])
def test_a_tag_stays_inside_and_leaves_most_of_the_picture(size: tuple[int, int]) -> None:
    before = square((128, 128, 128), size)
    after: Any = np.asarray(tag(before, "all-zero map")).astype(int)
    assert after.shape[:2] == size[::-1]
    changed = (after != 128).any(axis=2)
    assert changed.any()
    if min(size) >= 64:
        assert changed.mean() < 0.2
