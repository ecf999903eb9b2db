"""The page that shows methods side by side: a row an image, a column a method, everything inside one file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xattn.errors import DataError, ShapeError, printable
from xattn.explainer import Family
from xattn.explanation import OK
from xattn.functional.curves import trapezoid_auc
from xattn.functional.resize import normalize, resize
from xattn.looks import COLORMAP, RANKS
from xattn.pages.html import Spool, color_table, data_uri, picture_uri, write
from xattn.registry import first_sentence, paper_of
from xattn.statuses import told
from xattn.viz import DIVERGING, percent, shares, title, to_rgb
from xattn.viz.overlay import STATUS_TEXT, fine, levels
from xattn.viz.render import FINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xattn.explainer import Explainer
    from xattn.explanation import Explanation
    from xattn.metrics.perturbation import Curve

_PICTURE_PX = 448  # longer side of a photograph
_RAW_CELLS = 4096  # maps of more cells are stored as pictures
_MAP_PX = 224  # longer side of a map, at most
_PARTS = len(RANKS)  # with colours of their own; more are not stored
_MAP_QUALITY = 85

Pair = tuple[Tensor, Tensor]
"""Deletion and insertion scores (S + 1,) of one map, NaN where it orders nothing."""


@dataclass(frozen=True)
class Column:
    """A method as the page knows it.

    Args:
        method: the explainer.
        network: name of the model that it explains; told where it is not empty.
    """

    method: Explainer
    network: str = ""


@dataclass
class Comparison:
    """A page in the making: rows are added as they are computed, and only what the page needs of them is kept.

    Args:
        columns: one a method; controls belong at the end.
        heading: of the page.
        facts: short texts below the heading.
        colormap: of maps that are not signed.
        alpha: opacity of maps at the beginning; None is that of `xattn.viz.overlay`.
        shares: share of the pixels (S + 1,) at each point of the curves; empty without curves.
        warnings: told at the top of the page.
        notes: told at its end.
    """

    columns: Sequence[Column]
    heading: str = "Saliency maps side by side"
    facts: Sequence[str] = ()
    colormap: str = COLORMAP
    alpha: float | None = None
    shares: Sequence[float] = ()
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blocks: Spool = field(default_factory=Spool)  # on the disk, so that memory does not grow with the images
    _most: int = 0  # classes of an image
    _signed: list[bool] = field(init=False)
    _parts: list[int] = field(init=False)
    _curves: list[tuple[int, Pair] | None] = field(init=False)  # how many, and their sums
    _left_out: set[int] = field(default_factory=set)
    _fine: bool = False  # some map is smoothed

    def __post_init__(self) -> None:
        self._signed = [False] * len(self.columns)
        self._parts = [0] * len(self.columns)
        self._curves = [None] * len(self.columns)

    def add(
        self,
        file: str,
        picture: Image.Image | Sequence[Image.Image],
        lines: Sequence[Sequence[Explanation | str]],
        index: int = 0,
        *,
        predicted: Mapping[str, Mapping[str, Any]] | None = None,
        curves: Sequence[Sequence[Pair | None]] | None = None,
        label: str = "",
    ) -> None:
        """Add an image.

        Args:
            file: its path, whose last part is shown.
            picture: what the model sees of it, so that maps fit it exactly; of several networks one a column.
            lines: for each class that is explained, one explanation a column; a text says why there is none.
            index: of the image in the batch of the explanations.
            predicted: `class` and `probability` by name of the network, and whether it is `right` where that is known.
            curves: of each explanation, in the same order.
            label: what the image is said to show.

        Raises:
            ShapeError: if a line does not have one entry a column.
        """
        for line in lines:
            if len(line) != len(self.columns):
                raise ShapeError(f"comparison: {len(line)} explanations do not fit {len(self.columns)} columns.")
        pictures = [picture] * len(self.columns) if isinstance(picture, Image.Image) else picture
        photo = _small(pictures[0])
        others: dict[int, str] = {}
        for one in pictures:
            if id(one) not in others and one.tobytes() != pictures[0].tobytes():
                others[id(one)] = picture_uri(_small(one))
        stored = list(dict.fromkeys(others.values()))  # each once, whatever the columns and classes
        photos = [stored.index(others[id(one)]) if id(one) in others else None for one in pictures]
        black, white = np.percentile(np.asarray(photo.convert("L")) / 255, (1, 99))
        self._most = max(self._most, len(lines))
        self.blocks.append(
            {
                "file": printable(PurePath(file).name or file),
                "path": printable(file),
                "label": printable(label),
                "photo": picture_uri(photo),
                "photos": stored,
                "size": photo.size,
                **_stretch(float(black), float(white)),
                "predicted": [
                    {
                        "network": name,
                        "class": guess["class"],
                        "probability": _share(guess["probability"]),
                        "right": guess.get("right"),
                    }
                    for name, guess in (predicted or {}).items()
                ],
                "lines": [
                    self._line(line, index, curves[k] if curves else [None] * len(line), photos)
                    for k, line in enumerate(lines)
                ],
            }
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Raises:
            DataError: if there is no row, or the file cannot be written.
        """
        kept = [j for j in range(len(self.columns)) if j not in self._left_out]
        if not self.blocks.count or not kept:
            raise DataError(f"comparison: there is no {'method' if self.blocks.count else 'image'} to show.")
        return write(
            path,
            "compare.html.j2",
            heading=self.heading,
            facts=list(self.facts),
            warnings=self.warnings,
            columns=[self._about(j) for j in kept],
            blocks=({**block, "lines": [_only(line, kept) for line in block["lines"]]} for block in self.blocks),
            digest=self.blocks.digest,
            count=self.blocks.count,
            notes=[*self.notes, *([f"{FINE[0].upper()}{FINE[1:]}."] if self._fine else [])],
            most=self._most,
            parts=max(self._parts[j] for j in kept),
            ranks=any(self.columns[j].method.rank_colors for j in kept),
            signed=any(self._signed[j] for j in kept),
            plain=any(not self._signed[j] for j in kept),
            settings={
                "alpha": 0.5 if self.alpha is None else self.alpha,
                "by_method": self.alpha is None,
                "tables": {"plain": color_table(self.colormap), "signed": color_table(DIVERGING)},
                "ranks": list(RANKS.values()),
                "shares": list(self.shares),
                "classes": self._most,
            },
        )

    def leave_out(self, j: int, reason: str) -> None:
        """Give a method no column, because it is not defined for the model; the reason stands at the end."""
        self._left_out.add(j)
        self.notes.append(f"Left out: {reason}")

    def _about(self, j: int) -> dict[str, Any]:
        """What the page says of a method."""
        column = self.columns[j]
        method = column.method
        about: dict[str, Any] = {
            "title": title(method),
            "what": first_sentence(type(method)),
            "paper": "" if (paper := paper_of(type(method))) == "control" else paper,
            "link": _link(paper),
            "cost": method.passes,
            "control": method.family is Family.CONTROL,
            "specific": method.class_specific,
            "signed": self._signed[j],
            "network": column.network,
        }
        if (sums := self._curves[j]) is not None:
            count, (deletion, insertion) = sums
            about["mean"] = _curves_of((deletion / count, insertion / count), self.shares)
            about["images"] = count
        return about

    def _line(
        self,
        line: Sequence[Explanation | str],
        index: int,
        curves: Sequence[Pair | None],
        photos: Sequence[int | None],
    ) -> dict[str, Any]:
        """One class of an image: its name, its probability and a cell for each column."""
        real = [e for e in line if not isinstance(e, str)]
        first = next((e for e in real if e.method.class_specific), real[0] if real else None)
        name, probability = ("", "") if first is None else (first.class_name(index), _probability(first, index))
        cells = [self._cell(j, entry, index, curves[j]) for j, entry in enumerate(line)]
        for cell, entry, photo in zip(cells, line, photos, strict=True):
            if photo is not None:  # another network sees another part of the photograph
                cell["photo"] = photo
            if isinstance(entry, str) or not entry.method.class_specific:
                continue
            # Of several networks each gives the class a probability of its own, or explains another one.
            if (own := _probability(entry, index)) != probability:
                cell["probability"] = own
            if (other := entry.class_name(index)) != name:
                cell["class"] = other
        return {"class": name, "probability": probability, "cells": cells}

    def _cell(self, j: int, entry: Explanation | str, index: int, curves: Pair | None) -> dict[str, Any]:
        if isinstance(entry, str):
            return {"note": entry}
        around_zero = "yes" if entry.method.signed else "no"
        values, signed, status = levels(entry.maps[index, 0], signed=around_zero, status=entry.status[index])
        cell: dict[str, Any] = {}
        if status != OK:
            cell["status"] = STATUS_TEXT.get(status, status)
            cell["told"] = entry.told(index) if entry.status[index] == status else told(status)
        if values is not None:
            cell["map"] = stored_map(values[0, 0], signed=signed)
            self._signed[j] |= signed
            self._fine |= fine(entry.maps)
        if entry.parts is not None and values is not None:
            cell["parts"] = stored_parts(entry.parts[index], ranked=entry.method.rank_colors)
            self._parts[j] = max(self._parts[j], len(cell["parts"]["maps"]))
        if curves is not None:
            cell["curves"] = _curves_of(curves, self.shares)
            if not any(c.isnan().any() for c in curves):
                count, (deletion, insertion) = self._curves[j] or (0, (torch.zeros(()), torch.zeros(())))
                self._curves[j] = count + 1, (deletion + curves[0].double(), insertion + curves[1].double())
        return cell


