"""Charts of a panel, each drawn on its axes once: for files, where several share a figure, and for the page.

What a reader may point at has a hook, an id such as `point-3` with the place of the entry; texts that explain it are
returned by these ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import LogLocator, NullLocator

from xattn.benchmark.answers import order
from xattn.benchmark.panels import Panel, Summary
from xattn.benchmark.statistics import critical_difference
from xattn.benchmark.tables import interval_text, text_of
from xattn.benchmark.verdict import duration
from xattn.functional.statistics import ALPHA, Array
from xattn.labels import Label
from xattn.looks import FAMILIES
from xattn.metric import LOWER

Tips = dict[str, str]
Looks = dict[int, tuple[str, Any, str]]
"""Colour, line and mark of entries."""
INSIDE: Any = {"ha": "center", "va": "center", "fontsize": 6, "in_layout": False}
"""Texts of cells, which fit."""


def hook(artists: Iterable[Artist], name: str) -> None:
    """Let a page find artists by an id."""
    for artist in artists:
        artist.set_gid(name)


def style(panel: Panel, j: int) -> tuple[str, str]:
    """Colour and mark of an entry."""
    look = FAMILIES[family_of(panel, j)]
    return look.color, look.marker


def family_of(panel: Panel, j: int) -> str:
    """Name of the family of an entry; `other` for a method that is not known here."""
    family = panel.entries[j].family
    return "other" if family is None else family.value


def italic_controls(axis: Axes, panel: Panel, order: Sequence[int]) -> None:
    """Names of entries to the left, those of controls in italics."""
    for label, j in zip(axis.get_yticklabels(), order, strict=True):
        hook([label], f"name-{j}")
        if panel.entries[j].control:
            label.set_fontstyle("italic")
            label.set_color("#555555")


def names_above(axis: Axes, names: Sequence[str]) -> None:
    """Names of columns above a square."""
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(names)), names, rotation=60, ha="left", rotation_mode="anchor")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


@lru_cache(maxsize=4)
def order_of(panel: Panel) -> tuple[int, ...]:
    """Entries in the order of the report, found once for all charts of a panel."""
    return tuple(order(panel))


def pairs(axis: Axes, panel: Panel, s: Summary) -> tuple[ScalarMappable, Tips]:
    """Upper triangular dot matrix of pairwise tests (after fig. 6 of Gomez et al. 2022, arXiv:2106.02566)."""
    order = [*order_of(panel)]
    m = len(order)
    square = np.ix_(order, order)
    adjusted, difference = s.pairs.adjusted[square], s.pairs.difference[square]
    x, y = np.meshgrid(range(m), range(m))
    upper = (x > y) & ~np.isnan(adjusted)
    differs = adjusted < ALPHA
    size = np.abs(difference)
    norm = Normalize(0, float(size[upper].max(initial=1e-12)))
    dots = axis.scatter(
        x[upper], y[upper], s=np.where(differs, 55, 8)[upper], c=size[upper], cmap="viridis", norm=norm,
        edgecolors="none",
    )  # fmt: skip
    hook([dots], "pairs")
    names = [panel.labels[j] for j in order]
    axis.set_xticks(range(1, m), names[1:], rotation=60, ha="left", rotation_mode="anchor", fontsize=7)
    axis.xaxis.tick_top()
    axis.set_yticks(range(m - 1), names[:-1], fontsize=7)
    italic_controls(axis, panel, order[:-1])
    axis.set_xlim(0.4, m - 0.4)
    axis.set_ylim(m - 1.4, -0.6)
    axis.set_aspect("equal")
    axis.grid(color="#eeeeee")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    tips = {}
    for n, (i, k) in enumerate(np.argwhere(upper).tolist()):
        better = difference[i, k] * s.column.sign > 0
        first, second = (names[i], names[k]) if better else (names[k], names[i])
        words = "is better than" if differs[i, k] else "cannot be told from"
        numbers = f"difference {text_of(float(size[i, k]))}, p = {text_of(float(adjusted[i, k]))}"
        tips[f"pairs-{n}"] = f"{s.column.arrow}: {first} {words} {second}\n{numbers}"
    return dots, tips


def rank_diagram(axis: Axes, panel: Panel, s: Summary) -> Tips:
    """Critical-difference diagram (Demšar 2006, JMLR 7, fig. 1)."""
    tested = s.friedman
    if tested is None:
        return {}
    there = np.flatnonzero(~np.isnan(s.values).all(0)).tolist()
    mean = tested.mean_ranks
    order = np.argsort(mean, kind="stable").tolist()
    m = len(order)
    low, high = math.floor(mean.min()), math.ceil(mean.max())
    high = max(high, low + 1)
    room = (high - low) * 0.06
    half = (m + 1) // 2
    bars = _levels([mean[list(g)] for g in tested.groups(ALPHA) if len(g) > 1], room)
    top = 0.8 + 0.45 * max((level + 1 for level, _ in bars), default=0)
    axis.set_xlim(low - (high - low) * 0.62, high + (high - low) * 0.62)
    axis.set_ylim(top + half, -2.4)
    axis.axis("off")
    axis.plot([low, high], [0, 0], color="black", linewidth=1)
    for tick in range(low, high + 1):
        if (high - low) <= 12 or (tick - low) % 2 == 0:
            axis.plot([tick, tick], [0, -0.25], color="black", linewidth=1)
            axis.text(tick, -0.4, str(tick), ha="center", va="bottom", fontsize=7)
    width = critical_difference(m, tested.n, ALPHA)
    axis.plot([low, low + width], [-1.75, -1.75], color="black", linewidth=2, solid_capstyle="butt")
    p = "p < 0.001" if tested.p < 1e-3 else f"p = {tested.p:.2g}"
    axis.text(low + width + room, -1.75, f"CD = {width:.2g}, {tested.n} images, Friedman {p}", va="center", fontsize=7)
    for place, k in enumerate(order):
        left = place < half
        y = top + (place if left else m - 1 - place)
        end = low - room if left else high + room
        colour, _ = style(panel, there[k])
        hook(axis.plot([mean[k], mean[k], end], [0, y, y], color=colour, linewidth=0.9), f"rank-{there[k]}")
        name = panel.labels[there[k]]
        text = f"{name}  {mean[k]:.2f}" if left else f"{mean[k]:.2f}  {name}"
        slant = "italic" if panel.entries[there[k]].control else "normal"
        at = end - room / 3 if left else end + room / 3
        side = "right" if left else "left"
        words = axis.text(at, y, text, ha=side, va="center", fontsize=7, color=colour, style=slant)
        hook([words], f"rank-{there[k]}")
    for level, (first, last) in bars:
        y = 0.45 + 0.45 * level
        ends = [first - room / 4, last + room / 4]
        axis.plot(ends, [y, y], color="black", linewidth=2.6, solid_capstyle="butt")
    axis.set_title(s.column.arrow, loc="left")
    return {}


def _levels(groups: Sequence[Array], room: float) -> list[tuple[int, tuple[float, float]]]:
    """Bars from the lowest to the highest rank of each group, each on the first level where it meets no other."""
    bars: list[tuple[int, tuple[float, float]]] = []
    ends: list[float] = []
    for left, right in sorted((float(g.min()), float(g.max())) for g in groups):
        level = next((i for i, end in enumerate(ends) if end + room < left), len(ends))
        ends[level : level + 1] = [right]
        bars.append((level, (left, right)))
    return bars


def square(axis: Axes, values: Array, left: Sequence[str], above: Sequence[str]) -> tuple[ScalarMappable, Tips]:
    """Kendall's tau between rankings, one cell for each two."""
    n = len(values)
    image = axis.imshow(values, cmap="RdBu", norm=Normalize(-1, 1))
    tips = {}
    for (y, x), value in np.ndenumerate(values):
        if n <= 30 and not math.isnan(value):
            text = f"{value:.1f}".replace("0.", ".").replace("-.0", ".0")
            hook([axis.text(x, y, text, **INSIDE, color="white" if abs(value) > 0.7 else "black")], f"cell-{y}-{x}")
            tips[f"cell-{y}-{x}"] = f"{above[y]}\n{above[x]}\nτ = {value:.2f}"
    axis.set_yticks(range(n), left)
    names_above(axis, above)
    return image, tips


