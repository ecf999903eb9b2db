"""Pictures of explanations: one by one, part by part, and as a gallery of methods and images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from xattn.data.preprocessing import pictures, preprocess, view_of
from xattn.errors import DataError, ParameterError, ShapeError
from xattn.labels import changed
from xattn.looks import COLORMAP
from xattn.registry import first_sentence
from xattn.viz.colors import DIVERGING, ordinal, rank_color
from xattn.viz.overlay import ImageLike, fine, overlay, rank_overlay, shares, to_rgb
from xattn.viz.panel import Bar, Cell, Key, Note, Swatch, field_size, panel

if TYPE_CHECKING:
    from xattn.explainer import Explainer
    from xattn.explanation import Explanation


EVERY_CLASS = "the same for every class"
"""Stands where another map has its class."""


def title(method: Explainer) -> str:
    """A method's name for people, with the parameters that are not the default.

    The name is the `title` of the class, else what stands before the colon in the first line of its docstring, as in
    "LRP: …", else the registered name.
    """
    first, colon, _ = first_sentence(type(method)).partition(":")
    name = method.title or (first.split(",")[0] if colon and first else method.name)
    settings = ", ".join(f"{key}={value}" for key, value in changed(method).items())
    return f"{name} ({settings})" if settings else name


FINE = "maps as fine as pixels: smoothed, the highest 1-2 % clipped"
"""How pictures differ from such maps."""


def _signed(explanation: Explanation, signed: str) -> str:
    """`"yes"` or `"no"`, by the method where neither is asked for, so that it has the same colours on every image."""
    return signed if signed != "auto" else "yes" if explanation.method.signed else "no"


def ranked(explanation: Explanation) -> bool:
    """Whether an explanation is shown in rank colours."""
    return explanation.parts is not None and bool(getattr(explanation.method, "rank_colors", False))


def pictures_of(explanation: Explanation, bands: Sequence[int] = ()) -> list[Image.Image]:
    """The images of an explanation, in these bands if any; plain pale fields where it holds none, as from a file.

    Where it was made of photographs they have the resolution of these.
    """
    if explanation.photographs and not bands:
        return [picture_of(explanation, i) for i in range(len(explanation))]
    if bands:
        explanation = dataclasses.replace(explanation, bands=tuple(bands))
    try:
        return [to_rgb(image) for image in explanation.images]
    except DataError:
        high, wide = explanation.input_size
        return [Image.new("RGB", (wide, high), (200, 200, 200)) for _ in explanation.status]


def picture_of(explanation: Explanation, index: int, bands: Sequence[int] = ()) -> Image.Image:
    """One of `pictures_of`; of photographs only this one is read."""
    if explanation.photographs and not bands and explanation.spec is not None:
        try:
            (photograph,) = pictures([explanation.photographs[index]])
            if _is_of(explanation, index, photograph):
                return view_of(photograph, explanation.spec, explanation.fit, sharp=True)
        except (DataError, OSError):  # the file is gone
            pass
        explanation = dataclasses.replace(explanation, photographs=())
    return pictures_of(explanation, bands)[index]


def _is_of(explanation: Explanation, index: int, photograph: Image.Image) -> bool:
    """Whether a photograph still is what was explained: a file may be another by now, and so may an array."""
    if explanation.inputs is None or explanation.spec is None:
        return True
    known = explanation.inputs[index].cpu().float()
    again = preprocess(photograph, explanation.spec, fit=explanation.fit)
    return again.shape == known.shape and torch.allclose(again, known, rtol=0, atol=0.05)  # bfloat16 has three digits


def render(
    explanation: Explanation,
    index: int = 0,
    *,
    image: ImageLike | None = None,
    colormap: str = COLORMAP,
    alpha: float | None = None,
    upsample: str = "bilinear",
    signed: str = "auto",
    size: int | tuple[int, int] | None = None,
    legend: bool = False,
    bands: Sequence[int] = (),
) -> Image.Image:
    """An explanation over its image: rank colours for BR-NPA parts, a colour map for all else.

    Of a volume it draws the middle slices across depth, height and width, side by side.

    Args:
        explanation: of a batch.
        index: which image of the batch.
        image: drawn instead of the image that the explanation holds, such as the same view with more pixels.
        colormap: of single maps.
        alpha: opacity of the map; by default 0.8 for rank colours and 0.5 else.
        upsample: `"bilinear"` by default; `"nearest"` shows the cells.
        signed: whether maps are shown around zero: `"auto"` as the method says, `"yes"`, `"no"`.
        size: longer side, or height and width, in pixels; by default that of the image, but at least 448.
        legend: put the method above the picture, below it the class, its probability and what the colours mean.
        bands: the three channels of the image that are drawn, or one in grey; by default those of the explanation.

    Raises:
        ParameterError: if there is no such image or an option is out of range.
    """
    _check_index(explanation, index)
    if explanation.maps.ndim == 5:
        if signed == "auto":  # the same for all slices
            signed = "yes" if bool((explanation.maps[index] < 0).any()) else "no"
        options = {"colormap": colormap, "alpha": alpha, "upsample": upsample, "signed": signed, "size": size}
        cut = [render(part, index, legend=legend, bands=bands, **options) for part in explanation.slices()]  # type: ignore[arg-type]
        return _beside(cut)
    base = picture_of(explanation, index, bands) if image is None else to_rgb(image)
    shape = _shape(base, size)
    status = explanation.status[index]
    if ranked(explanation) and explanation.parts is not None:
        shown = rank_overlay(
            base,
            explanation.parts[index],
            alpha=0.8 if alpha is None else alpha,
            upsample=upsample,
            status=status,
            size=shape,
        )
    else:
        shown = overlay(
            base,
            explanation.maps[index, 0],
            colormap=colormap,
            alpha=0.5 if alpha is None else alpha,
            upsample=upsample,
            signed=_signed(explanation, signed),
            status=status,
            size=shape,
        )
    if not legend:
        return shown
    key = part_key(explanation, index)
    keys = [] if key else keys_of([explanation], colormap=colormap, signed=signed)
    words = _class_and_probability(explanation, index) if explanation.method.class_specific else (EVERY_CLASS, "")
    cell = Cell(shown, *words, key=key)
    return panel([[cell]], [title(explanation.method)], legend=keys, cell=max(1, round(max(shape) / 2)), scale=2)


def part_key(explanation: Explanation, index: int, *, share: bool = True) -> tuple[Swatch, ...]:
    """Colour, rank and share in the activation of each part; empty for maps without rank colours."""
    if not ranked(explanation) or explanation.parts is None:
        return ()
    levels = shares(explanation.parts[index])
    texts = [
        ordinal(r) + (f" {v:.0%}".replace("%", " %") if share and math.isfinite(v) else "")
        for r, v in enumerate(levels)
    ]
    return tuple(Swatch(rank_color(rank), text) for rank, text in enumerate(texts))


def keys_of(
    explanations: Sequence[Explanation | str],
    *,
    colormap: str = COLORMAP,
    signed: str = "auto",
) -> list[Key]:
    """What the colours of pictures mean: a bar for each kind of map that occurs, a swatch for each rank of parts.

    Args:
        explanations: all that a panel shows; texts, which stand for failures, are passed over.
        colormap: of single maps.
        signed: as for `render`.
    """
    real = [e for e in explanations if not isinstance(e, str)]
    single = [e for e in real if not ranked(e)]
    around_zero = [_signed(e, signed) == "yes" for e in single]
    keys: list[Key] = []
    if not all(around_zero):
        keys.append(Bar(colormap, "less important", "more important"))
    if any(around_zero):
        keys.append(Bar(DIVERGING, "against the class", "for the class"))
    if any(fine(e.maps) for e in single):
        keys.append(Note(FINE))
    parts = max((e.parts.shape[1] for e in real if ranked(e) and e.parts is not None), default=0)
    keys.extend(Swatch(rank_color(r), f"{ordinal(r)} part") for r in range(min(parts, 8)))
    return keys


def row(
    explanations: Sequence[Explanation | str],
    index: int = 0,
    *,
    image: ImageLike | Sequence[ImageLike] | None = None,
    caption: str | None = None,
    detail: str | None = None,
    size: int | tuple[int, int] | None = None,
    **options: Any,
) -> list[Cell]:
    """One row of a panel: the image, then one picture a method.

    The class and its probability stand below the image if all methods explain the same ones, else below each picture.
    A map that is the same for every class carries none.

    Args:
        explanations: one a method, of the same images; a text stands for a method that failed and says why.
        index: which image of the batch.
        image: drawn instead of the image that the explanations hold, one for all or one each.
        caption: below the image, instead of the class.
        detail: below the caption, instead of the probability.
        size: of the pictures, as for `render`; see `field_size`.
        options: of `render`.
    """
    real = [e for e in explanations if not isinstance(e, str)]
    if image is None:
        bases = [picture_of(real[0], index)] * len(explanations) if real else []
    else:
        given = image if isinstance(image, Sequence) else [image] * len(explanations)
        bases = [to_rgb(one) for one in given]
    shape = _shape(bases[0], size) if bases else (1, 1)
    captions = [("", "") if isinstance(e, str) else _class_and_probability(e, index) for e in explanations]
    about_class = [not isinstance(e, str) and e.method.class_specific for e in explanations]
    common = {words for words, told in zip(captions, about_class, strict=True) if told} or set(captions) - {("", "")}
    first = next(iter(common)) if len(common) == 1 else ("", "")
    cells = [
        Cell(
            to_rgb(bases[0], shape) if bases else None,
            first[0] if caption is None else caption,
            first[1] if detail is None else detail,
        )
    ]
    for j, entry in enumerate(explanations):
        if isinstance(entry, str):
            cells.append(Cell(note=entry))
            continue
        below = captions[j] if about_class[j] and len(common) > 1 else ("", "")
        shown = render(entry, index, image=bases[j], size=shape, **options)
        cells.append(Cell(shown, *below, key=part_key(entry, index)))
    return cells


def _beside(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures in a row, on white."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, (row.height - image.height) // 2))
        left += image.width + gap
    return row


def gallery(
    explanations: Sequence[Explanation | str],
    *,
    titles: Sequence[str] | None = None,
    images: Sequence[ImageLike] | None = None,
    limit: int | None = None,
    columns: int = 8,
    legend: bool = True,
    cell: int | None = None,
    scale: float | None = None,
    **options: Any,
) -> Image.Image:
    """A panel of explanations of the same images: the image, then one column a method; rows are images.

    Args:
        explanations: one a method; a text stands for a method that failed and says why.
        titles: of the methods, by default their names.
        images: drawn instead of the images that the explanations hold.
        limit: of rows.
        columns: more pictures of a single image than this go on below.
        legend: say below what the colours mean.
        cell: side of a picture in points, as for `panel`.
        scale: pixels per point, as for `panel`.
        options: of `render`.

    Raises:
        ShapeError: if the explanations are of different numbers of images.
    """
    real = [e for e in explanations if not isinstance(e, str)]
    counts = {len(e.maps) for e in real}
    if len(counts) != 1:
        raise ShapeError(f"gallery: explanations are of {sorted(counts)} images; pass some of the same batch.")
    if images is not None and len(images) != len(real[0].maps):
        raise ShapeError(f"gallery: {len(images)} images do not fit {len(real[0].maps)} maps.")
    bases = pictures_of(real[0]) if images is None else [to_rgb(image) for image in images]
    count = min(len(bases), len(bases) if limit is None else limit)
    total = 1 + len(explanations)
    lines = math.ceil(total / max(columns, 1)) if count == 1 else count
    across = math.ceil(total / lines) if count == 1 else total  # lines of one image are equally long
    if cell is None or scale is None:
        size = max(field_size(lines, across, (bases[0].height, bases[0].width)))
    else:
        size = max(1, round(cell * scale))
    rows = [row(explanations, i, image=bases[i], size=size, **options) for i in range(count)]
    heads = ["Image", *(titles or ["" if isinstance(e, str) else title(e.method) for e in explanations])]
    if len(heads) != 1 + len(explanations):
        raise ShapeError(f"gallery: {len(heads) - 1} titles do not fit {len(explanations)} explanations.")
    if lines > count:
        named = [dataclasses.replace(c, title=head) for c, head in zip(rows[0], heads, strict=True)]
        named += [Cell()] * (lines * across - total)
        rows, heads = [named[i : i + across] for i in range(0, len(named), across)], []
    shown = {name: options[name] for name in ("colormap", "signed") if name in options}
    keys = keys_of(real, **shown) if legend else []
    return panel(rows, heads, legend=keys, cell=cell, scale=scale)


def part_strip(
    explanation: Explanation,
    index: int = 0,
    *,
    image: ImageLike | None = None,
    alpha: float = 0.8,
    upsample: str = "bilinear",
) -> Image.Image:
    """The image, all parts together, then each part by itself in the colour of its rank, on one scale.

    Args:
        explanation: with parts.
        index: which image of the batch.
        image: drawn instead of the image that the explanation holds.
        alpha: share of the colour.
        upsample: as for `rank_overlay`.

    Raises:
        ParameterError: if the explanation has no parts.
    """
    _check_index(explanation, index)
    if explanation.parts is None:
        raise ParameterError(f"part_strip: {explanation.method.name} has no parts; use render().")
    base = picture_of(explanation, index) if image is None else to_rgb(image)
    parts = explanation.parts[index]
    shape = field_size(1, len(parts) + 2, (base.height, base.width))
    base = to_rgb(base, shape)
    how: dict[str, Any] = {"alpha": alpha, "upsample": upsample}
    caption, detail = _class_and_probability(explanation, index)
    cells = [
        Cell(base, caption, detail),
        Cell(rank_overlay(base, parts, status=explanation.status[index], **how)),
    ]
    for rank, level in enumerate(shares(parts)):
        text = f"{100 * level:.0f} % of the activation" if math.isfinite(level) else ""
        cells.append(Cell(rank_overlay(base, parts, only=rank, **how), text))
    return panel([cells], ["Image", "All parts", *(f"{ordinal(r)} part" for r in range(len(parts)))])


def _check_index(explanation: Explanation, index: int) -> None:
    count = len(explanation.maps)
    if not -count <= index < count:
        raise ParameterError(f"render: there is no image {index}; the explanation has images 0 to {count - 1}.")


def _shape(base: Image.Image, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a picture."""
    if isinstance(size, tuple):
        return size
    longer = max(base.size)
    if size is not None and size < 1:
        raise ParameterError(f"render: size must be at least 1 but is {size}.")
    factor = (size or max(longer, 448)) / longer
    return max(1, round(base.height * factor)), max(1, round(base.width * factor))


def _class_and_probability(explanation: Explanation, index: int) -> tuple[str, str]:
    """Class and probability of an image, in words."""
    probability, original = explanation.probability, explanation.original
    text = "" if probability is None else percent(float(probability[index]))
    if original is not None:
        text += f" ({percent(float(original[index]))} by the network itself)"
    return explanation.short_name(index), text


def percent(share: float) -> str:
    """A probability for people, which is never called certain.

    >>> percent(0.9831), percent(0.99996), percent(0.00002)
    ('98.3 %', '> 99.9 %', '< 0.1 %')
    """
    if not np.isfinite(share):
        return "undefined"
    if share >= 0.9995:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"
