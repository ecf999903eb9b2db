"""From rows of scores to what is compared: panels of methods by images, summaries of them, and tables as files."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xattn.benchmark.statistics import (
    AgainstBest,
    Friedman,
    Intervals,
    Reliability,
    against_best,
    friedman,
    holm,
    intervals,
    kendall,
    pairwise,
    reliability,
)
from xattn.benchmark.store import PREDICTION, READING, REFUSED, STATUS, Store
from xattn.errors import XattnError
from xattn.explainer import Family
from xattn.explainers import explainers
from xattn.files import whole_file
from xattn.metric import HIGHER, LOWER, NEITHER, Direction, Metric
from xattn.metrics import metrics as known_metrics

Array = NDArray[np.float64]
ALPHA = 0.05
ARROWS = {HIGHER: "↑", LOWER: "↓", NEITHER: ""}
_POOLED = 200  # resamples of values of a whole data set, which are dear
MARK = "†"
"""Behind a score that is not better than that of the best control."""

# The columns of the short tables and of the figures, if they were measured.
HEADLINE = (
    ("insertion", "insertion"), ("deletion", "deletion"), ("brnpa2021", "dauc_brnpa2021"),
    ("brnpa2021", "iauc_brnpa2021"), ("grid_pointing_game", "cell"), ("energy_pointing_game", "energy"),
    ("pointing_game", "hit"), ("pixel_auc", "average_precision"), ("average_drop", "average_drop"), ("road", "road"),
    ("parameter_randomization", "spearman"), ("max_sensitivity", "max_sensitivity"), ("sparsity", "sparsity"),
)  # fmt: skip
SIZES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the image between which objects are counted as one size."""


@dataclass(frozen=True)
class Entry:
    """A method on a model."""

    model: str
    method: str

    @property
    def family(self) -> Family | None:
        """Kind of the method; None for one that is not known here."""
        try:
            return explainers.parse(self.method).family
        except XattnError:
            return None

    @property
    def control(self) -> bool:
        """It knows nothing of the model."""
        return self.family is Family.CONTROL


@dataclass(frozen=True)
class Column:
    """One value that a metric gives."""

    metric: str
    name: str
    direction: Direction
    family: str = ""
    pooled: bool = False
    only: bool = False  # the metric gives no other
    counted: bool = False  # says nothing by itself: the metric makes a value of it for a whole data set

    @property
    def title(self) -> str:
        """How tables call it: the metric, its parameters, and which of its columns."""
        base, _, parameters = self.metric.partition(":")
        alone = self.name if self.pooled else base if self.only else ""
        own = alone or (self.name if self.name.endswith(base) or self.name.startswith(base) else f"{base}.{self.name}")
        return own + (f" ({parameters})" if parameters else "")

    @property
    def arrow(self) -> str:
        """Title and which way is better."""
        return f"{self.title} {ARROWS[self.direction]}".strip()

    @property
    def sign(self) -> int:
        """Turns values so that higher is better."""
        return -1 if self.direction is LOWER else 1