def costs_of(panel: Panel) -> Array:
    """Seconds (M,) for one image; NaN where they were not measured."""
    return np.array([cost.get("seconds") or math.nan for cost in panel.costs])


def sparsity_of(panel: Panel) -> Array:
    """Mean sparsity (M,) of the maps; NaN where it was not measured."""
    known = next((s for (m, c), s in panel.summaries.items() if (m, c) == ("sparsity", "sparsity")), None)
    return known.spread.mean if known is not None else np.full(len(panel.entries), math.nan)


def against(axis: Axes, panel: Panel, s: Summary, xs: Array, *, timed: bool, names: Sequence[str]) -> Tips:
    """A column beside sparsity or cost, on a log scale; up is better.

    Args:
        axis: to draw on.
        panel: the entries.
        s: the column.
        xs: (M,), seconds or sparsity.
        timed: they are seconds.
        names: what stands beside each mark.
    """
    tips = {}
    for j in order_of(panel):
        mean, low, high = s.spread.mean[j], s.spread.low[j], s.spread.high[j]
        if not xs[j] > 0 or math.isnan(mean):
            continue
        colour, marker = style(panel, j)
        around = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
        x = xs[j] * 1e3 if timed else xs[j]
        mark = axis.errorbar(x, mean, yerr=around, fmt=marker, color=colour, markersize=5, elinewidth=1)
        text = axis.annotate(names[j], (x, mean), xytext=(5, 3), textcoords="offset points", fontsize=7)
        hook([*mark.get_children(), text], f"point-{j}")
        what = f"{duration(float(xs[j]))} for one image" if timed else f"sparsity {text_of(float(xs[j]))}"
        tips[f"point-{j}"] = f"{panel.labels[j]}\n{s.column.arrow} {interval_text(s, j)}\n{what}"
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    unit = "milliseconds per image (log scale, left is cheaper)"
    axis.set_xlabel(unit if timed else "sparsity 1/x (log scale, right is sparser)")
    axis.set_ylabel(f"{s.column.arrow}, up is better")
    if s.column.direction is LOWER:
        axis.invert_yaxis()
    axis.grid(color="#e5e5e5", which="both", linewidth=0.5)
    return tips


