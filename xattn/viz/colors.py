"""Colours: perceptually even colour maps, a diverging one for signed maps, and the colours of ranked parts."""

from __future__ import annotations

import base64
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.errors import unknown
from xattn.looks import RANKS
from xattn.viz._tables import TABLES

Floats = NDArray[np.float64]

DIVERGING = "blue-red"
"""Name of the colour map for signed maps: blue below zero, red above."""


def _linear(srgb: Floats) -> Floats:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _srgb(linear: Floats) -> Floats:
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _diverging() -> Floats:
    """Two straight lines in linear light from a pale middle, equal in lightness on both sides, to blue and to red."""
    middle = np.array([0.96, 0.95, 0.93])
    halves = []
    for end in (np.array([0.08, 0.37, 0.95]), np.array([0.86, 0.08, 0.10])):
        t = np.linspace(0, 1, 128)[:, None] ** 0.8
        halves.append(_srgb((1 - t) * _linear(middle) + t * _linear(end)))
    return np.concatenate([halves[0][::-1], halves[1]])


def colormap_names() -> list[str]:
    """The colour maps that need no matplotlib; each also exists reversed, with `_r` behind its name."""
    return [*TABLES, "grey", DIVERGING]


@functools.cache
def colormap(name: str) -> Floats:
    """The colours (256, 3) of a colour map, in [0, 1].

    >>> colormap("grey")[[0, 255]].tolist()
    [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]

    Args:
        name: one of `colormap_names()`, or any name that matplotlib knows where it is installed.

    Raises:
        UnknownNameError: with the nearest known name.
    """
    key = name.strip().lower()
    base = key.removesuffix("_r")
    if base in TABLES:
        table = np.frombuffer(base64.b64decode(TABLES[base]), dtype=np.uint8).reshape(256, 3) / 255.0
    elif base in ("grey", "gray"):
        table = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
    elif base == DIVERGING:
        table = _diverging()
    else:
        return _from_matplotlib(name)
    return table[::-1] if key.endswith("_r") else table


def _from_matplotlib(name: str) -> Floats:
    known = colormap_names()
    try:
        from matplotlib import colormaps
    except ImportError:
        raise unknown("colour map", name, known) from None
    colors: Any = next((colormaps[m] for m in colormaps if m.lower() == name.strip().lower()), None)
    if colors is None:
        raise unknown("colour map", name, [*known, *(m for m in colormaps if m not in known)])
    return np.asarray(colors(np.linspace(0, 1, 256)), dtype=np.float64)[:, :3]


def colorize(values: Floats, name: str) -> Floats:
    """Values (...) in [0, 1] as colours (..., 3) in [0, 1]; between two entries of the table the colour is mixed."""
    table = colormap(name)
    position = np.clip(np.nan_to_num(values), 0, 1) * (len(table) - 1)
    low = np.minimum(position.astype(np.int64), len(table) - 2)
    share = (position - low)[..., None]
    return (1 - share) * table[low] + share * table[low + 1]


def rank_color(rank: int) -> tuple[int, int, int]:
    """The colour of the part of a rank, which counts from 0."""
    return list(RANKS.values())[rank % len(RANKS)]


def ordinal(rank: int) -> str:
    """A rank, which counts from 0, in words.

    >>> [ordinal(r) for r in (0, 1, 2, 3, 10, 20)]
    ['1st', '2nd', '3rd', '4th', '11th', '21st']
    """
    n = rank + 1
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