class Scores:
    """All scores of a run; `names` are those of the images, by their number.

    Args:
        folder: where the run is.

    Raises:
        DataError: if there are no scores.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        table = Store(folder).table()
        names = ("dataset", "model", "method", "metric", "column")
        codes = {name: table[name].combine_chunks() for name in (*names, "image")}
        indices = {name: _indices(array) for name, array in codes.items()}
        texts = {name: _texts(array) for name, array in codes.items()}
        changes = np.zeros(table.num_rows, bool)
        changes[:1] = True
        for name in names:
            changes[1:] |= np.diff(indices[name]) != 0
        starts = np.flatnonzero(changes)
        ends = [*starts[1:].tolist(), table.num_rows]
        values = table["value"].to_numpy()
        self._runs: dict[tuple[str, ...], tuple[NDArray[np.int64], Array]] = {}
        for start, end in zip(starts.tolist(), ends, strict=True):
            key = tuple(texts[name][indices[name][start]] for name in names)
            self._runs[key] = (indices["image"][start:end], values[start:end])
        self.rows = table.num_rows
        self.names = texts["image"]
        self.images = len(self.names)
        self.datasets = list(dict.fromkeys(key[0] for key in self._runs))

    def models(self, dataset: str) -> list[str]:
        """Models that were scored on a data set, in the order of the configuration."""
        found = list(dict.fromkeys(key[1] for key in self._runs if key[0] == dataset))
        entries = (self.manifest.get("config") or {}).get("models", ())
        order = [entry.get("label") or entry.get("name") for entry in entries]
        return sorted(found, key=lambda model: (order.index(model) if model in order else len(order), model))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the run wrote about itself."""
        return Store(self.folder).read_manifest().model_dump(mode="json")

    def entries(self, dataset: str, model: str) -> list[Entry]:
        """Methods with at least one score on a model."""
        own = (STATUS, PREDICTION, READING)
        found = dict.fromkeys(k[2] for k in self._runs if k[:2] == (dataset, model) and k[3] not in own)
        return [Entry(model, method) for method in found]

    def columns(self, dataset: str, entries: Sequence[Entry]) -> list[Column]:
        """Everything that was measured of some entries."""
        models = {entry.model for entry in entries}
        found = dict.fromkeys((k[3], k[4]) for k in self._runs if k[0] == dataset and k[1] in models and k[2])
        return [_column(metric, name) for metric, name in found if metric != STATUS]

    def values(self, dataset: str, entries: Sequence[Entry], metric: str, column: str) -> tuple[Array, list[int]]:
        """Values (N, M) on the images where any of the entries was scored, and the numbers of these images."""
        runs = [self._runs.get((dataset, e.model, e.method, metric, column)) for e in entries]
        scored = [images for run in runs if run is not None for images in (run[0],)]
        images = np.unique(np.concatenate(scored)) if scored else np.zeros(0, np.int64)
        found = np.full((len(images), len(entries)), np.nan)
        for j, run in enumerate(runs):
            if run is not None:
                found[np.searchsorted(images, run[0]), j] = run[1]
        return found, images.tolist()

    def share(self, dataset: str, entry: Entry) -> float:
        """Coverage: share of the images whose map is fine."""
        run = self._runs.get((dataset, entry.model, entry.method, STATUS, "ok"))
        return float(run[1].mean()) if run is not None and len(run[1]) else math.nan

    def prediction(self, dataset: str, model: str, column: str) -> dict[int, float]:
        """A fact about each image, by the image's number: `correct`, `probability` or `object_share`."""
        run = self._runs.get((dataset, model, "", PREDICTION, column))
        return {} if run is None else dict(zip(run[0].tolist(), run[1].tolist(), strict=True))

    def costs(self, dataset: str, model: str) -> dict[str, dict[str, float]]:
        """What methods cost alone, where it was measured."""
        methods = Store(self.folder).read_costs(dataset, model).methods
        return {name: cost.model_dump() for name, cost in methods.items()}

    def refused(self) -> dict[tuple[str, str], str]:
        """Reason for each (model, method) that refused images."""
        return {
            (row.model, row.method): row.note.removeprefix(REFUSED)
            for row in Store(self.folder).notes(STATUS)
            if row.note.startswith(REFUSED)
        }

    def unreadable(self) -> dict[tuple[str, str], str]:
        """Reason for each (data set, image) that could not be read."""
        return {(row.dataset, row.image): row.note for row in Store(self.folder).notes(READING)}


def _indices(array: Any) -> NDArray[np.int64]:
    whole = array if not hasattr(array, "chunks") else array.chunk(0)
    return whole.indices.to_numpy().astype(np.int64)


def _texts(array: Any) -> list[str]:
    whole = array if not hasattr(array, "chunks") else array.chunk(0)
    return list(whole.dictionary.to_pylist())


def _column(metric: str, name: str) -> Column:
    try:
        known = known_metrics.parse(metric)
    except XattnError:  # of another distribution that is not installed here
        return Column(metric, name, NEITHER)
    direction = known.columns.get(name, NEITHER)
    return Column(
        metric,
        name,
        direction,
        known.family,
        only=len(known.columns) == 1,
        counted=bool(known.pooled) and direction is NEITHER,
    )


