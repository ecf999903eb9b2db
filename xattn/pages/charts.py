"""The charts of a panel as SVG for the page: themed by its variables, with hooks for pointing, choosing and hiding."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xattn.benchmark import charts
from xattn.benchmark.charts import Looks, Tips
from xattn.benchmark.figures import style_of_figures
from xattn.benchmark.panels import Panel, Summary, agreement, by_size, protocols
from xattn.benchmark.scores import Scores
from xattn.looks import FAMILIES

_COMPARED = 24  # columns whose rankings are compared
_TESTED = 8  # columns that can be chosen
_NS = "{http://www.w3.org/2000/svg}"
_PLACES, _DIGITS = {"d", "x", "y", "transform"}, re.compile(r"(\.\d\d)\d+")
_HOOK = re.compile(r"(point|rank|name|series|cell|pairs)(?:-(\d+))?(?:-(\d+))?")
# Lines of methods have colours that differ within a family.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9467BD", "#8C564B")
_THEME = {look.color.lower(): f"var(--f-{name.lower()})" for name, look in FAMILIES.items() if name != "other"} | {
    "#000000": "var(--ink)", "#555555": "var(--muted)", "#e5e5e5": "var(--line)", "#eeeeee": "var(--line)",
}  # fmt: skip
ET.register_namespace("", _NS[1:-1])
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: what it shows, by which it is chosen.
        svg: the picture.
        across: what it shows it beside, by which it is chosen too.
    """

    title: str
    svg: Markup
    across: str = ""


def of_panel(panel: Panel, scores: Scores, order: list[int]) -> dict[str, list[Chart]]:
    """All charts of a panel by their kind; `order` are its entries from best to worst."""
    asked = [s for s in panel.headline(_TESTED) if not np.isnan(s.spread.mean).all()]
    tested = [s for s in panel.headline(_TESTED, directed=True) if len(s.values) and len(panel.entries) > 1]
    ranked = [s for s in tested if s.friedman is not None and s.friedman.n > 1 and len(s.friedman.mean_ranks) > 1]
    columns = [s for s in panel.headline(_COMPARED, directed=True) if not np.isnan(s.spread.mean).all()]
    across = [("time for one image", charts.costs_of(panel), True), ("sparsity", charts.sparsity_of(panel), False)]
    lines, shown = line_looks(panel, order), shown_first(panel, order)
    sized = [s for s in panel.headline(len(panel.summaries)) if len(s.images)]
    sized.sort(key=lambda s: s.column.family != "localization")  # what depends on sizes most
    sizes = [(s, means) for s in sized for means in [by_size(panel, scores, s)] if len(means[0]) > 1][:_TESTED]
    high = 0.21 * len(panel.entries)

    def chart(title: str, size: tuple[float, float], draw: Callable[[Axes], Tips], across: str = "") -> Chart:
        return Chart(title, _svg(panel, f"{title}, {across}", size, draw, shown), across)

    beside = partial(charts.against, panel=panel, names=panel.labels)
    made = {
        "scatter": [
            chart(s.column.arrow, (6.2, 4.2), partial(beside, s=s, xs=xs, timed=timed), name)
            for s in asked for name, xs, timed in across if (xs > 0).any()
        ],
        "pairs": [chart(s.column.arrow, (high + 1.8, high + 1.3), partial(_pairs, panel=panel, s=s)) for s in tested],
        "ranks": [
            chart(s.column.arrow, (9.0, high / 2 + 1.4), partial(charts.rank_diagram, panel=panel, s=s)) for s in ranked
        ],
        "curves": [
            chart(title, (5.0, 3.2), partial(charts.curve, panel=panel, title=title, points=points, shown=lines))
            for title, points in charts.curve_points(panel).items()
        ],
        "grids": [
            chart(title, (5.0, 3.2), partial(charts.by_grid, panel=panel, title=title, points=points, shown=lines))
            for title, points in charts.over_grids(panel).items()
        ],
        "sizes": [
            chart(s.column.arrow, (6.0, 3.2), partial(charts.by_sizes, panel=panel, s=s, sizes=means, shown=lines))
            for s, means in sizes
        ],
    }  # fmt: skip
    for kind, compared in (("agreement", columns), ("protocols", protocols(panel))):
        draw = partial(_square, panel=panel, kind=kind, shown=compared)
        enough = len(compared) > 1 and len(panel.entries) > 2
        made[kind] = [chart(kind, _square_size(compared), draw)] if enough else []
    return made


def line_looks(panel: Panel, order: list[int]) -> Looks:
    """Colour and line of entries where each has its own."""
    methods = [j for j in order if not panel.entries[j].control]
    looks: Looks = {j: (_LINES[i % len(_LINES)], "-", "") for i, j in enumerate(methods)}
    return looks | {j: look for j, look in charts.few(panel).items() if panel.entries[j].control and j in order}


