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
from matplotlib.ticker import LogLocator, NullLocator

from xattn.benchmark.panels import Panel, Summary, agreement, by_size, protocols
from xattn.benchmark.scores import Scores
from xattn.benchmark.statistics import critical_difference, pairwise
from xattn.files import whole_file
from xattn.functional.statistics import ALPHA, INTERVAL, Array
from xattn.labels import Label
from xattn.looks import FAMILIES
from xattn.metric import LOWER

FORMATS = ("png", "svg", "pdf")
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "figure.dpi": 150,
    "svg.fonttype": "none", "svg.hashsalt": "xattn", "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
_MOST = 6  # plots in one figure
_LETTER = 0.07  # inches that a letter takes
_INSIDE: Any = {"ha": "center", "va": "center", "fontsize": 6, "in_layout": False}  # texts of cells, which fit


@contextmanager
def _style_of_figures() -> Iterator[None]:
    """The style, without warnings about letters that the font lacks and names that leave little room."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure in all formats; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with _style_of_figures():
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
            "are not better than it (paired Wilcoxon test with Holm's correction).",
            lambda: leaderboard(panel),
        ),
        "curves": (
            "Score of the explained class as the most important pixels are replaced (deletion, low is better) or put "
            f"back (insertion, high is better), with {INTERVAL} bootstrap bands: the best methods and the controls.",
            lambda: curves(panel),
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
    found = {}
    with _style_of_figures():
        for name, (caption, make) in makers.items():
            figure = make()
            if figure is not None:
                found[name] = (caption, figure)
    return found


def _style(panel: Panel, j: int) -> tuple[str, str]:
    look = FAMILIES[family_of(panel, j)]
    return look.color, look.marker


def family_of(panel: Panel, j: int) -> str:
    """Name of the family of an entry; `other` for a method that is not known here."""
    family = panel.entries[j].family
    return "other" if family is None else family.value


def _families(panel: Panel, entries: Sequence[int]) -> list[Line2D]:
    """Legend of the families that occur."""
    there = {family_of(panel, j) for j in entries}
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
    order = panel.order
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
            colour, marker = _style(panel, j)
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
            _italic_controls(axis, panel, order)
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    hollow = Line2D(
        [], [], linestyle="", marker="o", color="black", markerfacecolor="white", label="not above the controls"
    )
    line = Line2D([], [], color="#777777", linestyle="--", label="best control")
    figure.legend(handles=[*_families(panel, order), hollow, line], loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _italic_controls(axis: Axes, panel: Panel, order: Sequence[int]) -> None:
    for label, j in zip(axis.get_yticklabels(), order, strict=True):
        if panel.entries[j].control:
            label.set_fontstyle("italic")
            label.set_color("#555555")


def ranks(panel: Panel) -> Figure | None:
    """Rank of each entry in each column."""
    shown = panel.directed
    if not shown:
        return None
    order = panel.order
    values = np.array([[s.rank[j] for s in shown] for j in order])
    figure = Figure(figsize=(0.3 * len(shown) + 2.6, 0.24 * len(order) + 2.4), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="cividis_r", norm=Normalize(1, len(order)), aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not math.isnan(value):
            dark = value > 1 + 0.55 * (len(order) - 1)
            axis.text(x, y, f"{value:.3g}", **_INSIDE, color="white" if dark else "black")
    axis.set_yticks(range(len(order)), [panel.labels[j] for j in order])
    _italic_controls(axis, panel, order)
    _names_above(axis, [s.column.arrow for s in shown])
    figure.colorbar(image, ax=axis, label="rank (1 is best)", fraction=0.02, pad=0.01)
    return figure


def _names_above(axis: Axes, names: Sequence[str]) -> None:
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(names)), names, rotation=60, ha="left", rotation_mode="anchor")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def significance(panel: Panel) -> Figure | None:
    """Upper triangular dot matrices of pairwise tests (after fig. 6 of Gomez et al. 2022, arXiv:2106.02566)."""
    shown = [s for s in panel.headline(_MOST) if len(s.values)]
    order = panel.order
    m = len(order)
    if not shown or m < 2:
        return None
    figure, axes = _grid(len(shown), 0.21 * m + 2.0, 0.21 * m + 1.5, columns=2 if m > 10 else 3)
    for axis, s in zip(axes, shown, strict=True):
        found = pairwise(s.values[:, order])
        x, y = np.meshgrid(range(m), range(m))
        upper = (x > y) & ~np.isnan(found.adjusted)
        differs = found.adjusted < ALPHA
        size = np.abs(found.difference)
        norm = Normalize(0, float(size[upper].max(initial=1e-12)))
        dots = axis.scatter(
            x[upper], y[upper], s=np.where(differs, 55, 8)[upper], c=size[upper], cmap="viridis", norm=norm,
            edgecolors="none",
        )  # fmt: skip
        names = [panel.labels[j] for j in order]
        axis.set_xticks(range(1, m), names[1:], rotation=60, ha="left", rotation_mode="anchor", fontsize=7)
        axis.xaxis.tick_top()
        axis.set_yticks(range(m - 1), names[:-1], fontsize=7)
        axis.set_xlim(0.4, m - 0.4)
        axis.set_ylim(m - 1.4, -0.6)
        axis.set_aspect("equal")
        axis.grid(color="#eeeeee")
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
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
        _critical_difference(axis, panel, s)
    return figure


def _critical_difference(axis: Axes, panel: Panel, s: Summary) -> None:
    found = s.friedman
    if found is None:
        return
    there = np.flatnonzero(~np.isnan(s.values).all(0)).tolist()
    mean = found.mean_ranks
    order = np.argsort(mean, kind="stable").tolist()
    m = len(order)
    low, high = math.floor(mean.min()), math.ceil(mean.max())
    high = max(high, low + 1)
    room = (high - low) * 0.06
    half = (m + 1) // 2
    bars = _levels([mean[list(g)] for g in found.groups(ALPHA) if len(g) > 1], room)
    top = 0.8 + 0.45 * max((level + 1 for level, _ in bars), default=0)
    axis.set_xlim(low - (high - low) * 0.62, high + (high - low) * 0.62)
    axis.set_ylim(top + half, -2.4)
    axis.axis("off")
    axis.plot([low, high], [0, 0], color="black", linewidth=1)
    for tick in range(low, high + 1):
        if (high - low) <= 12 or (tick - low) % 2 == 0:
            axis.plot([tick, tick], [0, -0.25], color="black", linewidth=1)
            axis.text(tick, -0.4, str(tick), ha="center", va="bottom", fontsize=7)
    width = critical_difference(m, found.n, ALPHA)
    axis.plot([low, low + width], [-1.75, -1.75], color="black", linewidth=2, solid_capstyle="butt")
    p = "p < 0.001" if found.p < 1e-3 else f"p = {found.p:.2g}"
    axis.text(low + width + room, -1.75, f"CD = {width:.2g}, {found.n} images, Friedman {p}", va="center", fontsize=7)
    for place, k in enumerate(order):
        left = place < half
        y = top + (place if left else m - 1 - place)
        end = low - room if left else high + room
        colour, _ = _style(panel, there[k])
        axis.plot([mean[k], mean[k], end], [0, y, y], color=colour, linewidth=0.9)
        name = panel.labels[there[k]]
        text = f"{name}  {mean[k]:.2f}" if left else f"{mean[k]:.2f}  {name}"
        style = "italic" if panel.entries[there[k]].control else "normal"
        axis.text(
            end - room / 3 if left else end + room / 3, y, text, ha="right" if left else "left", va="center",
            fontsize=7, color=colour, style=style,
        )  # fmt: skip
    for level, (first, last) in bars:
        y = 0.45 + 0.45 * level
        ends = [first - room / 4, last + room / 4]
        axis.plot(ends, [y, y], color="black", linewidth=2.6, solid_capstyle="butt")
    axis.set_title(s.column.arrow, loc="left")


def _levels(groups: Sequence[Array], room: float) -> list[tuple[int, tuple[float, float]]]:
    """Bars from the lowest to the highest rank of each group, each on the first level where it meets no other."""
    found: list[tuple[int, tuple[float, float]]] = []
    ends: list[float] = []
    for left, right in sorted((float(g.min()), float(g.max())) for g in groups):
        level = next((i for i, end in enumerate(ends) if end + room < left), len(ends))
        ends[level : level + 1] = [right]
        found.append((level, (left, right)))
    return found


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
    image = axis.imshow(values, cmap="RdBu", norm=Normalize(-1, 1))
    for (y, x), value in np.ndenumerate(values):
        if n <= 30 and not math.isnan(value):
            text = f"{value:.1f}".replace("0.", ".").replace("-.0", ".0")
            axis.text(x, y, text, **_INSIDE, color="white" if abs(value) > 0.7 else "black")
    axis.set_yticks(range(n), left)
    _names_above(axis, above)
    figure.colorbar(image, ax=axis, label="Kendall's τ", fraction=0.03, pad=0.01)
    return figure


def reliabilities(panel: Panel) -> Figure | None:
    """Krippendorff's alpha of each column."""
    found = [(s, s.reliability) for s in panel.directed if s.reliability and not math.isnan(s.reliability.alpha)]
    if not found:
        return None
    found.sort(key=lambda pair: -pair[1].alpha)
    figure = Figure(figsize=(5.6, 0.21 * len(found) + 0.9), layout="constrained")
    axis = figure.subplots()
    for y, (_, r) in enumerate(found):
        axis.plot([r.low, r.high], [y, y], color="#0072B2", linewidth=1.5)
        axis.plot(r.alpha, y, "o", color="#0072B2", markersize=4.5)
    axis.set_yticks(range(len(found)), [s.column.title for s, _ in found])
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.axvline(0, color="#777777", linewidth=1, linestyle="--")
    axis.set_xlim(min(-0.05, min(r.alpha for _, r in found) - 0.05), 1)
    axis.set_xlabel("Krippendorff's alpha", loc="right")
    axis.grid(axis="x", color="#e5e5e5")
    axis.tick_params(axis="y", length=0)
    return figure


