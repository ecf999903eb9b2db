"""Figures of a run; families of methods differ in colour and in shape."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xattn.benchmark import charts
from xattn.benchmark.panels import Panel, Summary, agreement, by_size, protocols
from xattn.benchmark.scores import Scores
from xattn.files import whole_file
from xattn.functional.statistics import ALPHA, INTERVAL, Array
from xattn.looks import FAMILIES

FORMATS = ("png", "svg", "pdf")
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "figure.dpi": 150,
    "svg.fonttype": "none", "svg.hashsalt": "xattn", "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
_MOST = 6  # plots in one figure
_LETTER = 0.07  # inches that a letter takes


@contextmanager
def style_of_figures() -> Iterator[None]:
    """The style, without warnings about letters that the font lacks and names that leave little room."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure in all formats; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with style_of_figures():
        for artist in figure.findobj(lambda a: a.get_gid() is not None):
            artist.set_gid(None)  # hooks are for pages
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it is placed and measured now; each format would do it again
        around = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
        for kind in FORMATS:
            with whole_file(folder / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, metadata=dates.get(kind), bbox_inches=around)


def draw_all(panel: Panel, scores: Scores) -> dict[str, tuple[str, Figure]]:
    """Every figure that the panel's scores allow, by name, with a caption."""
    makers: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "leaderboard": (
            f"Mean of each method with its {INTERVAL} bootstrap interval. The line is the best control, hollow marks "
            "are not shown to beat every control (one-sided paired t tests with Holm's correction).",
            lambda: leaderboard(panel),
        ),
        "curves": (
            "Score of the explained class as the most important pixels are replaced (deletion, low is better) or put "
            f"back (insertion, high is better), with {INTERVAL} bootstrap bands: the best methods and the controls.",
            lambda: curves(panel),
        ),
        "grids": (
            f"Score of the same maps, ranked on ever coarser grids, with {INTERVAL} bootstrap bands: how fine a map is "
            "moves its score, so methods and controls are compared on one grid.",
            lambda: grids(panel),
        ),
        "ranks": (
            "Rank of each method in each column by its mean, 1 is best; controls are in italics.",
            lambda: ranks(panel),
        ),
        "significance": (
            "Pairs of methods: a large dot where they differ (paired Wilcoxon test with Holm's correction over all "
            f"pairs, p < {ALPHA}), its colour the difference of their means.",
            lambda: significance(panel),
        ),
        "critical_difference": (
            "Mean rank over images, 1 is best; bars join methods that the Nemenyi test does not tell apart "
            f"(alpha = {ALPHA}).",
            lambda: critical_differences(panel),
        ),
        "agreement": (
            "Kendall's τ between the rankings of the methods by two columns, each turned so that better is first.",
            lambda: agreement_matrix(panel.directed, panel),
        ),
        "protocols": (
            "The same between the protocols of perturbation alone; each with the method that wins under it.",
            lambda: protocol_matrix(panel),
        ),
        "reliability": (
            f"Krippendorff's alpha: whether images agree on the order of methods, with {INTERVAL} bootstrap intervals.",
            lambda: reliabilities(panel),
        ),
        "sparsity": ("Sparsity of the maps and how faithful they are.", lambda: against(panel, "sparsity")),
        "cost": ("Time of a method alone and how faithful its maps are.", lambda: against(panel, "cost")),
        "box_size": (
            "Means by the share of the image that the object covers: the best methods and the controls.",
            lambda: sizes(panel, scores),
        ),
    }
    drawn = {}
    with style_of_figures():
        for name, (caption, make) in makers.items():
            figure = make()
            if figure is not None:
                drawn[name] = (caption, figure)
    return drawn


def _families(panel: Panel, entries: Sequence[int]) -> list[Line2D]:
    """Legend of the families that occur."""
    there = {charts.family_of(panel, j) for j in entries}
    return [
        Line2D([], [], linestyle="", color=look.color, marker=look.marker, label=name)
        for name, look in FAMILIES.items()
        if name in there
    ]