@dataclass(frozen=True, eq=False)
class Summary:
    """One column over all entries of a panel.

    Args:
        column: what.
        values: (N, M).
        images: numbers of the N images.
        spread: means with intervals.
        rank: (M,) of the means, 1 is best; NaN where there is no direction or no value.
        best: tests against the best entry; None where there is no direction.
        friedman: ranks in each image; None where there is no direction.
        unproven: (M,), methods that are not better than the best control (paired Wilcoxon, Holm); no control is one,
            and nothing where there is no direction or no control.
        reliability: agreement of images on the order; None where there is no direction.
    """

    column: Column
    values: Array
    images: list[int]
    spread: Intervals
    rank: Array
    unproven: NDArray[np.bool_]
    best: AgainstBest | None = None
    friedman: Friedman | None = None
    reliability: Reliability | None = None

    def marked(self, j: int) -> bool:
        """A method that has to be marked in tables; controls are called so."""
        return bool(self.unproven[j]) and not math.isnan(self.spread.mean[j])


@dataclass(eq=False)
class Panel:
    """Entries that are compared with each other on one data set.

    Args:
        name: for files and headings.
        dataset: the data set.
        entries: what is compared.
        labels: of the entries.
        summaries: by (metric, column).
        coverage: (M,).
        costs: for each entry seconds, forwards, backwards; empty where not measured.
        left_out: reasons of methods that are not there.
    """

    name: str
    dataset: str
    entries: list[Entry]
    labels: list[str]
    summaries: dict[tuple[str, str], Summary]
    coverage: Array
    costs: list[dict[str, float]]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def directed(self) -> list[Summary]:
        """Columns of which one way is better, with at least one value."""
        return [
            s for s in self.summaries.values()
            if s.column.direction is not NEITHER and not np.isnan(s.spread.mean).all()
        ]  # fmt: skip

    def headline(self, count: int, *, directed: bool = False) -> list[Summary]:
        """The columns that matter most, at most `count`."""
        # Of several protocols of a metric the one with the fewest parameters stands for it.
        there = sorted(self.summaries.values(), key=lambda s: (s.column.metric.count("="), s.column.metric))
        chosen = [s for m, c in HEADLINE for s in there if (s.column.metric.split(":")[0], s.column.name) == (m, c)]
        chosen = [s for i, s in enumerate(chosen) if _key(s) not in {_key(t) for t in chosen[:i]}]
        for s in self.directed:  # then the first column of each other metric
            if s.column.metric.split(":")[0] not in {t.column.metric.split(":")[0] for t in chosen}:
                chosen.append(s)
        return [s for s in chosen if s in self.directed or not directed][:count]

    @cached_property
    def mean_rank(self) -> Array:
        """Mean (M,) over the directed headline columns of the rank; NaN without any."""
        ranks = np.array([s.rank for s in self.headline(8, directed=True)])
        if not len(ranks):
            return np.full(len(self.entries), np.nan)
        there = ~np.isnan(ranks)
        with np.errstate(invalid="ignore"):
            mean: Array = np.where(there, ranks, 0).sum(0) / there.sum(0)
        return mean

    @cached_property
    def order(self) -> list[int]:
        """Entries from best to worst mean rank."""
        return sorted(range(len(self.entries)), key=lambda j: (math.isnan(self.mean_rank[j]), self.mean_rank[j], j))

    @property
    def controls(self) -> list[int]:
        """Places of the controls."""
        return [j for j, entry in enumerate(self.entries) if entry.control]


def _key(summary: Summary) -> tuple[str, str]:
    return summary.column.metric.split(":")[0], summary.column.name