def few(panel: Panel) -> Looks:
    """Colour, line and mark of the five best methods and of the controls."""
    methods = [j for j in order_of(panel) if not panel.entries[j].control][:5]
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
    lines: Looks = {j: (palette[i], "-", "osD^v"[i]) for i, j in enumerate(methods)}
    return lines | {j: ("#777777", [":", "--", "-."][i % 3], "") for i, j in enumerate(panel.controls)}


def curve(
    axis: Axes,
    panel: Panel,
    title: str,
    points: Sequence[tuple[float, Summary]],
    shown: Looks,
) -> Tips:
    """Mean curves of deletion or insertion with bands."""
    x = [share for share, _ in points]
    tips = {}
    for j, (colour, line, marker) in shown.items():
        mean, low, high = (np.array([getattr(s.spread, end)[j] for _, s in points]) for end in ("mean", "low", "high"))
        drawn = axis.plot(x, mean, color=colour, linestyle=line, marker=marker, markersize=3, linewidth=1.2)
        band = axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        hook([*drawn, band], f"series-{j}")
        tips[f"series-{j}"] = f"{panel.labels[j]}\nmean {text_of(float(mean.mean()))}"
    deletion = title.startswith("deletion")
    axis.set_title(f"{title} {'↓' if deletion else '↑'}")
    axis.set_xlabel("share of the pixels " + ("replaced" if deletion else "put back"))
    axis.set_ylabel("score")
    axis.grid(color="#e5e5e5")
    return tips


