"""Pictures: overlays, galleries of methods and images, legends. numpy and Pillow draw them."""

from __future__ import annotations

from xattn.viz.colors import DIVERGING, colorize, colormap, colormap_names, ordinal, rank_color
from xattn.viz.files import save
from xattn.viz.overlay import overlay, rank_overlay, shares, to_rgb
from xattn.viz.panel import Bar, Cell, Key, Note, Swatch, field_size, panel
from xattn.viz.render import gallery, keys_of, part_key, part_strip, percent, render, row, title

__all__ = [
    "DIVERGING",
    "Bar",
    "Cell",
    "Key",
    "Note",
    "Swatch",
    "colorize",
    "colormap",
    "colormap_names",
    "field_size",
    "gallery",
    "keys_of",
    "ordinal",
    "overlay",
    "panel",
    "part_key",
    "part_strip",
    "percent",
    "rank_color",
    "rank_overlay",
    "render",
    "row",
    "save",
    "shares",
    "title",
    "to_rgb",
]
