"""Random subsets: does what the map says about a subset agree with what the score does without it?

Which subsets are removed depends on the image alone, so their scores are computed once and serve every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.errors import ParameterError
from xattn.explanation import Explanation
from xattn.functional.baselines import Baseline
from xattn.functional.curves import pearson
from xattn.functional.grid import Grid, cell_of_pixel, grid_cells, resample, to_pixels
from xattn.functional.perturb import packed_scores, removal, undefined
from xattn.labels import TOLD
from xattn.metric import HIGHER, LOWER, Direction
from xattn.metrics import metrics
from xattn.metrics.perturbation import PerturbationMetric, clean_scores, find_baseline, scorer
from xattn.schema import Range
from xattn.trace import Trace

_LARGEST = 50_000_000  # cells of all subsets of an image


def subset_masks(trace: Trace, cells: tuple[int, int], sizes: Sequence[int], samples: int) -> Tensor:
    """Random subsets of the blocks of each image, `samples` of each size: bool (N, sizes * samples, blocks)."""
    total = cells[0] * cells[1]
    key = ("subsets", cells, tuple(sizes), samples)

    def make() -> Tensor:
        size = torch.tensor(sizes).repeat_interleave(samples)[:, None]
        if len(size) * total > _LARGEST:
            raise ParameterError(
                f"{len(size):,} subsets of {total:,} cells would not fit in memory; ask for fewer samples or cells."
            )
        drawn = []
        for i in range(len(trace.x)):
            noise = torch.rand(len(size), total, generator=trace.generator(i, repr(key)))
            drawn.append(noise.argsort(dim=1).argsort(dim=1) < size)
        return torch.stack(drawn).to(trace.x.device)

    return trace.once(key, make)


def check_order(name: str, smallest: float, largest: float) -> None:
    """Refuse a range whose ends are the wrong way round."""
    if smallest > largest:
        raise ParameterError(f"{name}: smallest must not be more than largest but they are {smallest} and {largest}.")


def subset_drops(
    trace: Trace, masks: Tensor, cells: tuple[int, int], baseline: Baseline, score: str, chunk: int
) -> Tensor:
    """Fall of the score, float64 (N, T), without each of the subsets (N, T, blocks); made once for all methods."""

    def make() -> Tensor:
        n, subsets, _ = masks.shape
        size = trace.input_size
        pixel = cell_of_pixel(cells, size).to(masks.device)
        flat = masks.flatten(0, 1)
        build = removal(
            trace.replacement(baseline), lambda index: flat[index].index_select(1, pixel).view(-1, 1, *size)
        )
        owner = torch.arange(n).repeat_interleave(subsets)
        scores = packed_scores(scorer(trace, score), trace.x, build, owner, chunk)
        return clean_scores(trace, score).double()[:, None] - scores.double().view(n, subsets)

    return trace.once(("subset drops", masks, baseline, score), make)


@dataclass(frozen=True)
class SubsetMetric(PerturbationMetric):
    """A metric of random subsets of square blocks.

    Args:
        baseline: what replaces a subset.
        grid: the blocks, which are the same for all methods: `"common"`, cells of 16 pixels and at least eight on the
            shorter side, or a number of them. The importance of a block is the mean of a finer map over its area, with
            the signs, or a coarser map interpolated (bilinear).
        samples: subsets of each size.
    """

    baseline: Annotated[str, find_baseline] = "mean"
    grid: Annotated[Literal["common"] | int, Range(1, 64)] = field(default="common", metadata=TOLD)
    samples: Annotated[int, Range(2, 5000)] = 50

    def blocks(self, trace: Trace) -> tuple[int, int]:
        """Rows and columns of the blocks."""
        return grid_cells(self.grid, trace.input_size)

    def _agreement(self, explanations: Sequence[Explanation], trace: Trace, sizes: Sequence[int]) -> list[Tensor]:
        """Correlation (N, sizes) of the importance of a subset with the fall of the score without it."""
        cells = self.blocks(trace)
        masks = subset_masks(trace, cells, sizes, self.samples)
        chunk = self.images_per_batch(trace)
        drops = subset_drops(trace, masks, cells, find_baseline(self.baseline), self.score, chunk)
        results = []
        for explanation in explanations:
            maps = explanation.maps.to(trace.x.device)
            means = resample(maps, cells).double().flatten(1)
            sums = torch.einsum("ntc,nc->nt", masks.double(), means)
            shape = (len(trace.x) * len(sizes), self.samples)
            nothing = undefined(maps) | undefined(means[:, None, None])
            value = pearson(sums.reshape(shape), drops.reshape(shape)).view(-1, len(sizes))
            results.append(torch.where(nothing[:, None], torch.nan, value))
        return results


@metrics.register("faithfulness_correlation")
@dataclass(frozen=True)
class FaithfulnessCorrelation(SubsetMetric):
    """Faithfulness correlation (Bhatt et al. 2020, arXiv:2005.00631).

    The correlation, over random subsets of one size, of their importance with the fall of the score without them.
    Differs from the paper: features are square blocks of pixels; single pixels move the score of an image too little to
    be told from rounding.

    Args:
        share: of the blocks that a subset takes.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"faithfulness_correlation": HIGHER}

    samples: Annotated[int, Range(2, 5000)] = 100
    share: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.2

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        rows, columns = self.blocks(trace)
        size = max(1, round(self.share * rows * columns))
        return [{self.name: value[:, 0]} for value in self._agreement(explanations, trace, [size])]