def panels(scores: Scores, *, resamples: int = 1000, seed: int = 0) -> list[Panel]:
    """One panel for each model on each data set, and one across models where there are several.

    Across models: all methods of the first model beside the attention of the others, as in the BR-NPA paper (Gomez et
    al. 2022, arXiv:2106.02566, tables 3 and 4). There, too, each is held against the controls on its own model.
    """
    found = []
    refused = scores.refused()
    drawn: dict[tuple[str, str, Entry], Array] = {}
    own: dict[tuple[str, Entry, tuple[str, str]], bool] = {}  # whether an entry is marked among those of its model
    for dataset in scores.datasets:
        models = [m for m in scores.models(dataset) if scores.entries(dataset, m)]
        groups = {model: scores.entries(dataset, model) for model in models}
        if len(models) > 1:
            first, *others = models
            attention = [e for m in others for e in groups[m] if e.family is Family.ATTENTION]
            groups["across models"] = [*groups[first], *(attention or [e for m in others for e in groups[m]])]
        for name, entries in groups.items():
            several = len({entry.model for entry in entries}) > 1
            summaries = {}
            columns = scores.columns(dataset, entries)
            for column in columns:
                if not column.counted:
                    values, images = scores.values(dataset, entries, column.metric, column.name)
                    summaries[column.metric, column.name] = summarize(column, values, images, entries, resamples, seed)
            for metric in dict.fromkeys(column.metric for column in columns if column.counted):
                for pooled in _pooled(scores, dataset, metric, entries, min(resamples, _POOLED), seed, drawn):
                    summaries[metric, pooled.column.name] = pooled
            known = any(entry.control for entry in entries)
            for key, s in summaries.items():
                if several:
                    marks = [known and own.get((dataset, e, key), False) for e in entries]
                    summaries[key] = replace(s, unproven=np.array(marks))
                else:
                    own |= {(dataset, e, key): bool(s.unproven[j]) or not known for j, e in enumerate(entries)}
            costs = {model: scores.costs(dataset, model) for model in {e.model for e in entries}}
            found.append(
                Panel(
                    name=f"{dataset}, {name}",
                    dataset=dataset,
                    entries=entries,
                    labels=[f"{e.method} ({e.model})" if several else e.method for e in entries],
                    summaries=summaries,
                    coverage=np.array([scores.share(dataset, e) for e in entries]),
                    costs=[costs[e.model].get(e.method, {}) for e in entries],
                    left_out={
                        m: reason for (model, m), reason in refused.items() if model in {e.model for e in entries}
                    },
                )
            )
    return found


def summarize(
    column: Column, values: Array, images: list[int], entries: Sequence[Entry], resamples: int = 1000, seed: int = 0
) -> Summary:
    """Statistics of one column (N, M)."""
    spread = intervals(values, resamples=resamples, seed=seed)
    nothing = np.full(values.shape[1], np.nan)
    if column.direction is NEITHER or np.isnan(spread.mean).all():
        return Summary(column, values, images, spread, nothing, np.zeros(values.shape[1], np.bool_))
    higher = column.direction is HIGHER
    return Summary(
        column,
        values,
        images,
        spread,
        rank_of(spread.mean, higher),
        _unproven(values, spread.mean * column.sign, [e.control for e in entries]),
        best=against_best(values, higher=higher, resamples=resamples, seed=seed),
        friedman=friedman(_compared(values), higher=higher),
        reliability=reliability(_compared(values) * column.sign, resamples=min(resamples, 200), seed=seed),
    )


def _compared(values: Array) -> Array:
    """The table without entries that have no value at all, which would empty every image."""
    return values[:, ~np.isnan(values).all(0)]


def rank_of(mean: Array, higher: bool) -> Array:
    """Rank (M,) of means, 1 is best, equal ones share theirs; NaN stays."""
    x = -mean if higher else mean
    below = (x[None, :] < x[:, None]).sum(1)
    same = (x[None, :] == x[:, None]).sum(1)
    return np.where(np.isnan(x), np.nan, below + (same + 1) / 2)


def _unproven(values: Array, mean: Array, control: Sequence[bool]) -> NDArray[np.bool_]:
    """Methods (M,) not better than the control with the best mean; `mean` is turned so that higher is better."""
    marks = np.array(control) & ~np.isnan(mean)
    if not marks.any():
        return np.zeros(len(mean), np.bool_)
    best = int(np.nanargmax(np.where(marks, mean, np.nan)))
    p = np.full(len(mean), np.nan)
    for j in range(len(mean)):
        if not control[j] and not math.isnan(mean[j]):
            p[j] = pairwise(values[:, [j, best]], correct=False).p[0, 1]
    with np.errstate(invalid="ignore"):
        better = (holm(p) < ALPHA) & (mean > mean[best])
    found: NDArray[np.bool_] = ~better & ~np.array(control)
    return found