def _grid(count: int, width: float, height: float, columns: int = 3, **options: Any) -> tuple[Figure, list[Axes]]:
    """Axes on a grid that is no wider than needed."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for extra in axes[count:]:
        extra.remove()
    return figure, axes[:count]


def leaderboard(panel: Panel) -> Figure | None:
    """Means with intervals, one plot for each headline column."""
    shown = panel.headline(_MOST)
    if not shown:
        return None
    order = charts.order_of(panel)
    height = 0.24 * len(order) + 1.1
    figure, axes = _grid(len(shown), 2.9, height, sharey=True)
    for axis, s in zip(axes, shown, strict=True):
        spread = s.spread
        for y, j in enumerate(order):
            if math.isnan(spread.mean[j]):
                axis.text(
                    0.5,
                    y,
                    "no value",
                    transform=axis.get_yaxis_transform(),
                    color="#999999",
                    ha="center",
                    va="center",
                    fontsize=7,
                )
                continue
            colour, marker = charts.style(panel, j)
            around = [[max(0.0, spread.mean[j] - spread.low[j])], [max(0.0, spread.high[j] - spread.mean[j])]]
            axis.errorbar(
                spread.mean[j], y, xerr=around, fmt=marker, color=colour, markersize=5, elinewidth=1.5,
                markerfacecolor="white" if s.marked(j) else colour,
            )  # fmt: skip
        turned = [
            (spread.mean[j] * s.column.sign, spread.mean[j]) for j in panel.controls if not math.isnan(spread.mean[j])
        ]
        if turned and s in panel.directed:
            axis.axvline(max(turned)[1], color="#777777", linewidth=1, linestyle="--", zorder=0)
        axis.set_title(textwrap.fill(s.column.arrow.replace(".", ". "), 26).replace(". ", "."))
        axis.grid(axis="x", color="#e5e5e5")
        axis.tick_params(axis="y", length=0)
    for axis in axes:
        if axis.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axis.set_yticks(range(len(order)), [panel.labels[j] for j in order])
            charts.italic_controls(axis, panel, order)
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    hollow = Line2D(
        [], [], linestyle="", marker="o", color="black", markerfacecolor="white", label="not above the controls"
    )
    line = Line2D([], [], color="#777777", linestyle="--", label="best control")
    figure.legend(handles=[*_families(panel, order), hollow, line], loc="outside lower center", ncols=5, fontsize=8)
    return figure


def ranks(panel: Panel) -> Figure | None:
    """Rank of each entry in each column."""
    shown = panel.directed
    if not shown:
        return None
    order = charts.order_of(panel)
    values = np.array([[s.rank[j] for s in shown] for j in order])
    figure = Figure(figsize=(0.3 * len(shown) + 2.6, 0.24 * len(order) + 2.4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="cividis_r", norm=Normalize(1, len(order)), aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not math.isnan(value):
            dark = value > 1 + 0.55 * (len(order) - 1)
            axis.text(x, y, f"{value:.3g}", **charts.INSIDE, color="white" if dark else "black")
    axis.set_yticks(range(len(order)), [panel.labels[j] for j in order])
    charts.italic_controls(axis, panel, order)
    charts.names_above(axis, [s.column.arrow for s in shown])
    figure.colorbar(image, ax=axis, label="rank (1 is best)", fraction=0.02, pad=0.01)
    return figure


def significance(panel: Panel) -> Figure | None:
    """Upper triangular dot matrices of pairwise tests (after fig. 6 of Gomez et al. 2022, arXiv:2106.02566)."""
    shown = [s for s in panel.headline(_MOST) if len(s.values)]
    m = len(charts.order_of(panel))
    if not shown or m < 2:
        return None
    figure, axes = _grid(len(shown), 0.21 * m + 2.0, 0.21 * m + 1.5, columns=2 if m > 10 else 3)
    for axis, s in zip(axes, shown, strict=True):
        dots, _ = charts.pairs(axis, panel, s)
        figure.colorbar(dots, ax=axis, label="difference of means", fraction=0.035, pad=0.02)
        axis.set_title(f"{s.column.arrow}  ({len(s.images)} images)", y=-0.08)
    return figure


def critical_differences(panel: Panel) -> Figure | None:
    """Critical-difference diagrams (Demšar 2006, JMLR 7, fig. 1)."""
    shown = [s for s in panel.headline(_MOST, directed=True) if s.friedman is not None and s.friedman.n > 1]
    if not shown or len(panel.entries) < 2:
        return None
    figure, axes = _grid(len(shown), 6.2, 0.105 * len(panel.entries) + 1.4, columns=2)
    for axis, s in zip(axes, shown, strict=True):
        charts.rank_diagram(axis, panel, s)
    return figure


def agreement_matrix(shown: Sequence[Summary], panel: Panel) -> Figure | None:
    """Kendall's tau between columns."""
    if len(shown) < 2 or len(panel.entries) < 3:
        return None
    return _square(agreement(shown), [s.column.arrow for s in shown], [s.column.arrow for s in shown])


def protocol_matrix(panel: Panel) -> Figure | None:
    """Kendall's tau between protocols, and who wins."""
    shown = protocols(panel)
    if len(shown) < 2 or len(panel.entries) < 3:
        return None
    winners = [panel.labels[int(np.nanargmin(s.rank))] for s in shown]
    left = [f"{s.column.arrow}: {winner}" for s, winner in zip(shown, winners, strict=True)]
    figure = _square(agreement(shown), left, [s.column.arrow for s in shown])
    axis = figure.axes[0]
    for label, s in zip(axis.get_yticklabels(), shown, strict=True):
        if panel.entries[int(np.nanargmin(s.rank))].control:
            label.set_color("#D55E00")
            label.set_fontweight("bold")
    return figure