def by_sizes(
    axis: Axes,
    panel: Panel,
    s: Summary,
    sizes: tuple[list[str], Array, list[int]],
    shown: Looks,
) -> Tips:
    """Means by the size of the object."""
    names, means, counts = sizes
    tips = {}
    for j, (colour, line, marker) in shown.items():
        drawn = axis.plot(range(len(names)), means[:, j], color=colour, linestyle=line, marker=marker, markersize=4)
        hook(drawn, f"series-{j}")
        values = ", ".join(f"{name}: {text_of(float(v))}" for name, v in zip(names, means[:, j], strict=True))
        tips[f"series-{j}"] = f"{panel.labels[j]}\n{values}"
    axis.set_xticks(range(len(names)), [f"{n}\n({c})" for n, c in zip(names, counts, strict=True)], fontsize=7)
    axis.set_title(s.column.arrow)
    axis.set_xlabel("object covers (images)")
    axis.grid(axis="y", color="#e5e5e5")
    return tips


def curve_points(panel: Panel) -> dict[str, list[tuple[float, Summary]]]:
    """Shares of the pixels and the scores there, for each curve of deletion and insertion that was measured."""
    curves: dict[str, list[tuple[float, Summary]]] = {}
    for (metric, name), s in panel.summaries.items():
        kind, at, percent = name.partition("_at_")
        label = Label.parse(metric)
        if label.name == "curves" and at and percent.isdecimal():
            curves.setdefault(f"{kind} {s.column.label.settings}".strip(), []).append((int(percent) / 100, s))
    return {title: sorted(points, key=lambda point: point[0]) for title, points in curves.items()}


def over_grids(panel: Panel) -> dict[str, list[tuple[str, Summary]]]:
    """Grids, the finest first, with the scores there, of each column that was measured on three or more of them."""
    found: dict[str, list[tuple[str, Summary]]] = {}
    for s in panel.directed:
        if s.column.name == s.column.base and s.column.grid not in ("", "map") and len(s.values):
            label = s.column.label
            settings = ",".join(part for part in label.settings.split(",") if part and not part.startswith("grid="))
            found.setdefault(f"{label.name} {settings}".strip(), []).append((s.column.grid, s))

    def coarseness(point: tuple[str, Summary]) -> float:
        return {"pixels": -math.inf, "common": 0}.get(point[0], -float(point[0]) if point[0].isdecimal() else 0)

    return {title: sorted(points, key=coarseness) for title, points in found.items() if len(points) > 2}


def by_grid(axis: Axes, panel: Panel, title: str, points: Sequence[tuple[str, Summary]], shown: Looks) -> Tips:
    """Scores of the same maps ranked on ever coarser grids, with bands."""
    tips = {}
    places = np.arange(len(points))
    for j, (colour, line, marker) in shown.items():
        mean, low, high = (np.array([getattr(s.spread, end)[j] for _, s in points]) for end in ("mean", "low", "high"))
        drawn = axis.plot(places, mean, color=colour, linestyle=line, marker=marker, markersize=3, linewidth=1.2)
        band = axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        hook([*drawn, band], f"series-{j}")
        each = ", ".join(f"{grid}: {text_of(float(m))}" for (grid, _), m in zip(points, mean, strict=True))
        tips[f"series-{j}"] = f"{panel.labels[j]}\n{each}"
    axis.set_xticks(places, [grid for grid, _ in points])
    axis.set_title(f"{title} {points[0][1].column.arrow[-1]}")
    axis.set_xlabel("cells a side of the grid that is ranked")
    axis.set_ylabel("score")
    axis.grid(color="#e5e5e5")
    return tips