def compare_page(
    explanations: Sequence[Explanation],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    heading: str = "Saliency maps side by side",
) -> Path:
    """A page of explanations of one batch, for scripts and notebooks: a row an image, a column an explanation.

    Args:
        explanations: of the same images, holding them, as `xattn.explain` returns them.
        path: of the page.
        names: of the images; their numbers by default.
        heading: of the page.

    Raises:
        ShapeError: if they are of different numbers of images, or there are not as many names.
    """
    counts = {len(e) for e in explanations}
    if len(counts) != 1:
        raise ShapeError(f"compare_page: explanations are of {sorted(counts)} images; pass some of the same batch.")
    (count,) = counts
    if names is not None and len(names) != count:
        raise ShapeError(f"compare_page: {len(names)} names do not fit {count} images.")
    network = next((e.spec.name for e in explanations if e.spec is not None), "")
    page = Comparison([Column(e.method, network) for e in explanations], heading)
    images = explanations[0].images.numpy()
    for i in range(count):
        page.add(f"image {i}" if names is None else names[i], to_rgb(images[i]), [explanations], i)
    return page.write(path)


def _small(picture: Image.Image) -> Image.Image:
    """A picture of the size of the page."""
    photo = to_rgb(picture).copy()
    photo.thumbnail((_PICTURE_PX, _PICTURE_PX), Image.Resampling.LANCZOS)
    return photo