def _pooled(
    scores: Scores,
    dataset: str,
    label: str,
    entries: Sequence[Entry],
    resamples: int,
    seed: int,
    known: dict[tuple[str, str, Entry], Array],
) -> list[Summary]:
    """Values of a whole data set, such as MaxBoxAcc, with percentile intervals over resampled images.

    What was drawn for an entry is kept in `known`: the next panel may hold it too.
    """
    metric = known_metrics.parse(label)
    found = [scores.values(dataset, entries, label, name) for name in metric.columns]
    images = found[0][1]
    if any(own != images for _, own in found):
        return []  # a part of its columns alone
    whole = np.stack([values for values, _ in found])  # (columns, N, M)
    spreads = np.full((3, len(metric.pooled), len(entries)), np.nan)
    counts = np.zeros(len(entries), np.int64)
    for j in range(len(entries)):
        own = torch.from_numpy(whole[:, ~np.isnan(whole[:, :, j]).any(0), j])
        n = counts[j] = own.shape[1]
        if n == 0:
            continue
        key = dataset, label, entries[j]
        if key not in known:
            known[key] = np.quantile(_resampled_pool(metric, own, resamples, seed), [0.025, 0.975], axis=0)
        spreads[0, :, j] = _pool(metric, own)
        spreads[1:, :, j] = known[key]
    summaries = []
    for k, (name, direction) in enumerate(metric.pooled.items()):
        mean, low, high = spreads[:, k]
        summaries.append(
            Summary(
                Column(label, name, direction, metric.family, pooled=True),
                np.full((0, len(entries)), np.nan),
                [],
                Intervals(mean, low, high, counts, len(images) - counts),
                rank_of(mean, direction is HIGHER),
                np.zeros(len(entries), np.bool_),  # one value a method: there is nothing to test
            )
        )
    return summaries


def _pool(metric: Metric, columns: torch.Tensor) -> list[float]:
    found = metric.pool(dict(zip(metric.columns, columns, strict=True)))
    return [found[name] for name in metric.pooled]


def _resampled_pool(metric: Metric, columns: torch.Tensor, resamples: int, seed: int) -> Array:
    """Values (resamples, P) of resampled images, from columns (C, N)."""
    rng = np.random.default_rng(seed)
    n = columns.shape[1]
    drawn = [_pool(metric, columns[:, torch.from_numpy(rng.integers(0, n, n))]) for _ in range(resamples)]
    return np.array(drawn, np.float64)


def agreement(summaries: Sequence[Summary]) -> Array:
    """Kendall's tau (C, C) between the rankings of the entries by columns, each turned so that higher is better."""
    return kendall([s.spread.mean * s.column.sign for s in summaries])[0]


def protocols(panel: Panel) -> list[Summary]:
    """The directed columns of the perturbation metrics: the same question asked in many ways."""
    return [s for s in panel.directed if s.column.family == "perturbation"]


def by_size(panel: Panel, scores: Scores, summary: Summary) -> tuple[list[str], Array, list[int]]:
    """Means of a column by the size of the object.

    Returns:
        Names of the sizes, means (sizes, M), and the number of images of each.
    """
    share: dict[int, float] = {}
    for model in {entry.model for entry in panel.entries}:
        share |= scores.prediction(panel.dataset, model, "object_share")
    sizes = np.array([share.get(image, math.nan) for image in summary.images])
    names, means, counts = [], [], []
    for low, high in itertools.pairwise(SIZES):
        inside = (sizes > low) & (sizes <= high)
        if not inside.any():
            continue
        names.append(f"{100 * low:.0f}-{100 * high:.0f} %")
        means.append(intervals(summary.values[inside], resamples=1).mean)
        counts.append(int(inside.sum()))
    return names, np.array(means), counts


