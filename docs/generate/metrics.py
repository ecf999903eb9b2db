"""Pages of the metrics: words, formula, source, cost and how each behaves where the evidence is known."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from docs.generate.cache import ROOT, kept
from docs.generate.entries import facts, parameters, reference, slug, source, table, words
from docs.generate.formulas import display
from xattn.data.sample import Batch
from xattn.data.synthetic import Synthetic
from xattn.explainer import Explainer, Family
from xattn.explainers import resolve
from xattn.explaining import explain_trace, record_for
from xattn.explanation import Explanation
from xattn.functional.pixels import denormalize_pixels
from xattn.metric import NEITHER, Direction, Metric
from xattn.metrics import metrics
from xattn.trace import Trace

_IMAGES = 24
_SIZE = 48
_SERIES = re.compile(r"^(.*?)_(?:at_)?(\d{2,3})$")
_ARROWS = {direction: f"{direction.value} is better" for direction in Direction} | {NEITHER: "no better side"}
_NEEDS = {
    "masks": "masks or boxes", "mosaic": "mosaics of images", "scenes": "rendered images without single parts",
}  # fmt: skip
_FAMILIES = {
    "perturbation": (
        "Perturbation",
        "They change the image where the map says that it matters and look at the score. What replaces the pixels "
        "decides a good part of the answer, so read a pair of them, and the "
        "[protocols](../measured.md#how-far-the-answer-depends-on-the-protocol) of a report.",
    ),
    "localization": (
        "Localisation",
        "They ask whether the map lies on the object, and need masks or boxes, or mosaics of images. They measure the "
        "map and the model together: a network that looks at the background is right to be explained by it.",
    ),
    "complexity": (
        "Complexity",
        "They say how concentrated a map is, wherever it is. None of them has a better side.",
    ),
    "robustness": ("Robustness", "They change the image hardly at all and see whether the map stays."),
    "sanity": (
        "Sanity",
        "They change the network or the class and see whether the map notices. A map that does not cannot explain it.",
    ),
    "ground_truth": (
        "Ground truth",
        "They hold the map against images from which a part was taken away for real, as a rendered data set has them: "
        "what a part is worth to the network is known, and no baseline had to be chosen.",
    ),
}


@dataclass(frozen=True)
class Evidence(Explainer):
    """The map that is right by construction: what has a colour, in images where nothing else decides."""

    name: ClassVar[str] = "the evidence"
    family: ClassVar[Family] = Family.CONTROL

    def attribute(self, trace: Trace) -> Tensor:
        """How far the channels of a pixel are apart (N, 1, H, W)."""
        pixels = denormalize_pixels(trace.x, trace.spec.mean, trace.spec.std)
        return pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)


def make() -> tuple[dict[str, str], dict[str, Path]]:
    """Text by path of the pages, and file by path of the pictures."""
    entries = [Entry(name) for name in metrics.names()]
    families = list(dict.fromkeys([*_FAMILIES, *(e.metric.family for e in entries)]))
    pages = {"metrics/index.md": _index(entries)}
    for family in families:
        if mine := [e for e in entries if e.metric.family == family]:
            title, about = _FAMILIES.get(family, (family.capitalize(), ""))
            text = "\n".join([f"# {title}", "", about, "", *(e.section() for e in mine)])
            pages[f"metrics/{family}.md"] = text
    return pages, {f"metrics/{e.picture_name}": e.picture for e in entries}


class Entry:
    """One registered metric.

    Args:
        name: as it is registered.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind: Any = metrics.get(name)
        self.metric = metrics.create(name)
        self.picture = _picture(name)

    @property
    def anchor(self) -> str:
        """Address of its section from the folder of the pages."""
        return f"{self.metric.family}.md#{slug(self.name)}"

    @property
    def picture_name(self) -> str:
        """Path of its picture from the folder of the pages."""
        return f"images/{slug(self.name)}.svg"

    @property
    def columns(self) -> str:
        """Its columns and which way is better; many of one kind are put together."""
        groups: dict[tuple[str, Direction], list[str]] = {}
        for column, direction in {**self.metric.columns, **self.metric.pooled}.items():
            series = _SERIES.match(column)
            groups.setdefault((series[1] if series else column, direction), []).append(column)
        return "; ".join(
            (f"`{names[0]}`" if len(names) == 1 else f"`{names[0]}` … `{names[-1]}`") + f" ({_ARROWS[direction]})"
            for (_, direction), names in groups.items()
        )

    def section(self) -> str:
        """Its part of a page."""
        what, rest = words(self.kind)
        passes = _passes(self.name)
        cost = "none" if passes == 0 else f"{passes:,.0f} images through the model"
        needs = ", ".join(_NEEDS.get(what, what) for what in sorted(self.metric.needs)) or "images alone"
        lines = [f"## `{self.name}` {{ #{slug(self.name)} }}", "", f"{what}.", ""]
        lines += [f"*{text}*", ""] if (text := source(self.kind)) else []
        lines += [display("metrics", self.name), ""]
        lines += [rest, "", facts(columns=self.columns, needs=needs, cost_of_one_map=cost)]
        lines += [f"![What {self.name} says of maps that are right and of controls]({self.picture_name})"]
        lines += ["{ .figure }", "", parameters(self.kind), f"In Python: {reference(self.kind)}.", ""]
        return "\n".join(lines)


