"""Removal that a network can be trained on: one cell at a time, or a random share that stays within a bound.

Whether the changed images are within what a network has been trained on is a matter of the network that scores them:
they are for one that was fine-tuned to such images, and not for any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline
from xattn.functional.curves import step_counts
from xattn.functional.grid import cell_of_pixel, grid_cells, resample
from xattn.functional.perturb import packed_scores, ranks, removal, undefined
from xattn.functional.ranking import spearman
from xattn.labels import TOLD
from xattn.metric import HIGHER, LOWER, Direction
from xattn.metrics import metrics
from xattn.metrics.perturbation import PerturbationMetric, clean_scores, find_baseline, scorer, tie_breakers
from xattn.schema import Range
from xattn.score import find_score
from xattn.trace import Trace

_LEVELS = 1 << 20  # of a map, for its ranks


def cells_of(size: tuple[int, int], grid: int) -> tuple[int, int]:
    """Rows and columns of the cells: `grid` each, no more than pixels."""
    return min(grid, size[0]), min(grid, size[1])


def cell_means(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """Mean importance of each cell, float64 (N, cells): a mean over its area, or a coarser map interpolated."""
    return rounded(resample(maps, cells).double().flatten(1))


def rounded(values: Tensor) -> Tensor:
    """Values (N, L) in steps of a millionth of their range: what differs by less is a tie, not an order."""
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return ((values - low) / torch.where(high > low, high - low, 1.0) * _LEVELS).round()


def single_drops(trace: Trace, grid: int, baseline: Baseline, score: str, chunk: int) -> Tensor:
    """Fall of the score without each cell of a square grid, float64 (N, cells); made once for all methods."""

    def make() -> Tensor:
        n, size = len(trace.x), trace.input_size
        rows, columns = cells_of(size, grid)
        pixel = cell_of_pixel((rows, columns), size).to(trace.x.device).view(1, 1, *size)
        total = rows * columns
        build = removal(trace.replacement(baseline), lambda index: pixel == (index % total).view(-1, 1, 1, 1))
        owner = torch.arange(n).repeat_interleave(total)
        scores = packed_scores(scorer(trace, score), trace.x, build, owner, chunk)
        return clean_scores(trace, score).double()[:, None] - scores.double().view(n, total)

    return trace.once(("single drops", grid, baseline, score), make)


@metrics.register("idsds", "single_deletion")
@dataclass(frozen=True)
class SingleDeletion(PerturbationMetric):
    """IDSDS: rank correlation of a cell's importance with the fall of the score without it (Hesse et al. 2024).

    The image is cut into `grid` by `grid` cells; each is replaced alone, which one pass a cell serves all methods with,
    and Spearman's correlation of these falls with the mean of the map over each cell is the value (NeurIPS 2024,
    arXiv:2407.11910, sec. 3.2). In-domain is what the name says only with a scorer that has been fine-tuned to images
    that lack one cell of that grid or none; with the explained network itself it is the plain single-deletion score.

    Differs from the paper: the class is the one explained rather than the label; cells of unequal size, where `grid`
    does not divide the image, count by their mean rather than their sum.

    Args:
        baseline: what replaces a cell; the mean colour, as in the paper.
        grid: cells on each side; no more than pixels.
    """

    paper: ClassVar[str] = "Hesse et al. 2024, IDSDS, arXiv:2407.11910"
    columns: ClassVar[Mapping[str, Direction]] = {"idsds": HIGHER}

    baseline: Annotated[str, find_baseline] = "mean"
    grid: Annotated[int, Range(2, 64)] = 4
    score: Annotated[str, find_score] = field(default="logit", kw_only=True)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        chunk = self.images_per_batch(trace)
        drops = single_drops(trace, self.grid, find_baseline(self.baseline), self.score, chunk)
        results = []
        for explanation in explanations:
            maps = explanation.maps.to(trace.x.device)
            means = cell_means(maps, cells_of(trace.input_size, self.grid))
            nothing = undefined(maps) | undefined(means[:, None, None])
            results.append({"idsds": torch.where(nothing, torch.nan, spearman(means, drops))})
        return results


@metrics.register("f_fidelity", "ffid")
@dataclass(frozen=True)
class FFidelity(PerturbationMetric):
    """F-Fidelity: fall of the score without random cells of the map's top, and its bottom (Zheng et al. 2025).

    The explanation of size s are the share s of cells with the highest importance. Of these each is removed with
    probability min(alpha, beta / s), so that no more than a share beta of the image is expected to go, which a network
    can be fine-tuned to; `ffid_plus` is the mean fall of the score over draws and sizes (ICLR 2025, arXiv:2410.02970,
    alg. 1). `ffid_minus` is the same for the share s of least importance, as the released code has it, and `f_fidelity`
    the first less the second. Which cells may go is drawn once for an image and shared by all methods.

    Differs from the paper: the mean score of the class explained takes the place of the accuracy, so that each image
    has a value; cells of a grid rather than single pixels; the values at all sizes are averaged into one, and sizes and
    draws are fewer than its 20 and 50.

    Args:
        baseline: what replaces a cell; the mean colour, as in the paper.
        grid: the cells, which are the same for all methods: `"common"` as for `deletion`, or a number of them on the
            shorter side.
        alpha: probability that a cell of a small explanation goes.
        beta: share of the image that is expected to go at most.
        sizes: number of sizes s, at even distances between 0 and 1.
        samples: draws for each size.
    """

    paper: ClassVar[str] = "Zheng et al. 2025, arXiv:2410.02970"
    columns: ClassVar[Mapping[str, Direction]] = {"f_fidelity": HIGHER, "ffid_plus": HIGHER, "ffid_minus": LOWER}

    baseline: Annotated[str, find_baseline] = "mean"
    grid: Annotated[int | Literal["common"], Range(2, 64)] = field(default="common", metadata=TOLD)
    alpha: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    beta: Annotated[float, Range(0, 1, open_low=True)] = 0.1
    sizes: Annotated[int, Range(1, 100)] = 4
    samples: Annotated[int, Range(1, 5000)] = 10

    def numbers(self, cells: int) -> Tensor:
        """Cells in an explanation of each size: int64 (sizes,), fewer where there are fewer cells."""
        return step_counts(cells, self.sizes + 1)[1:-1]

    def draws(self, trace: Trace, cells: int) -> Tensor:
        """Uniform numbers (N, samples, cells), the same for all methods: a cell goes where its own is low enough."""
        key = ("f_fidelity", cells, self.samples)

        def make() -> Tensor:
            drawn = [
                torch.rand(self.samples, cells, generator=trace.generator(i, repr(key))) for i in range(len(trace.x))
            ]
            return torch.stack(drawn).to(trace.x.device)

        return trace.once(key, make)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        n, size, device, count = len(trace.x), trace.input_size, trace.x.device, len(explanations)
        grid = grid_cells(self.grid, size)
        cells = grid[0] * grid[1]
        number = self.numbers(cells).to(device)
        chance = torch.clamp(self.beta * cells / number.double(), max=self.alpha)
        ties, draws = tie_breakers(trace, cells), self.draws(trace, cells)
        here, nothing = [], []
        for explanation in explanations:
            maps = explanation.maps.to(device)
            means = cell_means(maps, grid)[:, None, None]
            here.append(ranks(means, ties)[0])
            nothing.append(undefined(maps) | undefined(means))
        rank = torch.stack(here, dim=1)  # (N, methods, cells)
        pixel = cell_of_pixel(grid, size).to(device)
        shape = (n, count, 2, len(number), self.samples)

        def removed(index: Tensor) -> Tensor:
            image, method, end, step, sample = torch.unravel_index(index, shape)
            place = rank[image, method]
            place = torch.where(end[:, None] == 0, place, cells - 1 - place)
            gone = (place < number[step][:, None]) & (draws[image, sample] < chance[step][:, None])
            return gone.index_select(1, pixel).view(-1, 1, *size)

        build = removal(trace.replacement(find_baseline(self.baseline)), removed)
        owner = torch.arange(n).repeat_interleave(math.prod(shape[1:]))
        scores = packed_scores(scorer(trace, self.score), trace.x, build, owner, self.images_per_batch(trace))
        clean = clean_scores(trace, self.score).double()[:, None, None]
        falls = clean - scores.double().view(n, count, 2, -1).mean(dim=3)
        results = []
        for j in range(count):
            plus, minus = (torch.where(nothing[j], torch.nan, falls[:, j, k]) for k in range(2))
            results.append({"f_fidelity": plus - minus, "ffid_plus": plus, "ffid_minus": minus})
        return results
