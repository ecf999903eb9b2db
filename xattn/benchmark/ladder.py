"""Known orders: a good map degraded step by step, and how well each metric puts the steps in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.benchmark.scores import Column, Entry, Scores
from xattn.benchmark.store import LADDER
from xattn.benchmark.tables import Cell, Table
from xattn.explainer import Explainer, Family, needs_of
from xattn.explainers import explainers
from xattn.functional.grid import grid_cells, resample
from xattn.functional.statistics import INTERVAL, LEVEL, Array
from xattn.labels import label_of
from xattn.metric import NEITHER
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import Trace

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Share of the cells that are shuffled at each rung, best first."""
_LABEL = re.compile(rf"{LADDER}:share=(?P<share>[0-9.]{{1,20}}),of=(?P<of>.{{1,4000}})")


@dataclass(frozen=True)
class Rung(Explainer):
    """Another method's map with a share of its cells shuffled (Zheng et al. 2025, F-Fidelity, arXiv:2410.02970).

    The map is brought to the common grid, so that every rung is a map of that grid; then a random share of the cells
    exchange their values, which keeps the distribution of the values. Cells of a rung are among those of the next, and
    come from the image's own seed. Differs from the paper, which shuffles single pixels: on a grid of cells that would
    average out.

    Args:
        share: of the cells that are shuffled; 0 is the map of the method on the common grid.
        of: the method and its parameters.
    """

    name: ClassVar[str] = LADDER
    family: ClassVar[Family] = Family.PERTURBATION
    paper: ClassVar[str] = "Zheng et al. 2025, F-Fidelity, arXiv:2410.02970"

    share: Annotated[float, Range(0, 1)]
    of: Annotated[str, explainers.parse]

    def check(self, spec: ModelSpec) -> None:
        """See `Explainer.check`."""
        explainers.parse(self.of).check(spec)

    def attribute(self, trace: Trace) -> Tensor:
        """See `Explainer.attribute`."""
        inner = explainers.parse(self.of)

        def make() -> Tensor:
            again = trace.again(**needs_of([inner], trace.spec))
            return resample(inner.explanation(again).maps, grid_cells("common", trace.input_size))

        maps = trace.once((LADDER, self.of), make)
        return torch.cat([shuffled(maps[i], self.share, trace.generator(i, LADDER)) for i in range(len(maps))])


def shuffled(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A map (1, h, w) as (1, 1, h, w), a share of whose cells exchange their values.

    >>> row = torch.arange(100.0).view(1, 10, 10)
    >>> part = shuffled(row, 0.3, torch.Generator().manual_seed(0))
    >>> int((part != row).sum()), bool((part.flatten().sort().values == row.flatten()).all())
    (30, True)
    """
    flat = values.flatten()
    chosen = torch.randperm(len(flat), generator=generator)[: round(share * len(flat))].to(flat.device)
    # The next of the chosen ones, in their random order: each gets the value of another.
    return flat.scatter(0, chosen, flat[chosen.roll(1)]).view(1, *values.shape)


def rungs(methods: Sequence[str]) -> list[Rung]:
    """The rungs of some methods.

    >>> [label_of(rung) for rung in rungs(["gradcam"])][:2]
    ['ladder:share=0.0,of=gradcam', 'ladder:share=0.25,of=gradcam']
    """
    return [Rung(share, label_of(explainers.parse(name))) for name in methods for share in SHARES]


@dataclass(frozen=True)
class Recovery:
    """How well a column puts the rungs of one method's ladder in order.

    Args:
        model: whose method.
        method: that was degraded.
        column: of which metric.
        images: on which all rungs have a value.
        tau: Kendall's tau-b of the known order and the means over the images.
        interval: of the former, over resampled images.
        single: mean over images of the tau within one image.
        single_interval: of the former.
    """

    model: str
    method: str
    column: Column
    images: int
    tau: float
    interval: tuple[float, float]
    single: float
    single_interval: tuple[float, float]


def recoveries(scores: Scores, dataset: str, model: str, resamples: int = 1000, seed: int = 0) -> list[Recovery]:
    """How well every column with a direction recovers every ladder of a model; best first.

    Args:
        scores: of a run whose configuration has a `ladder`.
        dataset: which data set.
        model: which model.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
    """
    ladders: dict[str, dict[float, Entry]] = {}
    for entry in scores.rungs(dataset, model):
        if match := _LABEL.fullmatch(entry.method):
            ladders.setdefault(match["of"], {})[float(match["share"])] = entry
    results = []
    for method, found in ladders.items():
        entries = [found[share] for share in sorted(found)]
        if len(entries) < 2:
            continue
        for column in scores.columns(dataset, entries):
            if column.direction is NEITHER:
                continue
            values, _ = scores.values(dataset, entries, column.metric, column.name)
            values = values[~np.isnan(values).any(1)] * column.sign
            if len(values):
                results.append(Recovery(model, method, column, len(values), *recovery(values, resamples, seed)))
    return sorted(results, key=lambda r: (-r.tau, -r.single))


def recovery(values: Array, resamples: int, seed: int) -> tuple[float, tuple[float, float], float, tuple[float, float]]:
    """Tau of the means and mean tau of the images, each with its bootstrap interval.

    >>> recovery(np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 1.5]]), 100, 0)[0]
    1.0

    Args:
        values: (N, rungs), higher is better, the best rung first.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
    """
    n, count = values.shape
    order = -np.arange(count, dtype=np.float64)
    own = tau_of(values, order)
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    means = np.stack([values[rows].mean(0) for rows in drawn])
    macro, micro = tau_of(means, order), own[drawn].mean(1)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    a, b = (tuple(float(q) for q in np.quantile(x, ends)) for x in (macro, micro))
    return float(tau_of(values.mean(0)[None], order)[0]), (a[0], a[1]), float(own.mean()), (b[0], b[1])


def tau_of(rows: Array, order: Array) -> NDArray[np.float64]:
    """Tau-b (N,) of each row with the known order; a row of equal values recovers nothing and has 0."""
    first, second = np.triu_indices(len(order), 1)
    signs = np.sign(rows[:, first] - rows[:, second]) * np.sign(order[first] - order[second])
    untied = np.abs(signs).sum(1)
    return signs.sum(1) / np.sqrt(np.maximum(untied, 1) * len(first))


def table(found: Sequence[Recovery], title: str) -> Table:
    """How well each column puts the rungs in order, as a table."""
    rows: list[tuple[Cell, ...]] = [
        (
            r.column.arrow,
            r.method,
            f"{r.tau:.2f} [{r.interval[0]:.2f}, {r.interval[1]:.2f}]",
            f"{r.single:.2f} [{r.single_interval[0]:.2f}, {r.single_interval[1]:.2f}]",
            r.images,
        )
        for r in found
    ]
    notes = (
        "Maps of one method with 0, 25, 50, 75 and 100 % of the cells of the common grid shuffled: Kendall's τ of this "
        f"order with the scores, {INTERVAL} bootstrap intervals over images. 1 is the known order, 0 none.",
    )
    return Table(title, ("metric", "maps of", "τ of the means", "mean τ of single images", "images"), rows, notes)
