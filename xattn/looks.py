"""How things look wherever they are shown: the default colour map, the ranks of parts, the families of methods."""

from __future__ import annotations

from dataclasses import dataclass

COLORMAP = "plasma"
"""Of single maps, unless another one is asked for."""

RANKS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 230, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 220, 255),
    "orange": (255, 120, 0),
    "violet": (150, 90, 255),
}
"""Colours of the parts by rank: red, green, blue as in BR-NPA (Gomez et al. 2022), then further ones; they repeat."""


@dataclass(frozen=True)
class Look:
    """Colours and mark of a family in charts: those of Okabe and Ito, which the colour-blind can tell apart.

    Args:
        color: in files.
        light: on a light page.
        dark: on a dark page.
        marker: shape of the mark, as matplotlib calls it.
    """

    color: str
    light: str
    dark: str
    marker: str


FAMILIES = {
    "CAM": Look("#0072B2", "#0072b2", "#4ba8e0", "o"),
    "activation": Look("#56B4E9", "#3a9bd9", "#8fd0f7", "s"),
    "gradient": Look("#E69F00", "#d08a00", "#f0b13c", "^"),
    "propagation": Look("#009E73", "#00855f", "#37c49c", "v"),
    "attention": Look("#D55E00", "#d55e00", "#ff8b3d", "D"),
    "perturbation": Look("#CC79A7", "#b85c95", "#e79cc8", "P"),
    "control": Look("#777777", "#83868c", "#8d9198", "X"),
    "other": Look("#000000", "#1f2126", "#ecebe8", "*"),
}
"""By the value of `Family`; `other` for methods that are not known here."""