# --- tables as files


Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """A table for CSV, Markdown and LaTeX.

    Args:
        title: what it shows.
        header: names of the columns.
        rows: numbers or texts; the files round numbers, CSV keeps them.
        notes: below it.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def write(self, folder: Path, name: str) -> None:
        """Write `name.csv`, `name.md` and `name.tex`."""
        folder.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(folder / f"{name}.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as stream,
        ):
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows([["" if _nothing(c) else c for c in row] for row in self.rows])
        for suffix, text in (("md", self.markdown()), ("tex", self.latex())):
            with whole_file(folder / f"{name}.{suffix}") as temporary:
                temporary.write_text(text, encoding="utf-8")

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        numeric = [self._numeric(i) for i in range(len(self.header))]
        lines = [
            "| " + " | ".join(_escape(h) for h in self.header) + " |",
            "| " + " | ".join("---:" if n else "---" for n in numeric) + " |",
            *("| " + " | ".join(_escape(text_of(c)) for c in row) + " |" for row in self.rows),
        ]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """The table as a `tabular` for `booktabs`."""
        align = "".join("r" if self._numeric(i) else "l" for i in range(len(self.header)))
        lines = [
            f"% {self.title}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(_tex(h) for h in self.header) + " \\\\",
            "\\midrule",
            *(" & ".join(_tex(text_of(c)) for c in row) + " \\\\" for row in self.rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {note}" for note in self.notes),
        ]
        return "\n".join(lines) + "\n"

    def _numeric(self, column: int) -> bool:
        texts = [text_of(row[column]) for row in self.rows]
        return any(texts) and all(not text or text[:1] in "0123456789-<" for text in texts)


def _nothing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def text_of(cell: Cell) -> str:
    """A cell for reading.

    >>> [text_of(c) for c in ("a", 3, 0.12345, 1234.5, float("nan"), None, 2e-7)]
    ['a', '3', '0.123', '1234', '', '', '2e-07']
    """
    if _nothing(cell):
        return ""
    if isinstance(cell, float):
        size = abs(cell)
        if size == 0:
            return "0"
        return f"{cell:.3f}" if 1e-3 <= size < 100 else f"{cell:.0f}" if 100 <= size < 1e6 else f"{cell:.0e}"
    return str(cell)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", MARK: r"$^{\dagger}$", "<": "$<$", "~": r"\textasciitilde{}",
    "τ": r"$\tau$", "…": r"\ldots{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def interval_text(summary: Summary, j: int) -> str:
    """Mean with its interval and the mark, as `0.512 [0.490, 0.533]†`; empty where there is no value."""
    spread = summary.spread
    if math.isnan(spread.mean[j]):
        return ""
    inside = f"{text_of(float(spread.mean[j]))} [{text_of(float(spread.low[j]))}, {text_of(float(spread.high[j]))}]"
    return inside + (MARK if summary.marked(j) else "")


MARK_NOTE = f"{MARK} not better than the best control (paired Wilcoxon test with Holm's correction, p < {ALPHA})."


def leaderboard(panel: Panel) -> Table:
    """Entries from best to worst with the headline columns."""
    shown = panel.headline(8)
    header = ("method", "mean rank", "maps ok", *(s.column.arrow for s in shown))
    rows: list[tuple[Cell, ...]] = [
        (
            panel.labels[j] + (" (control)" if panel.entries[j].control else ""),
            "" if math.isnan(panel.mean_rank[j]) else f"{panel.mean_rank[j]:.2f}",
            f"{panel.coverage[j]:.1%}",
            *(interval_text(s, j) for s in shown),
        )
        for j in panel.order
    ]
    counts = "; ".join(f"{s.column.title}: {len(s.images)}" for s in shown if s.images)
    notes = (
        "Mean over images [95 % bootstrap interval]; mean rank over the columns with an arrow, which points to the "
        "better side; maps ok: share of maps that are neither constant nor NaN and add up to what they should.",
        MARK_NOTE,
        f"Images: {counts}.",
    )
    return Table(f"Leaderboard: {panel.name}", header, rows, notes)


def full_table(panel: Panel) -> Table:
    """Everything about every column and entry, one row each."""
    header = (
        "metric", "column", "better", "method", "model", "n", "nan", "maps ok", "mean", "low", "high", "rank",
        "mean rank in images", "difference to best", "p (Holm)", "beats controls",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for s in panel.summaries.values():
        there = np.flatnonzero(~np.isnan(s.values).all(0)).tolist()
        for j in np.argsort(s.rank, kind="stable").tolist():  # NaN comes last
            in_images = s.friedman.mean_ranks[there.index(j)] if s.friedman is not None and j in there else math.nan
            rows.append(
                (
                    s.column.metric,
                    s.column.name,
                    s.column.direction.value,
                    panel.entries[j].method,
                    panel.entries[j].model,
                    int(s.spread.n[j]),
                    int(s.spread.missing[j]),
                    float(panel.coverage[j]),
                    float(s.spread.mean[j]),
                    float(s.spread.low[j]),
                    float(s.spread.high[j]),
                    float(s.rank[j]),
                    float(in_images),
                    float(s.best.difference[j]) if s.best is not None else None,
                    float(s.best.adjusted[j]) if s.best is not None else None,
                    _above_controls(panel, s, j),
                )
            )
    return Table(f"All scores: {panel.name}", header, rows)


def _above_controls(panel: Panel, s: Summary, j: int) -> str | None:
    if s.best is None or panel.entries[j].control or not panel.controls or math.isnan(s.spread.mean[j]):
        return None
    return "no" if s.unproven[j] else "yes"


def column_table(panel: Panel) -> Table:
    """One row for each directed column: who wins, whether methods differ at all, and whether images agree."""
    header = (
        "column",
        "images",
        "best",
        "best control",
        "methods above controls",
        "Friedman p",
        "Krippendorff's alpha",
        "low",
        "high",
    )
    rows: list[tuple[Cell, ...]] = []
    for s in panel.directed:
        turned = s.spread.mean * s.column.sign
        controls = [j for j in panel.controls if not math.isnan(turned[j])]
        methods = [j for j, e in enumerate(panel.entries) if not e.control and not math.isnan(turned[j])]
        best = int(np.nanargmax(turned))
        tested = controls and s.best is not None
        above = f"{sum(not s.unproven[j] for j in methods)} of {len(methods)}" if tested else None
        rows.append(
            (
                s.column.arrow,
                len(s.images) or int(s.spread.n.max(initial=0)),
                panel.labels[best] + (" (control)" if panel.entries[best].control else ""),
                panel.labels[controls[int(np.argmax(turned[controls]))]] if controls else None,
                above,
                s.friedman.p if s.friedman is not None else None,
                s.reliability.alpha if s.reliability is not None else None,
                s.reliability.low if s.reliability is not None else None,
                s.reliability.high if s.reliability is not None else None,
            )
        )
    notes = (
        "Krippendorff's alpha over the ranks of the methods in each image (95 % bootstrap interval): 1 where images "
        "agree on the order of methods, 0 where they agree no more than by chance.",
    )
    return Table(f"Columns: {panel.name}", header, rows, notes)


def protocol_table(panel: Panel) -> Table:
    """Who wins under each protocol, and how its ranking agrees with that of the others."""
    shown = protocols(panel)
    tau = agreement(shown)
    header = (
        "protocol",
        "best",
        "second",
        "rank of random",
        "controls among the first three",
        "median Kendall τ to the others",
    )
    rows: list[tuple[Cell, ...]] = []
    for i, s in enumerate(shown):
        order = [j for j in np.argsort(s.rank, kind="stable").tolist() if not math.isnan(s.rank[j])]
        random = next((s.rank[j] for j in order if panel.entries[j].method == "random"), math.nan)
        others = np.delete(tau[i], i)
        others = others[~np.isnan(others)]
        rows.append(
            (
                s.column.arrow,
                panel.labels[order[0]] if order else None,
                panel.labels[order[1]] if len(order) > 1 else None,
                f"{random:.0f} of {len(order)}" if not math.isnan(random) else None,
                ", ".join(panel.labels[j] for j in order[:3] if panel.entries[j].control) or "none",
                float(np.median(others)) if len(others) else None,
            )
        )
    notes = ("Kendall's τ between the rankings of the methods by their means.",)
    return Table(f"Protocols: {panel.name}", header, rows, notes)


def matrix_table(title: str, names: Sequence[str], values: Array) -> Table:
    """A square of numbers."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(float(v) for v in row)) for name, row in zip(names, values.tolist(), strict=True)
    ]
    return Table(title, ("", *names), rows)


def size_table(panel: Panel, scores: Scores, shown: Iterable[Summary]) -> Table:
    """Means by the size of the object."""
    rows: list[tuple[Cell, ...]] = []
    header: tuple[str, ...] = ("column", "object covers", "images", *panel.labels)
    for s in shown:
        names, means, counts = by_size(panel, scores, s)
        rows += [
            (s.column.arrow, name, count, *(float(v) for v in row))
            for name, row, count in zip(names, means, counts, strict=True)
        ]
    return Table(f"By size of the object: {panel.name}", header, rows)


def cost_table(panel: Panel) -> Table:
    """What the methods cost alone."""
    header = ("method", "seconds per image", "forward passes", "backward passes", "peak memory per image (MiB)")
    order = sorted(range(len(panel.entries)), key=lambda j: panel.costs[j].get("seconds", math.inf))
    rows: list[tuple[Cell, ...]] = [
        (panel.labels[j], *(panel.costs[j].get(name) for name in ("seconds", "forwards", "backwards", "peak_mb")))
        for j in order
        if panel.costs[j]
    ]
    return Table(f"Cost: {panel.name}", header, rows)