def against(panel: Panel, what: str) -> Figure | None:
    """Sparsity or cost of each entry beside insertion and deletion."""
    faithful = [s for s in panel.headline(len(panel.summaries)) if s.column.family == "perturbation"][:2]
    if what == "sparsity":
        known = next((s for (m, c), s in panel.summaries.items() if c == "sparsity" and m == "sparsity"), None)
        xs = known.spread.mean if known is not None else np.full(len(panel.entries), np.nan)
        name = "sparsity 1/x (log scale, right is sparser)"
    else:
        xs = np.array([cost.get("seconds") or math.nan for cost in panel.costs]) * 1e3
        name = "milliseconds per image (log scale, left is cheaper)"
    there = [j for j in panel.order if xs[j] > 0]
    if not faithful or not there:
        return None
    figure, axes = _grid(len(faithful), 4.6, 4.0, columns=2)
    numbers = {j: i + 1 for i, j in enumerate(there)}
    for axis, s in zip(axes, faithful, strict=True):
        for j in there:
            mean, low, high = s.spread.mean[j], s.spread.low[j], s.spread.high[j]
            if math.isnan(mean):
                continue
            colour, marker = _style(panel, j)
            around = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axis.errorbar(xs[j], mean, yerr=around, fmt=marker, color=colour, markersize=5, elinewidth=1)
            axis.annotate(str(numbers[j]), (xs[j], mean), xytext=(5, 3), textcoords="offset points", fontsize=7)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_xlabel(name)
        axis.set_ylabel(f"{s.column.arrow} (up is better)" if s.column.direction is LOWER else s.column.arrow)
        if s.column.direction is LOWER:
            axis.invert_yaxis()
        axis.grid(color="#e5e5e5", which="both", linewidth=0.5)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            color=_style(panel, j)[0],
            marker=_style(panel, j)[1],
            label=f"{numbers[j]} {panel.labels[j]}",
        )
        for j in there
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def sizes(panel: Panel, scores: Scores) -> Figure | None:
    """Means by size of the object."""
    localization = [s for s in panel.directed if s.column.family == "localization" and not s.column.pooled]
    preferred = [s for s in panel.headline(len(panel.summaries)) if s in localization]
    shown = [(s, *by_size(panel, scores, s)) for s in preferred[:4]]
    shown = [item for item in shown if len(item[1]) > 1]
    if not shown:
        return None
    lines = _few(panel)
    figure, axes = _grid(len(shown), 3.6, 3.2, columns=2)
    for axis, (s, names, means, counts) in zip(axes, shown, strict=True):
        for j, (colour, line, marker) in lines.items():
            axis.plot(range(len(names)), means[:, j], color=colour, linestyle=line, marker=marker, markersize=4)
        axis.set_xticks(range(len(names)), [f"{n}\n({c})" for n, c in zip(names, counts, strict=True)], fontsize=7)
        axis.set_title(s.column.arrow)
        axis.set_xlabel("object covers (images)")
        axis.grid(axis="y", color="#e5e5e5")
    _legend_of_few(figure, panel, lines, len(shown))
    return figure


