"""Methods that hide parts of the image and look at the score: windows, superpixels, random masks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.errors import NotApplicableError
from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.explainers.passes import (
    BaselineName,
    Chunk,
    baseline_image,
    clean_scores,
    completeness_error,
    owners,
    replacement,
    score_again,
    scores_of,
    tiles,
)
from xattn.functional import sampling as F
from xattn.functional import volume
from xattn.functional.perturb import packed_scores, removal, segment_means
from xattn.functional.pixels import denormalize_pixels
from xattn.functional.sampling import Segments
from xattn.schema import Range
from xattn.trace import Trace


@dataclass(frozen=True)
class HidingExplainer(Explainer):
    """A method that puts a baseline in the place of pixels, in all channels at once, and runs the model again.

    Args:
        baseline: what hidden pixels become: `"mean"`, `"black"`, `"blur"`, `"noise"`, `"linear"` or `"telea"`, defined
            on pixels and then normalized.
        chunk: images a batch; no part of the result.
    """

    family: ClassVar[Family] = Family.PERTURBATION
    baseline: BaselineName = field(default="mean", kw_only=True)
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)


@explainers.register("occlusion")
@dataclass(frozen=True)
class Occlusion(HidingExplainer):
    """Occlusion: fall of the score when a square slides over the image (Zeiler and Fergus 2013, arXiv:1311.2901).

    A pixel has the mean over the squares that cover it. The last square in each direction ends at the border, whole.
    In volumes boxes slide, whose sides are shares of depth, height and width.
    Computed here rather than by captum, which cuts it off, and makes the windows of one image at a time.

    Args:
        window: side of the square as a share of the image's shorter side.
        stride: from one square to the next, as a share of its side.
    """

    volumes: ClassVar[bool] = True
    passes: ClassVar[str] = "169 forward for a square image"
    opposes: ClassVar[bool] = True
    paper: ClassVar[str] = "Zeiler and Fergus 2013, arXiv:1311.2901, sec. 4.2"
    window: Annotated[float, Range(0, 1, open_low=True)] = 0.15
    stride: Annotated[float, Range(0, 1, open_low=True)] = 0.5

    def attribute(self, trace: Trace) -> Tensor:
        if len(trace.extent) == 3:
            return self._of_volumes(trace)
        x, size = trace.x, trace.input_size
        window = max(1, round(self.window * min(size)))
        starts = [F.window_starts(n, window, max(1, round(self.stride * window))) for n in size]
        top, left = (t.to(x.device) for t in torch.cartesian_prod(*starts).unbind(1))
        row, column = (torch.arange(n, device=x.device) for n in size)

        def hidden(index: Tensor) -> Tensor:
            at = index % len(top)
            first, second = top[at, None], left[at, None]
            rows, columns = (row >= first) & (row < first + window), (column >= second) & (column < second + window)
            return (rows[:, :, None] & columns[:, None])[:, None]

        build = removal(replacement(trace, self.baseline), hidden)
        owner = torch.arange(len(x)).repeat_interleave(len(top))
        scores = packed_scores(score_again(trace), x, build, owner, self.chunk).view(len(x), -1)
        drops = clean_scores(trace)[:, None] - scores
        return F.window_means(drops, (starts[0], starts[1]), window, size)

    def _of_volumes(self, trace: Trace) -> Tensor:
        size = trace.extent
        sides = [max(1, round(self.window * n)) for n in size]
        starts = [
            F.window_starts(n, side, max(1, round(self.stride * side))) for n, side in zip(size, sides, strict=True)
        ]
        corners = torch.cartesian_prod(*starts).to(trace.x.device)

        def hidden(index: Tensor) -> Tensor:
            return volume.box_masks(corners[index % len(corners)], sides, size)

        build = removal(replacement(trace, self.baseline), hidden)
        owner = torch.arange(len(trace.x)).repeat_interleave(len(corners))
        scores = packed_scores(score_again(trace), trace.x, build, owner, self.chunk).view(len(trace.x), -1)
        return volume.box_means(clean_scores(trace)[:, None] - scores, starts, sides, size)


@explainers.register("rise")
@dataclass(frozen=True)
class RISE(HidingExplainer):
    """RISE: mean score under random smooth masks that show the pixel (Petsiuk et al. 2018, arXiv:1806.07421, eq. 6).

    Differs from the paper in two defaults. The sum of the masks at each pixel takes the place of its expectation
    (`normalize="expected"`), so that a constant added to the score adds a constant to the map and no pattern of the
    masks; and there are fewer masks (4000 to 8000 in the paper). The paper explains the probability: `score="prob"`.

    Args:
        samples: masks an image.
        cells: of the grid that the masks are drawn on, down and across.
        keep: probability that a cell shows.
        normalize: divide by the sum of the masks at the pixel (`"sum"`), or by its expectation (`"expected"`).
        baseline: what hidden pixels become: `"mean"`, `"black"`, `"blur"` or `"noise"`, defined on pixels and then
            normalized.
    """

    volumes: ClassVar[bool] = True
    passes: ClassVar[str] = "1000 forward"
    samples: Annotated[int, Range(1, 20_000)] = 1000
    cells: Annotated[int, Range(1, 64)] = 7
    keep: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5
    normalize: Literal["sum", "expected"] = "sum"

    def attribute(self, trace: Trace) -> Tensor:
        x, score = trace.x, score_again(trace)
        hidden = baseline_image(trace, self.name, self.baseline)
        grids, shifts, axes = [], [], len(trace.extent)
        for i in range(len(x)):
            generator = trace.generator(i, self.name)
            grids.append(torch.rand(self.samples, *(self.cells,) * axes, generator=generator) < self.keep)
            shifts.append(torch.rand(self.samples, axes, generator=generator))
        grid, shift = torch.stack(grids).to(x), torch.stack(shifts).to(x.device)
        total, shown = (x.new_zeros(len(x), 1, *trace.input_size) for _ in range(2))
        for images, samples in tiles(len(x), self.samples, self.chunk):
            own = owners(images, samples, x.device)
            drawn = grid[images, samples].flatten(0, 1), shift[images, samples].flatten(0, 1)
            masks = F.rise_masks(*drawn, trace.input_size) if axes == 2 else volume.smooth_masks(*drawn, trace.extent)
            scores = score(hidden[own].lerp(x[own], masks), own).to(x)
            parts = (-1, samples.stop - samples.start)
            total[images] += (scores.view(-1, 1, 1, 1) * masks).unflatten(0, parts).sum(1)
            shown[images] += masks.unflatten(0, parts).sum(1)
        return total / (shown if self.normalize == "sum" else self.samples * self.keep)


@dataclass(frozen=True)
class SegmentExplainer(HidingExplainer):
    """A method with one value for each segment of the image, which all of its pixels have.

    Attributes:
        whole: it needs the score of the image hidden altogether.

    Args:
        segments: `"slic"`, superpixels of the image (needs scikit-image), or `"grid"`, nearly square cells; in volumes
            both are boxes.
        count: segments to ask for.
    """

    volumes: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    opposes: ClassVar[bool] = True
    segments: Segments = field(default="slic", kw_only=True)
    count: Annotated[int, Range(1, 1000)] = field(default=50, kw_only=True)

    @abstractmethod
    def coalitions(self, segments: int, generator: torch.Generator) -> Tensor:
        """Which segments are shown in each run of the model: bool (S, K)."""

    @abstractmethod
    def values(self, kept: Tensor, scores: Tensor, ends: Tensor) -> Tensor:
        """A value for each segment (K,), on the CPU.

        Args:
            kept: the coalitions, bool (S, K).
            scores: of each, float64 (S,).
            ends: float64 (2,), scores of the image hidden altogether (where the method asks for it) and untouched.
        """

    def labels(self, trace: Trace) -> Tensor:
        """The segment of each pixel (N, H, W), numbered from zero; made once for all methods."""

        def make() -> Tensor:
            if len(trace.extent) == 3:
                return volume.box_segments(trace.extent, self.count).expand(len(trace.x), -1, -1).to(trace.x.device)
            if self.segments == "grid":
                return F.grid_segments(trace.input_size, self.count).expand(len(trace.x), -1, -1).to(trace.x.device)
            pixels = denormalize_pixels(trace.x.float(), trace.spec.mean, trace.spec.std).clamp(0, 1)
            try:
                return F.slic_segments(pixels, self.count).to(trace.x.device)
            except NotApplicableError as reason:
                raise NotApplicableError(f"{self.name}: {reason}") from None

        return trace.once(("segments", self.segments, self.count), make)

    def hidden_scores(self, trace: Trace) -> Tensor:
        """Scores (N,) of the images hidden altogether."""

        def make() -> Tensor:
            everything = torch.ones(len(trace.x), 1, *trace.input_size, dtype=torch.bool, device=trace.x.device)
            own = torch.arange(len(trace.x), device=trace.x.device)
            return scores_of(trace, replacement(trace, self.baseline)(trace.x, everything, own), self.chunk)

        return trace.once(("hidden", self.baseline), make)

    def attribute(self, trace: Trace) -> Tensor:
        labels, clean = self.labels(trace), clean_scores(trace)
        ends = torch.stack([self.hidden_scores(trace) if self.whole else clean, clean], dim=1).cpu().double()
        numbers = (labels.amax((1, 2)) + 1).tolist()
        kept = [self.coalitions(k, trace.generator(i, self.name)) for i, k in enumerate(numbers)]
        scores = self._scores(trace, labels, kept)
        values = torch.zeros(len(labels), max(numbers), dtype=torch.float64)
        for i, k in enumerate(numbers):
            values[i, :k] = self.values(kept[i], scores[i], ends[i])
        return values.to(trace.x).gather(1, labels.flatten(1)).view(-1, 1, *trace.input_size)

    def _scores(self, trace: Trace, labels: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
        """Score of each coalition of each image, float64 on the CPU; all of them fill batches of one size."""
        counts = [len(rows) for rows in kept]
        if not any(counts):
            return [torch.zeros(0, dtype=torch.float64)] * len(kept)
        most = max(rows.shape[1] for rows in kept)
        shown = torch.cat([torch.nn.functional.pad(rows, (0, most - rows.shape[1])) for rows in kept])
        shown, flat = shown.to(trace.x.device), labels.flatten(1)
        owner = torch.arange(len(kept)).repeat_interleave(torch.tensor(counts))
        own = owner.to(trace.x.device)

        def hidden(index: Tensor) -> Tensor:
            return ~shown[index].gather(1, flat[own[index]]).view(-1, 1, *trace.input_size)

        build = removal(replacement(trace, self.baseline), hidden)
        scores = packed_scores(score_again(trace), trace.x, build, owner, self.chunk)
        return list(scores.cpu().double().split(counts))


@dataclass(frozen=True)
class ShapleyExplainer(SegmentExplainer):
    """A method whose values of the segments sum to f(x) - f(baseline): the fall of the score is shared out."""

    whole: ClassVar[bool] = True

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor:
        """Relative error (N,) of the sum over the segments, each counted once, = f(x) - f(baseline)."""
        labels = self.labels(trace).flatten(1)
        most = int(labels.max()) + 1
        each = segment_means(maps.flatten(1), labels, most)
        each = each.masked_fill(each.isneginf(), 0)  # segments that an image does not have
        return completeness_error(trace, each.sum(1), self.hidden_scores(trace).double(), each.abs().sum(1))


@explainers.register("feature-ablation", "ablation")
@dataclass(frozen=True)
class FeatureAblation(SegmentExplainer):
    """Feature ablation: fall of the score without each segment (captum, Kokhlikyan et al. 2020, arXiv:2009.07896).

    Computed here rather than by captum: segments of all images fill batches of one size, whatever their number.
    """

    passes: ClassVar[str] = "50 forward"
    paper: ClassVar[str] = "Kokhlikyan et al. 2020, arXiv:2009.07896"

    def coalitions(self, segments: int, generator: torch.Generator) -> Tensor:
        return ~torch.eye(segments, dtype=torch.bool)

    def values(self, kept: Tensor, scores: Tensor, ends: Tensor) -> Tensor:
        return ends[1] - scores


@explainers.register("shapley-sampling", "shapley-value-sampling")
@dataclass(frozen=True)
class ShapleySampling(ShapleyExplainer):
    """Shapley sampling: mean gain when a segment joins (Castro et al. 2009; Mitchell et al. 2021, arXiv:2104.12199).

    The mean is over random orders, each with its reverse. The values sum to f(x) - f(baseline) for any
    number of orders. Computed here rather than by captum, whose orders are the same for all images of a batch and are
    run one after the other.

    Args:
        samples: orders; all there are if these are no more.
    """

    passes: ClassVar[str] = "491 forward"
    samples: Annotated[int, Range(1, 500)] = 10

    def coalitions(self, segments: int, generator: torch.Generator) -> Tensor:
        place = F.orders(segments, self.samples, generator)
        return (place[:, None] < torch.arange(1, segments)[:, None]).flatten(0, 1)

    def values(self, kept: Tensor, scores: Tensor, ends: Tensor) -> Tensor:
        if kept.shape[1] == 1:
            return ends.diff()
        steps = kept.view(-1, kept.shape[1] - 1, kept.shape[1])
        first, last = ends.expand(len(steps), 2).split(1, dim=1)
        gains = torch.cat([first, scores.view(steps.shape[:2]), last], dim=1).diff(dim=1)
        # A segment that is in m of the coalitions of an order joined so many before its end.
        return gains.gather(1, steps.shape[1] - steps.sum(dim=1)).mean(dim=0)


@explainers.register("kernel-shap")
@dataclass(frozen=True)
class KernelShap(ShapleyExplainer):
    """KernelSHAP: Shapley values by a linear fit to random coalitions (Lundberg and Lee 2017, arXiv:1705.07874, th. 2).

    Coalitions come in pairs of opposites, and the values sum to f(x) - f(baseline) exactly (arXiv:2012.01536). If
    `samples` allows all of them, the values are exact. Computed here rather than by captum, which draws for one image
    at a time and enforces the sum by a large weight.

    Args:
        samples: coalitions.
    """

    passes: ClassVar[str] = "501 forward"
    samples: Annotated[int, Range(2, 20_000)] = 500

    def coalitions(self, segments: int, generator: torch.Generator) -> Tensor:
        return F.shapley_coalitions(segments, self.samples, generator)

    def values(self, kept: Tensor, scores: Tensor, ends: Tensor) -> Tensor:
        return F.shapley_regression(kept, scores - ends[0], F.shapley_weights(kept), ends[1] - ends[0])


@explainers.register("lime")
@dataclass(frozen=True)
class LIME(SegmentExplainer):
    """LIME: linear model of the score, one coefficient a segment (Ribeiro et al. 2016, arXiv:1602.04938, sec. 3.4).

    Segments are shown with probability one half, runs are weighed by their cosine nearness to the whole image, and the
    fit is a ridge regression, as in the released code. Differs from it: superpixels are SLIC's, and hidden ones become
    the baseline, not their own mean colour. Computed here rather than by captum, which draws for one image at a time
    and fits a lasso.

    Args:
        samples: runs, the untouched image among them.
        width: of the kernel of nearness.
        penalty: of the ridge regression.
    """

    passes: ClassVar[str] = "500 forward"
    samples: Annotated[int, Range(2, 20_000)] = 500
    width: Annotated[float, Range(0, 1000, open_low=True)] = 0.25
    penalty: Annotated[float, Range(0, 1e6, open_low=True)] = 1.0

    def coalitions(self, segments: int, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(self.samples - 1, segments, generator=generator) < 0.5
        return torch.cat([torch.ones(1, segments, dtype=torch.bool), drawn])

    def values(self, kept: Tensor, scores: Tensor, ends: Tensor) -> Tensor:
        return F.ridge(kept, scores, F.lime_weights(kept, self.width), self.penalty)
