"""Curves over regions rather than pixels: superpixels of the image (IROF) and square blocks (region perturbation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline
from xattn.functional.curves import area_over, step_counts, trapezoid_auc
from xattn.functional.grid import Grid, to_pixels
from xattn.functional.perturb import curve_scores, ranks, segment_means, undefined
from xattn.functional.pixels import denormalize_pixels
from xattn.functional.sampling import slic_segments
from xattn.labels import TOLD
from xattn.metric import HIGHER, Direction
from xattn.metrics import metrics
from xattn.metrics.perturbation import PerturbationMetric, end_scores, find_baseline, scorer, tie_breakers
from xattn.schema import Range
from xattn.trace import Trace


def superpixels(trace: Trace, segments: int) -> Tensor:
    """Superpixels (N, H * W) of the images of a trace by SLIC, numbered from zero; made once for all methods."""

    def make() -> Tensor:
        pixels = denormalize_pixels(trace.x.float(), trace.spec.mean, trace.spec.std).clamp(0, 1)
        return slic_segments(pixels, segments).flatten(1).to(trace.x.device)

    return trace.once(("slic", segments), make)


def blocks(size: tuple[int, int], side: int) -> Tensor:
    """Square blocks of an image, those at the right and lower border cut off: int64 (1, H * W).

    >>> blocks((2, 5), 2).tolist()
    [[0, 0, 1, 1, 2, 0, 0, 1, 1, 2]]
    """
    row, column = torch.arange(size[0]) // side, torch.arange(size[1]) // side
    return (row[:, None] * (int(column[-1]) + 1) + column).flatten()[None]


def region_curves(
    explanations: Sequence[Explanation],
    trace: Trace,
    labels: Tensor,
    *,
    steps: int | None,
    first: int | None,
    grid: Grid,
    baseline: Baseline,
    score: str,
    chunk: int,
) -> list[tuple[Tensor, Tensor]]:
    """Scores while the regions with the highest mean of the map are replaced first.

    Args:
        explanations: maps of the images of the trace.
        trace: the recorded pass.
        labels: region of each pixel (N or 1, H * W).
        steps: number of steps over all regions; None is one region a step.
        first: stop after so many regions; None goes to the end.
        grid: cells of the map; a pixel has the importance of its cell.
        baseline: what replaces a region.
        score: name of the score.
        chunk: images a batch.

    Returns:
        For each explanation the scores, float64 (N, S + 1), filled up with the last point where an image has fewer
        regions, and the share (N, S + 1) of regions replaced; NaN scores where the map orders nothing.
    """
    n, size = len(trace.x), trace.input_size
    labels = labels.expand(n, -1)
    numbers = labels.amax(dim=1).cpu() + 1
    most = int(numbers.max())
    counts = [step_counts(int(k), steps) for k in numbers]
    counts = [c if first is None else c[: first + 1] for c in counts]
    longest = max(map(len, counts))
    filled = torch.stack([torch.nn.functional.pad(c, (0, longest - len(c)), value=int(c[-1])) for c in counts])
    ties = tie_breakers(trace, most)
    ends = end_scores(trace, baseline, score, chunk)
    here, nothing = [], []
    for explanation in explanations:
        values = to_pixels(explanation.maps.to(trace.x.device), size, grid)
        means = segment_means(values, labels, most)
        rank, _ = ranks(means[:, None, None], ties)
        here.append(rank.gather(1, labels))
        real = torch.where(means == -torch.inf, means[:, :1], means)  # regions that the image does not have
        nothing.append(undefined(values[:, None, None]) | undefined(real[:, None, None]))
    scores = curve_scores(
        scorer(trace, score),
        trace.x,
        trace.replacement(baseline),
        torch.stack(here, dim=1).flatten(0, 1),
        torch.arange(n).repeat_interleave(len(here)),
        filled.repeat_interleave(len(here), dim=0),
        ends,
        cells=numbers.repeat_interleave(len(here)),
        chunk=chunk,
    )
    scores = scores.double().view(n, len(here), longest)
    share = (filled / numbers[:, None]).double().to(scores.device)
    return [(torch.where(nothing[j][:, None], torch.nan, scores[:, j]), share) for j in range(len(here))]


@metrics.register("irof")
@dataclass(frozen=True)
class IROF(PerturbationMetric):
    """IROF: area over the curve of y_l / y_0 on superpixels (Rieger and Hansen 2020, arXiv:2003.08747).

    Superpixels (SLIC on the image in pixel space) are replaced in the order of their mean importance; y_l is the score
    after l of them. High is good.

    Differs from the paper: at most `steps` points are scored, on a grid of shares of the superpixels; the paper scores
    each of 300.

    Args:
        baseline: what replaces a superpixel.
        segments: superpixels to ask for; SLIC finds about as many.
        steps: points of the curve at most; None is one superpixel a step.
        grid: cells of the map, as for `deletion`; a pixel has the importance of its cell.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"irof": HIGHER}

    baseline: Annotated[str, find_baseline] = "mean"
    segments: Annotated[int, Range(2, 2000)] = 300
    steps: Annotated[int | None, Range(1, 2000)] = 50
    grid: Annotated[Grid, Range(1, 4096)] = field(default="common", metadata=TOLD)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        drawn = region_curves(
            explanations,
            trace,
            superpixels(trace, self.segments),
            steps=self.steps,
            first=None,
            grid=self.grid,
            baseline=find_baseline(self.baseline),
            score=self.score,
            chunk=self.images_per_batch(trace),
        )
        return [
            {"irof": 1 - trapezoid_auc(scores, share) / torch.where(scores[:, 0] > 0, scores[:, 0], torch.nan)}
            for scores, share in drawn
        ]


@metrics.register("region_perturbation")
@dataclass(frozen=True)
class RegionPerturbation(PerturbationMetric):
    """Region perturbation: mean drop (AOPC) over the first blocks (Samek et al. 2017, arXiv:1509.06321).

    Non-overlapping blocks are replaced by uniform noise in the order of their mean importance. Differs from the paper:
    the mean of a block in place of its sum, so that blocks cut off at the border are not put last; the image is scored
    once rather than averaged over draws of the noise.

    Args:
        baseline: what replaces a block.
        side: of a block, in pixels.
        steps: blocks to replace; fewer if there are fewer.
        grid: cells of the map, as for `deletion`; a pixel has the importance of its cell.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"region_perturbation": HIGHER}

    baseline: Annotated[str, find_baseline] = "noise"
    side: Annotated[int, Range(1, 10_000)] = 9
    steps: Annotated[int, Range(1, 100_000)] = 100
    grid: Annotated[Grid, Range(1, 4096)] = field(default="common", metadata=TOLD)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        drawn = region_curves(
            explanations,
            trace,
            blocks(trace.input_size, self.side).to(trace.x.device),
            steps=None,
            first=self.steps,
            grid=self.grid,
            baseline=find_baseline(self.baseline),
            score=self.score,
            chunk=self.images_per_batch(trace),
        )
        return [{"region_perturbation": area_over(scores)} for scores, _ in drawn]