def _only(line: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A line with the cells of these columns."""
    return {**line, "cells": [line["cells"][j] for j in kept]}


def _share(probability: float | None) -> str:
    return "" if probability is None else percent(probability)


def _probability(explanation: Explanation, index: int) -> str:
    """Probability of the class that is explained, in words; empty where it is not known."""
    return "" if explanation.probability is None else percent(float(explanation.probability[index]))


def pair_of(deletion: Curve, insertion: Curve, index: int) -> Pair:
    """Both curves of an image, NaN where its map orders nothing."""
    removed, restored = (torch.where(c.undefined[index], torch.nan, c.scores[index]) for c in (deletion, insertion))
    return removed.cpu(), restored.cpu()


def _curves_of(both: Pair, shares: Sequence[float]) -> dict[str, Any]:
    """Curves in thousandths with their areas; nothing where they are not defined."""
    x = torch.tensor(shares, dtype=torch.float64)
    curves: dict[str, Any] = {}
    for key, scores in zip(("deletion", "insertion"), both, strict=True):
        area = float(trapezoid_auc(scores[None], x)[0])
        if math.isfinite(area):
            curves[key] = [round(1000 * v) for v in scores.tolist()]
            curves[f"{key}_area"] = round(area, 3)
    return curves


def stored_map(values: Tensor, *, signed: bool) -> dict[str, Any]:
    """A map (h, w) on the scale of its colours as one byte a cell.

    Coarse maps are stored as they are, row by row; fine ones and those with gaps as a picture, clear at the gaps.

    Args:
        values: in [0, 1], or in [-1, 1] if `signed`; NaN is a gap.
        signed: 128 is zero.
    """
    h, w = values.shape
    if max(h, w) > _MAP_PX:
        factor = _MAP_PX / max(h, w)
        size = max(1, round(h * factor)), max(1, round(w * factor))
        values = resize(values[None, None], size, antialias=True)[0, 0]
    gaps = values.isnan()
    filled = values.nan_to_num().double()
    codes = (128 + 127 * filled.clamp(-1, 1) if signed else 255 * filled.clamp(0, 1)).round().byte().cpu().numpy()
    stored: dict[str, Any] = {"h": values.shape[0], "w": values.shape[1], "signed": signed}
    if bool(gaps.any()):
        present = np.where(gaps.cpu().numpy(), 0, 255).astype(np.uint8)
        stored["src"] = _lossless(np.stack([codes, codes, codes, present], axis=2))
    elif codes.size > _RAW_CELLS:
        stored["src"] = picture_uri(Image.fromarray(codes), quality=_MAP_QUALITY)
    else:
        stored["raw"] = _base64(codes)
    return stored


def stored_parts(parts: Tensor, *, ranked: bool) -> dict[str, Any]:
    """Parts (P, h, w) by rank, one byte a cell on one scale, with the share of each in the activation.

    Args:
        parts: of one image.
        ranked: they come by rank; else they are ranked here, by their share.
    """
    amount = shares(parts)
    order = list(range(len(parts)))
    if not ranked:
        order.sort(key=lambda p: -amount[p] if math.isfinite(amount[p]) else 0.0)
    kept = order[:_PARTS]
    if max(parts.shape[1:]) > _MAP_PX:
        factor = _MAP_PX / max(parts.shape[1:])
        parts = resize(parts[None], (round(parts.shape[1] * factor), round(parts.shape[2] * factor)), antialias=True)[0]
    codes = (255 * normalize(parts[None])[0].double()).round().byte().cpu().numpy()
    return {
        "h": parts.shape[1],
        "w": parts.shape[2],
        "maps": [_base64(codes[p]) for p in kept],
        "shares": [round(amount[p], 4) if math.isfinite(amount[p]) else None for p in kept],
        "of": len(parts),
    }


def _base64(codes: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(codes).tobytes()).decode("ascii")


def _lossless(pixels: NDArray[np.uint8]) -> str:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def _stretch(black: float, white: float) -> dict[str, float]:
    """Brightness and contrast, as CSS filters, that take grey from [black, white] to [0, 1]."""
    span = max(white - black, 0.05)
    contrast = 1 + 2 * black / span
    return {"contrast": round(contrast, 3), "brightness": round(1 / (span * contrast), 3)}


def _link(paper: str) -> str:
    """Where a paper is on the web, if its reference says so.

    >>> _link("Petsiuk et al. 2018, arXiv:1806.07421"), _link("control")
    ('https://arxiv.org/abs/1806.07421', '')
    """
    if match := re.search(r"arXiv:\s*([0-9]{4}\.[0-9]{4,5})", paper):
        return f"https://arxiv.org/abs/{match[1]}"
    if match := re.search(r"\b(10\.\d{4,9}/[^\s,;]+)", paper):
        return f"https://doi.org/{match[1]}"
    return ""