def _index(entries: list[Entry]) -> str:
    rows = [
        (f"[`{e.name}`]({e.anchor})", words(e.kind)[0], e.metric.family, e.columns, source(e.kind)) for e in entries
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            f"There are {len(entries)}; `xattn list metrics` prints this list. A metric gives one value per image from "
            "that image alone, and where it is undefined NaN, which tables count and never replace by zero.",
            "",
            f"The picture of each metric is what it says of {_IMAGES} synthetic images in which a coloured shape on "
            "grey noise is all the evidence, for a network that is right on all of them: the map that is the evidence, "
            "Grad-CAM, and the three controls. A dot is an image, the bar is the mean. Cost is what one map of one "
            "image takes with the parameters that are shown, counted on those images; metrics of one run share much "
            "of it.",
            "",
            table(("name", "what", "kind", "columns", "paper"), rows),
        ]
    )


# --- pictures and costs


@cache
def _scene() -> tuple[nn.Module, Batch]:
    data = Synthetic(length=_IMAGES, size=_SIZE, decides="colour", scenes=True)
    model = data.model()
    return model, data.batch(range(_IMAGES), model.spec)


def _traced(methods: list[Explainer], count: int = _IMAGES) -> tuple[list[Explanation], Trace, Batch]:
    model, batch = _scene()
    batch = batch[:count]
    trace = record_for(model, batch.x, methods, batch.target, spec=model.spec, grad=True)
    return explain_trace(trace, methods), trace, batch


@cache
def _passes(name: str) -> float:
    """Images through the model for one map of one image."""
    found, trace, batch = _traced(resolve("gradcam"), count=2)
    count = 0

    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal count
        count += len(inputs[0])

    # Metrics of randomized weights run a copy of the model, which takes the hook along.
    handle = trace.model.register_forward_pre_hook(add)
    try:
        metrics.create(name).measure(found[0], trace, batch)
    finally:
        handle.remove()
    return count / len(batch)


def _picture(name: str) -> Path:
    metric = metrics.create(name)
    library = ROOT / "xattn"
    parts = (
        repr(metric), Path(__file__), Path(inspect.getfile(type(metric))), library / "functional",
        library / "metrics", library / "data" / "synthetic.py",
    )  # fmt: skip
    return kept(f"metrics/{slug(name)}.svg", parts, lambda path: _draw(metric, path))


def _draw(metric: Metric, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    methods = [Evidence(), *resolve(["gradcam", f"random:grid={_SIZE}", "center", "edges"])]
    found, trace, batch = _traced(methods)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean of nothing is NaN
        values = [
            {column: value.double().numpy() for column, value in rows.items()}
            for rows in metric.measure_many(found, trace, batch)
        ]
        pooled = [metric.pool({c: torch.from_numpy(v) for c, v in row.items()}) for row in values]
    labels = [method.name for method in methods]
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "svg.hashsalt": "xattn"}):
        series = [name for name in metric.columns if _SERIES.match(name)]
        shown = _kinds(series) or _first(metric.columns)
        shown = shown[:2] + [name for name in metric.pooled][: 2 - len(shown[:2])]
        figure = Figure((7, 1.9), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for axis, name in zip(axes, shown, strict=True):
            if series and name not in metric.pooled:
                _lines(axis, name, series, labels, values)
            elif name in metric.pooled:
                _dots(axis, [np.array([row[name]]) for row in pooled], labels)
            else:
                _dots(axis, [row[name] for row in values], labels)
            direction = {**metric.columns, **metric.pooled}.get(name, NEITHER)
            axis.set_title(name + ("" if direction is NEITHER else f", {direction.value} is better"), fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _kinds(series: list[str]) -> list[str]:
    """Names of the lines that columns of numbers make."""
    return [*dict.fromkeys(match[1] for match in map(_SERIES.match, series) if match)]


def _first(columns: Any) -> list[str]:
    """The columns that are drawn: those with a direction before the others."""
    return sorted(columns, key=lambda name: columns[name] is NEITHER)[:2]


def _dots(axis: Any, rows: list[Any], labels: list[str]) -> None:
    rng = np.random.default_rng(0)
    for place, row in enumerate(rows):
        color = f"C{place}"
        there = row[~np.isnan(row)]
        height = place + rng.uniform(-0.22, 0.22, len(there))
        axis.plot(there, height, ".", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
        if len(there):
            axis.plot([there.mean()] * 2, [place - 0.38, place + 0.38], color=color, linewidth=2)
        else:
            axis.text(0.5, place, "undefined", transform=axis.get_yaxis_transform(), ha="center", va="center")
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    if all(len(row) == 1 for row in rows):
        axis.margins(x=0.15)


def _lines(axis: Any, name: str, series: list[str], labels: list[str], values: list[dict[str, Any]]) -> None:
    mine = [column for column in series if _SERIES.match(column)[1] == name]  # type: ignore[index]
    x = [int(_SERIES.match(column)[2]) / 100 for column in mine]  # type: ignore[index]
    for place, (label, row) in enumerate(zip(labels, values, strict=True)):
        means = [np.nanmean(row[column]) if not np.isnan(row[column]).all() else np.nan for column in mine]
        axis.plot(x, means, color=f"C{place}", label=label, linewidth=1.2)
    if axis.get_subplotspec().is_first_col():
        axis.legend(fontsize=6, frameon=False)