def _square(values: Array, left: Sequence[str], above: Sequence[str]) -> Figure:
    n = len(values)
    cell = 0.34 if n <= 30 else 0.24
    beside, over = (_LETTER * max(map(len, names)) for names in (left, above))
    figure = Figure(figsize=(cell * n + beside + 1.4, cell * n + over + 0.6), layout="constrained")
    axis = figure.subplots()
    image, _ = charts.square(axis, values, left, above)
    figure.colorbar(image, ax=axis, label="Kendall's τ", fraction=0.03, pad=0.01)
    return figure


def reliabilities(panel: Panel) -> Figure | None:
    """Krippendorff's alpha of each column."""
    known = [(s, s.reliability) for s in panel.directed if s.reliability and not math.isnan(s.reliability.alpha)]
    if not known:
        return None
    known.sort(key=lambda pair: -pair[1].alpha)
    figure = Figure(figsize=(5.6, 0.21 * len(known) + 0.9), layout="constrained")
    axis = figure.subplots()
    for y, (_, r) in enumerate(known):
        axis.plot([r.low, r.high], [y, y], color="#0072B2", linewidth=1.5)
        axis.plot(r.alpha, y, "o", color="#0072B2", markersize=4.5)
    axis.set_yticks(range(len(known)), [s.column.title for s, _ in known])
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.axvline(0, color="#777777", linewidth=1, linestyle="--")
    axis.set_xlim(min(-0.05, min(r.alpha for _, r in known) - 0.05), 1)
    axis.set_xlabel("Krippendorff's alpha", loc="right")
    axis.grid(axis="x", color="#e5e5e5")
    axis.tick_params(axis="y", length=0)
    return figure


def against(panel: Panel, what: str) -> Figure | None:
    """Sparsity or cost of each entry beside insertion and deletion."""
    faithful = [s for s in panel.headline(len(panel.summaries)) if s.column.family == "perturbation"][:2]
    timed = what == "cost"
    xs = charts.costs_of(panel) if timed else charts.sparsity_of(panel)
    there = [j for j in charts.order_of(panel) if xs[j] > 0]
    if not faithful or not there:
        return None
    figure, axes = _grid(len(faithful), 4.6, 4.0, columns=2)
    numbers = {j: str(i + 1) for i, j in enumerate(there)}
    names = [numbers.get(j, "") for j in range(len(panel.entries))]
    for axis, s in zip(axes, faithful, strict=True):
        charts.against(axis, panel, s, xs, timed=timed, names=names)
    marks = {j: charts.style(panel, j) for j in there}
    handles = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=f"{numbers[j]} {panel.labels[j]}")
        for j, (colour, marker) in marks.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def sizes(panel: Panel, scores: Scores) -> Figure | None:
    """Means by size of the object."""
    localization = [s for s in panel.directed if s.column.family == "localization" and not s.column.pooled]
    preferred = [s for s in panel.headline(len(panel.summaries)) if s in localization]
    shown = [(s, by_size(panel, scores, s)) for s in preferred[:4]]
    shown = [(s, means) for s, means in shown if len(means[0]) > 1]
    if not shown:
        return None
    lines = charts.few(panel)
    figure, axes = _grid(len(shown), 3.6, 3.2, columns=2)
    for axis, (s, means) in zip(axes, shown, strict=True):
        charts.by_sizes(axis, panel, s, means, lines)
    _legend_of_few(figure, panel, lines, len(shown))
    return figure


def _legend_of_few(figure: Figure, panel: Panel, lines: charts.Looks, plots: int) -> None:
    handles = [
        Line2D([], [], color=c, linestyle=line, marker=marker, markersize=4, label=panel.labels[j])
        for j, (c, line, marker) in lines.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if plots > 1 else 2, fontsize=8)


def grids(panel: Panel) -> Figure | None:
    """Scores of the best methods and of the controls against the grid on which maps are ranked."""
    kinds = charts.over_grids(panel)
    if not kinds:
        return None
    figure, axes = _grid(len(kinds), 3.4, 2.8, sharex=False)
    lines = charts.few(panel)
    for axis, (title, points) in zip(axes, kinds.items(), strict=True):
        charts.by_grid(axis, panel, title, points, lines)
    _legend_of_few(figure, panel, lines, len(kinds))
    return figure


def curves(panel: Panel) -> Figure | None:
    """Mean curves of deletion and insertion with bands."""
    shown = list(charts.curve_points(panel).items())[:_MOST]
    if not shown:
        return None
    lines = charts.few(panel)
    figure, axes = _grid(len(shown), 3.8, 3.2, columns=2)
    for axis, (title, points) in zip(axes, shown, strict=True):
        charts.curve(axis, panel, title, points, lines)
    _legend_of_few(figure, panel, lines, len(shown))
    return figure
