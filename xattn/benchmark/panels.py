"""Panels: methods that are compared on one data set, with statistics of every column."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xattn.benchmark.equivalence import beats
from xattn.benchmark.scores import Column, Cost, Entry, Scores, shortened
from xattn.benchmark.statistics import (
    AgainstBest,
    Friedman,
    Intervals,
    Pairwise,
    Reliability,
    against_best,
    friedman,
    intervals,
    pairwise,
    pooled_intervals,
    reliability,
)
from xattn.explainer import Family
from xattn.functional.statistics import Array, kendall
from xattn.metric import HIGHER, NEITHER
from xattn.metrics import metrics as known_metrics

_POOLED = 200  # resamples of values of a whole data set, which are expensive

# The columns of the short tables and of the figures, if they were measured.
HEADLINE = (
    ("insertion", "insertion"), ("deletion", "deletion"), ("brnpa2021", "dauc_brnpa2021"),
    ("brnpa2021", "iauc_brnpa2021"), ("grid_pointing_game", "cell"), ("energy_pointing_game", "energy"),
    ("pointing_game", "hit"), ("pixel_auc", "average_precision"), ("average_drop", "average_drop"), ("road", "road"),
    ("parameter_randomization", "spearman"), ("max_sensitivity", "max_sensitivity"), ("sparsity", "sparsity"),
)  # fmt: skip
SOUND = 0.9
"""A method with a smaller share of sound maps is not ranked, nor its scores shown: they are of no explanation."""
SIZES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the image between which objects are counted as one size."""


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
        unproven: (M,), methods that are not shown to beat every control (`equivalence.beats`); no control is one, and
            nothing where there is no direction or no control, or methods were not ranked on one grid.
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

    @cached_property
    def pairs(self) -> Pairwise:
        """Every entry beside every other."""
        return pairwise(self.values)

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
        coverage: (M,) share of sound maps; entries below `SOUND` have no values in the summaries.
        costs: for each entry seconds, forwards, backwards; empty where not measured.
        left_out: reasons of methods that are not there.
    """

    name: str
    dataset: str
    entries: list[Entry]
    labels: list[str]
    summaries: dict[tuple[str, str], Summary]
    coverage: Array
    costs: list[Cost]
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
        def plain(s: Summary) -> tuple[bool, int, str]:
            return not s.column.matched, s.column.metric.count("="), s.column.metric

        there = sorted(self.summaries.values(), key=plain)
        chosen = [s for key in HEADLINE for s in there if _key(s) == key]
        chosen = [s for i, s in enumerate(chosen) if _key(s) not in {_key(t) for t in chosen[:i]}]
        for s in self.directed:  # then the first column of each other metric
            if s.column.base not in {t.column.base for t in chosen}:
                chosen.append(s)
        return [s for s in chosen if s in self.directed or not directed][:count]

    @property
    def controls(self) -> list[int]:
        """Places of the controls."""
        return [j for j, entry in enumerate(self.entries) if entry.control]


def _key(summary: Summary) -> tuple[str, str]:
    return summary.column.base, summary.column.name


def panels(scores: Scores, *, resamples: int = 1000, seed: int = 0) -> list[Panel]:
    """One panel for each model on each data set, and one across models where there are several.

    Across models: all methods of the first model beside the attention of the others, as in the BR-NPA paper (Gomez et
    al. 2022, arXiv:2106.02566, tables 3 and 4). There, too, each is held against the controls on its own model.
    """
    result = []
    refused = scores.refused()
    drawn: dict[tuple[str, str, Entry], dict[str, tuple[float, float, float]]] = {}
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
            coverage = np.array([scores.share(dataset, e) for e in entries])
            for column in columns:
                if not column.counted:
                    values, images = scores.values(dataset, entries, column.metric, column.name)
                    values = np.where(coverage < SOUND, np.nan, values)
                    summaries[column.metric, column.name] = summarize(column, values, images, entries, resamples, seed)
            for metric in dict.fromkeys(column.metric for column in columns if column.counted):
                for pooled in _pooled(scores, dataset, metric, entries, min(resamples, _POOLED), seed, drawn, coverage):
                    summaries[metric, pooled.column.name] = pooled
            known = any(entry.control for entry in entries)
            for key, s in summaries.items():
                if several:
                    marks = [known and own.get((dataset, e, key), False) for e in entries]
                    summaries[key] = replace(s, unproven=np.array(marks))
                else:
                    own |= {(dataset, e, key): bool(s.unproven[j]) or not known for j, e in enumerate(entries)}
            costs = {model: scores.costs(dataset, model) for model in {e.model for e in entries}}
            result.append(
                Panel(
                    name=f"{dataset}, {name}",
                    dataset=dataset,
                    entries=entries,
                    labels=[shortened(f"{e.method} ({e.model})" if several else e.method) for e in entries],
                    summaries=summaries,
                    coverage=coverage,
                    costs=[costs[e.model].get(e.method, {}) for e in entries],
                    left_out={
                        m: reason for (model, m), reason in refused.items() if model in {e.model for e in entries}
                    },
                )
            )
    return result


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
        # Where maps were ranked on grids of their own, a finer control is no measure of a coarse method.
        _unproven(
            values * column.sign,
            [not e.control for e in entries],
            [column.matched and _held(column, e) for e in entries],
        ),
        best=against_best(values, higher=higher, resamples=resamples, seed=seed),
        friedman=friedman(_compared(values), higher=higher),
        reliability=reliability(_compared(values) * column.sign, resamples=min(resamples, 200), seed=seed),
    )


def _held(column: Column, entry: Entry) -> bool:
    """Whether methods are held against an entry: of a map that ignores the model, sanity checks are to tell them."""
    return entry.blind if column.family == "sanity" else entry.control


def _compared(values: Array) -> Array:
    """The table without entries that have no value at all, which would empty every image."""
    return values[:, ~np.isnan(values).all(0)]


def rank_of(mean: Array, higher: bool) -> Array:
    """Rank (M,) of means, 1 is best, equal ones share theirs; NaN stays."""
    x = -mean if higher else mean
    below = (x[None, :] < x[:, None]).sum(1)
    same = (x[None, :] == x[:, None]).sum(1)
    return np.where(np.isnan(x), np.nan, below + (same + 1) / 2)


def _unproven(values: Array, method: Sequence[bool], held: Sequence[bool]) -> NDArray[np.bool_]:
    """Methods (M,) that are not shown to beat every control held against them; `values` (N, M), higher is better."""
    unproven = np.zeros(values.shape[1], np.bool_)
    methods, controls = ([j for j, marked in enumerate(marks) if marked] for marks in (method, held))
    if controls and methods and not np.isnan(values[:, controls]).all():
        places = [*methods, *controls]
        better = beats([values[:, places]], range(len(methods), len(places)))[0, : len(methods)]
        unproven[methods] = ~better
    return unproven


def _pooled(
    scores: Scores,
    dataset: str,
    label: str,
    entries: Sequence[Entry],
    resamples: int,
    seed: int,
    known: dict[tuple[str, str, Entry], dict[str, tuple[float, float, float]]],
    coverage: Array,
) -> list[Summary]:
    """Values of a whole data set, such as MaxBoxAcc, with percentile intervals over resampled images.

    What was computed for an entry is kept in `known`: the next panel may hold it too. Entries whose `coverage` (M,) is
    below `SOUND` have none.
    """
    metric = known_metrics.parse(label)
    columns = [scores.values(dataset, entries, label, name) for name in metric.columns]
    images = columns[0][1]
    if any(own != images for _, own in columns):
        return []  # a part of its columns alone
    whole = np.stack([values for values, _ in columns])  # (columns, N, M)
    there: NDArray[np.bool_] = np.all(~np.isnan(whole), axis=0) & ~(coverage < SOUND)
    spreads = {name: np.full((3, len(entries)), np.nan) for name in metric.pooled}
    for j, entry in enumerate(entries):
        key = dataset, label, entry
        if there[:, j].any() and key not in known:
            own = dict(zip(metric.columns, whole[:, there[:, j], j], strict=True))
            known[key] = pooled_intervals(metric.pool, own, resamples=resamples, seed=seed)
        for name in metric.pooled if key in known else ():
            spreads[name][:, j] = known[key][name]
    counts = there.sum(0)
    return [
        Summary(
            Column(label, name, direction, metric.family, pooled=True),
            np.full((0, len(entries)), np.nan),
            [],
            Intervals(spreads[name][0], spreads[name][1], spreads[name][2], counts, len(images) - counts),
            rank_of(spreads[name][0], direction is HIGHER),
            np.zeros(len(entries), np.bool_),  # one value a method: there is nothing to test
        )
        for name, direction in metric.pooled.items()
    ]


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