@metrics.register("sensitivity_n")
@dataclass(frozen=True)
class SensitivityN(SubsetMetric):
    """Sensitivity-n (Ancona et al. 2018, arXiv:1711.06104).

    The correlation, over random subsets of n features, of the sum of their importance with the fall of the score
    without them; the value is the mean over n. Differs from the paper, which draws a curve over n: features are square
    blocks of pixels, and n goes up by equal factors from `smallest` to `largest` share of them.

    Args:
        sizes: number of sizes.
        smallest: share of the blocks in the smallest subset; at least one block.
        largest: share in the largest one.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"sensitivity_n": HIGHER}

    sizes: Annotated[int, Range(1, 100)] = 5
    smallest: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.01
    largest: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.name, self.smallest, self.largest)

    def numbers(self, blocks: int) -> list[int]:
        """The sizes n of the subsets, without repeats."""
        span = torch.linspace(0, 1, self.sizes, dtype=torch.float64)
        share = self.smallest * (self.largest / self.smallest) ** span
        return sorted({min(max(1, round(s * blocks)), max(1, blocks - 1)) for s in share.tolist()})

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        rows, columns = self.blocks(trace)
        sizes = self.numbers(rows * columns)
        return [{self.name: value.mean(dim=1)} for value in self._agreement(explanations, trace, sizes)]


def _integral(maps: Tensor) -> Tensor:
    """Sums (N, H + 1, W + 1) of all pixels above and left, in float64."""
    return torch.nn.functional.pad(maps[:, 0].double().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))


@metrics.register("infidelity")
@dataclass(frozen=True)
class Infidelity(PerturbationMetric):
    """Infidelity: how far the map is from what removing a square does to the score (Yeh et al. 2019, arXiv:1901.09392).

    E[(b I.m - (f(x) - f(x without I)))^2] over random squares I, where I.m is the sum of the map inside. The factor b
    that makes this least is the paper's optimal scaling, without which maps of different units cannot be compared. A
    map that says nothing gets the mean square of the falls.

    Differs from the paper: the map is taken as contributions, so that a removed pixel counts its whole value (captum
    calls this `multiply_by_inputs`); sides of squares are drawn at random.

    Args:
        baseline: what replaces a square.
        samples: squares an image.
        smallest: least side as a share of the image's shorter side.
        largest: greatest side likewise.
        grid: cells of the map, as for `deletion`; a pixel has the importance of its cell.
    """

    columns: ClassVar[Mapping[str, Direction]] = {"infidelity": LOWER}

    baseline: Annotated[str, find_baseline] = "black"
    samples: Annotated[int, Range(2, 100_000)] = 100
    smallest: Annotated[float, Range(0, 1, open_low=True)] = 0.1
    largest: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    grid: Annotated[Grid, Range(1, 4096)] = field(default="common", metadata=TOLD)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.name, self.smallest, self.largest)

    def squares(self, trace: Trace) -> Tensor:
        """Top, left, bottom and right (exclusive) of the squares of each image: int64 (N, samples, 4)."""
        height, width = trace.input_size

        def make() -> Tensor:
            drawn = []
            for i in range(len(trace.x)):
                a, b, c = torch.rand(3, self.samples, generator=trace.generator(i, "squares"), dtype=torch.float64)
                share = self.smallest + a * (self.largest - self.smallest)
                side = (share * min(height, width)).round().long().clamp(1, min(height, width))
                top, left = (b * (height - side + 1)).long(), (c * (width - side + 1)).long()
                drawn.append(torch.stack([top, left, top + side, left + side], dim=1))
            return torch.stack(drawn).to(trace.x.device)

        return trace.once(("squares", self.samples, self.smallest, self.largest), make)

    def drops(self, trace: Trace) -> Tensor:
        """Fall of the score without each square, float64 (N, samples); made once for all methods."""
        baseline, chunk = find_baseline(self.baseline), self.images_per_batch(trace)

        def make() -> Tensor:
            top, left, bottom, right = self.squares(trace).flatten(0, 1)[..., None, None].unbind(1)
            row = torch.arange(trace.input_size[0], device=top.device)[:, None]
            column = torch.arange(trace.input_size[1], device=top.device)

            def removed(index: Tensor) -> Tensor:
                rows = (row >= top[index]) & (row < bottom[index])
                return (rows & (column >= left[index]) & (column < right[index]))[:, None]

            owner = torch.arange(len(trace.x)).repeat_interleave(self.samples)
            build = removal(trace.replacement(baseline), removed)
            scores = packed_scores(scorer(trace, self.score), trace.x, build, owner, chunk).double()
            return clean_scores(trace, self.score).double()[:, None] - scores.view(-1, self.samples)

        key = ("square drops", baseline, self.score, self.samples, self.smallest, self.largest)
        return trace.once(key, make)

    def _measure(self, explanations: Sequence[Explanation], trace: Trace) -> list[dict[str, Tensor]]:
        top, left, bottom, right = self.squares(trace).unbind(2)
        drop = self.drops(trace)
        image = torch.arange(len(trace.x), device=drop.device)[:, None]
        results = []
        for explanation in explanations:
            values = to_pixels(explanation.maps.to(drop.device), trace.input_size, self.grid)
            maps = values.view(-1, 1, *trace.input_size)
            sums = _integral(maps)
            claim = (
                sums[image, bottom, right]
                - sums[image, top, right]
                - sums[image, bottom, left]
                + sums[image, top, left]
            )
            square = claim.square().mean(dim=1)
            scale = (claim * drop).mean(dim=1) / torch.where(square > 0, square, torch.nan)
            value = (scale[:, None] * claim - drop).square().mean(dim=1)
            results.append({"infidelity": torch.where(undefined(maps), torch.nan, value)})
        return results