def _few(panel: Panel) -> dict[int, tuple[str, Any, str]]:
    """Colour, line and mark of the five best methods and of the controls."""
    methods = [j for j in panel.order if not panel.entries[j].control][:5]
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]
    lines: dict[int, tuple[str, Any, str]] = {j: (palette[i], "-", "osD^v"[i]) for i, j in enumerate(methods)}
    return lines | {j: ("#777777", [":", "--", "-."][i % 3], "") for i, j in enumerate(panel.controls)}


def _legend_of_few(figure: Figure, panel: Panel, lines: dict[int, tuple[str, Any, str]], plots: int) -> None:
    handles = [
        Line2D([], [], color=c, linestyle=line, marker=marker, markersize=4, label=panel.labels[j])
        for j, (c, line, marker) in lines.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if plots > 1 else 2, fontsize=8)


def curve_points(panel: Panel) -> dict[str, list[tuple[float, Summary]]]:
    """Shares of the pixels and the scores there, for each curve of deletion and insertion that was measured."""
    found: dict[str, list[tuple[float, Summary]]] = {}
    for (metric, name), s in panel.summaries.items():
        kind, at, percent = name.partition("_at_")
        label = Label.parse(metric)
        if label.name == "curves" and at and percent.isdecimal():
            found.setdefault(f"{kind} {label.settings}".strip(), []).append((int(percent) / 100, s))
    return {title: sorted(points, key=lambda point: point[0]) for title, points in found.items()}


def curves(panel: Panel) -> Figure | None:
    """Mean curves of deletion and insertion with bands."""
    shown = list(curve_points(panel).items())[:_MOST]
    if not shown:
        return None
    lines = _few(panel)
    figure, axes = _grid(len(shown), 3.8, 3.2, columns=2)
    for axis, (title, points) in zip(axes, shown, strict=True):
        x = [share for share, _ in points]
        for j, (colour, line, marker) in lines.items():
            mean, low, high = (
                np.array([getattr(s.spread, end)[j] for _, s in points]) for end in ("mean", "low", "high")
            )
            axis.plot(x, mean, color=colour, linestyle=line, marker=marker, markersize=3, linewidth=1.2)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(f"{title} {'↓' if title.startswith('deletion') else '↑'}")
        axis.set_xlabel("share of the pixels " + ("replaced" if title.startswith("deletion") else "put back"))
        axis.set_ylabel("score")
        axis.grid(color="#e5e5e5")
    _legend_of_few(figure, panel, lines, len(shown))
    return figure
