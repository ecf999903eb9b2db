"""Groups of images that have as much of one colour, as a sticker, an ink or a frame gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xattn.audit.evidence import Evidence
from xattn.audit.group import Group, Member, Prototype
from xattn.audit.settings import AuditSettings
from xattn.functional.colours import LEVELS, near_colour
from xattn.functional.grid import resample
from xattn.functional.pixels import denormalize_pixels
from xattn.spec import ModelSpec

GRID = 16
"""Rows and columns of the cells in which a colour is replaced."""

_LEAST = 0.004  # of the pixels
_APART = 0.65  # of the usual share, by which members and others have to be apart to make a group
_MOST = 3  # groups of a class
_PART = 0.25  # of a cell that has to be of the colour for the cell to be replaced
_TENTH = 0.1


def find_colours(evidence: Evidence, settings: AuditSettings) -> list[Prototype]:
    """Colours of which some images of a class have about as much, and the others none.

    For each colour the images are ordered by how much they have of it, and cut where nine in ten of those above and
    nine in ten of those below are furthest apart, in units of the median of those above.

    Args:
        evidence: of the images that find groups.
        settings: how small a group may be.
    """
    shares = evidence.colours.astype(np.float64)
    smallest, n = max(settings.smallest, round(0.03 * len(shares))), len(shares)
    found: list[tuple[float, int, float, float]] = []
    for colour in np.flatnonzero((shares >= _LEAST).sum(0) >= smallest).tolist():
        ordered = -np.sort(-shares[:, colour])
        for count in range(smallest, n - 1):
            if ordered[count - 1] < _LEAST:
                break
            above, below = ordered[:count], ordered[count:]
            usual = float(np.median(above))
            ends = float(np.quantile(above, _TENTH)), float(np.quantile(below, 1 - _TENTH))
            found.append(((ends[0] - ends[1]) / usual, colour, usual, (ends[0] + ends[1]) / 2))
    best: dict[int, tuple[float, int, float, float]] = {}
    for one in found:
        if one[0] > _APART and one[0] > best.get(one[1], (0.0,))[0]:
            best[one[1]] = one
    prototypes = []
    for _, colour, usual, cut in sorted(best.values(), reverse=True)[: 4 * _MOST]:
        centre = np.array([float(colour), usual])
        prototypes.append(Prototype("colour", centre, min(cut / usual, 1.0)))
    return prototypes


def colour_in_words(colour: int) -> str:
    """A colour as red, green and blue from 0 to 255.

    >>> colour_in_words(511)
    'rgb(255, 255, 255)'
    """
    steps = [colour // LEVELS**2, colour // LEVELS % LEVELS, colour % LEVELS]
    return f"rgb({', '.join(str(round(255 * s / (LEVELS - 1))) for s in steps)})"


def pixels_of(x: Tensor, spec: ModelSpec) -> Tensor:
    """Inputs (N, C, H, W) of a network as pixels from 0 to 1."""
    return denormalize_pixels(x, spec.mean, spec.std).clamp(0, 1)


def cells_of_colour(x: Tensor, colour: int, spec: ModelSpec) -> NDArray[np.bool_]:
    """The cells (N, 16, 16) that hold enough of a colour; the one with the most where none does."""
    grid = min(GRID, x.shape[2]), min(GRID, x.shape[3])
    level = resample(near_colour(pixels_of(x, spec), colour)[:, None].float(), grid)[:, 0]
    most = level.flatten(1).amax(1)[:, None, None]
    return np.asarray(((level >= _PART) | ((level >= most) & (most < _PART))).cpu().numpy(), np.bool_)


def with_cells(group: Group, members: Sequence[Member], cells: NDArray[np.bool_]) -> Group:
    """The group with the cells of those of its members that could be read."""
    own = {m.index: c for m, c in zip(members, cells, strict=True)}
    kept = tuple(replace(m, cells=own[m.index]) for m in group.members if m.index in own)
    place = np.mean([m.cells / max(m.cells.sum(), 1) for m in kept], axis=0)
    return replace(group, members=kept, place=np.asarray(place / place.sum(), np.float64))