def shown_first(panel: Panel, order: list[int]) -> set[int]:
    """The best entries and the controls, whose lines are shown at first."""
    return {*[j for j in order if not panel.entries[j].control][:5], *panel.controls}


def themed(text: str) -> str:
    """A text whose colours follow the theme of the page."""
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda match: _THEME.get(match[0].lower(), match[0]), text)


def _pairs(axis: Axes, panel: Panel, s: Summary) -> Tips:
    return charts.pairs(axis, panel, s)[1]


def _square_size(shown: list[Summary]) -> tuple[float, float]:
    names = 0.07 * max(len(s.column.arrow) for s in shown)
    side = (0.34 if len(shown) <= 30 else 0.24) * len(shown)
    return side + names + 0.6, side + names + 0.3


def _square(axis: Axes, panel: Panel, kind: str, shown: list[Summary]) -> Tips:
    above = left = [s.column.arrow for s in shown]
    if kind == "protocols":
        left = [f"{name}: {panel.labels[int(np.nanargmin(s.rank))]}" for name, s in zip(above, shown, strict=True)]
    return charts.square(axis, agreement(shown), left, above)[1]


def _svg(panel: Panel, name: str, size: tuple[float, float], draw: Callable[[Axes], Tips], shown: set[int]) -> Markup:
    """A chart as SVG; series of entries that are not in `shown` are hidden at first."""
    stream = io.BytesIO()
    with style_of_figures(), mpl.rc_context({"svg.hashsalt": f"{panel.name} {name}"}):
        figure = Figure(figsize=size)
        axis = figure.subplots()
        tips = draw(axis)
        figure.draw_without_rendering()
        hidden = _crowded(axis)
        around = figure.get_tightbbox().padded(0.05)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None}, bbox_inches=around)
    root = ET.fromstring(stream.getvalue())
    _hooked(root, panel, tips, shown, hidden)
    width = float(root.attrib.pop("width").removesuffix("pt")) * 4 / 3
    root.attrib.pop("height")
    root.set("style", f"width:{width:.0f}px")
    root.set("role", "group")
    root.set("aria-label", name.strip(", "))
    for element in root.iter():
        for key in _PLACES & element.attrib.keys():
            element.set(key, _DIGITS.sub(r"\1", element.attrib[key]))
    text = re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode")).replace("'DejaVu Sans'", "var(--sans)")
    return Markup(themed(text))  # made of elements: all text in it is escaped


def _crowded(axis: Axes) -> set[str]:
    """Hooks of points whose name would lie over another one; it is shown when the point is."""
    taken: list[Any] = []
    crowded = set()
    for text in axis.texts:
        gid = str(text.get_gid())
        if gid.startswith("point-"):
            box = text.get_window_extent()
            if any(box.overlaps(other) for other in taken) or not math.isfinite(box.x0):
                crowded.add(gid)
            else:
                taken.append(box)
    return crowded


def _hooked(root: ET.Element, panel: Panel, tips: Tips, shown: set[int], crowded: set[str]) -> None:
    """Give what has a hook its attributes, put the parts of a mark into one element, and drop all other ids."""
    parents = {child: parent for parent in root.iter() for child in parent}
    used = set(re.findall(r"#([\w-]+)", ET.tostring(root, encoding="unicode")))
    groups: dict[str, ET.Element] = {}
    for element in list(root.iter()):
        if element.tag in (f"{_NS}metadata", f"{_NS}style"):
            parents[element].remove(element)
            continue
        gid = element.get("id", "")
        if gid not in used:
            element.attrib.pop("id", None)
        match = _HOOK.fullmatch(gid)
        if match is None:
            continue
        kind = match[1]
        if kind == "pairs":
            for n, dot in enumerate([*element.iter(f"{_NS}use")] or element.findall(f"{_NS}path")):
                dot.set("data-tip", tips.get(f"pairs-{n}", ""))
            continue
        if kind == "cell":
            element.attrib.update({"class": kind, "data-tip": tips[gid]})
            continue
        j = int(match[2])
        facts = {"data-m": str(j), "class": f"{kind} control" if panel.entries[j].control else kind}
        if kind == "name":
            element.attrib.update(facts)
            continue
        if gid in crowded and element.find(f"{_NS}text") is not None:
            element.set("class", "crowded")
        if gid not in groups:
            facts |= {"hidden": ""} if kind == "series" and j not in shown else {}
            if tip := tips.get(gid):
                facts |= {"data-tip": tip, "aria-label": tip, "role": "img"}
            facts |= {"tabindex": "0"} if kind == "point" else {}
            groups[gid] = ET.SubElement(parents[element], f"{_NS}g", facts)
        parents[element].remove(element)
        groups[gid].append(element)
