"""Gradients gathered along a path to the image; all steps of a batch of images at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.explainers.passes import (
    BaselineName,
    Chunk,
    as_image,
    baseline_image,
    clean_scores,
    completeness_error,
    gradient_again,
    owners,
    scores_of,
    slopes_again,
    tiles,
)
from xattn.functional.baselines import baselines
from xattn.functional.gradient import ChannelReduction, reduce_channels
from xattn.functional.path import Rule, blur_matrix, blurred, guided_step, quadrature
from xattn.schema import Range
from xattn.trace import Trace

_HALVED, _ROUNDS = 50, 6  # steps of guided IG that are halved at a time, and how often


@dataclass(frozen=True)
class PixelExplainer(Explainer):
    """A method with an attribution for each channel of each pixel.

    Args:
        reduce: over the channels: `"sum"` with signs, `"max"` of the absolute values, `"mean_abs"` or `"norm"`.
        chunk: images a batch; no part of the result.
    """

    family: ClassVar[Family] = Family.GRADIENT
    opposes: ClassVar[bool] = True
    reduce: ChannelReduction = field(default="sum", kw_only=True)
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)

    @abstractmethod
    def channels(self, trace: Trace) -> Tensor:
        """Attributions (N, C, H, W)."""

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(self.channels(trace), self.reduce)


@dataclass(frozen=True)
class PathExplainer(PixelExplainer):
    """A method whose attributions sum to f(x) - f(baseline), but for the error of a finite number of steps.

    Without a number of steps, each image gets as many as its sum needs to be right to 1 %, up to a limit: at first as
    many as suffice for smooth models, then more between them, so that no gradient is computed twice. With a number, it
    is that number. A sum that is off by more than 5 % in the end (the accuracy that arXiv:1703.01365, sec. 5, asks
    for) makes the map `non-conserving`. The sum is that of the channels with their signs.
    """

    tolerance: ClassVar[float] = 0.05
    aim: ClassVar[float] = 0.01
    beyond: ClassVar[int]
    """Steps to try where the limit did not do."""

    @abstractmethod
    def start(self, trace: Trace) -> Tensor:
        """Where the path begins (N, C, H, W)."""

    @abstractmethod
    def along(self, trace: Trace, steps: int) -> Tensor:
        """Attributions (N, C, H, W) with so many steps."""

    @abstractmethod
    def refined(self, trace: Trace, row: Tensor) -> Iterator[Tensor]:
        """Attributions (1, C, H, W) of one image (1,), with more and more steps."""

    def channels(self, trace: Trace) -> Tensor:
        steps: int | None = self.steps  # type: ignore[attr-defined]
        return trace.once(("along", self), lambda: self._grown(trace) if steps is None else self.along(trace, steps))

    def _grown(self, trace: Trace) -> Tensor:
        maps = []
        # One image at a time: when to stop is a choice, and a batch must not change it by rounding.
        for row in torch.arange(len(trace.x), device=trace.x.device).split(1):
            for found in self.refined(trace, row):
                if float(self._error(trace, found, row)) <= self.aim:
                    break
            maps.append(found)
        return torch.cat(maps) if maps else torch.zeros_like(trace.x)

    def _gradients(self, trace: Trace, points: Tensor, row: Tensor) -> Tensor:
        """Gradients (S, C, H, W) at points (S, C, H, W) on the way to one image."""
        gradient = gradient_again(trace)
        return torch.cat([gradient(part, row.expand(len(part))) for part in points.split(self.chunk)])

    def _start_scores(self, trace: Trace) -> Tensor:
        return trace.once(("start", self), lambda: scores_of(trace, self.start(trace), self.chunk))

    def _error(self, trace: Trace, values: Tensor, rows: Tensor) -> Tensor:
        total, magnitude = values.sum((1, 2, 3)), values.abs().sum((1, 2, 3))
        return completeness_error(trace, total, self._start_scores(trace)[rows], magnitude, rows)

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        """Relative error (N,) of sum of the map = f(x) - f(baseline)."""
        every = torch.arange(len(maps), device=maps.device)
        return self._error(trace, maps, every) if self.reduce == "sum" else None

    def remedy(self, trace: Trace, maps: Tensor, i: int) -> str:
        due = float(clean_scores(trace)[i] - self._start_scores(trace)[i])
        better = f"try steps={self.beyond}"
        if self.steps is not None:  # type: ignore[attr-defined]
            better = "leave steps out and they grow until it does"
        return f"adds up to {float(maps[i].sum()):.3g} of {due:.3g}: {better}"


@explainers.register("integrated-gradients", "ig")
@dataclass(frozen=True)
class IntegratedGradients(PathExplainer):
    """Integrated gradients: (x - b) x mean gradient between b and x (Sundararajan et al. 2017, arXiv:1703.01365).

    The path from the baseline b is straight. Computed here rather than by captum: baselines are those of the metrics,
    steps grow until the sum is right, and those of all images fill batches of one size.

    Args:
        baseline: where the path begins: `"black"`, `"mean"`, `"blur"` or `"noise"`, defined on pixels and then
            normalized.
        steps: gradients on the way; None takes 50, then 150 and 450 for images whose sum is not right to 1 % yet.
        rule: of the integral, `"midpoint"`, whose gradients are used again when the steps grow, or
            `"gauss-legendre"`.
    """

    volumes: ClassVar[bool] = True
    passes: ClassVar[str] = "51 forward, 50 backward, up to 9 times as many where the sum needs them"
    paper: ClassVar[str] = "Sundararajan et al. 2017, arXiv:1703.01365, eq. 1"
    beyond: ClassVar[int] = 2000
    baseline: BaselineName = "black"
    steps: Annotated[int | None, Range(1, 2000)] = None
    rule: Rule = "midpoint"

    def start(self, trace: Trace) -> Tensor:
        return baseline_image(trace, self.name, self.baseline)

    def along(self, trace: Trace, steps: int) -> Tensor:
        start, x = self.start(trace), trace.x
        nodes, weights = (part.to(x).view(-1, 1, 1, 1) for part in quadrature(self.rule, steps))
        gradient, mean = gradient_again(trace), torch.zeros_like(x)
        for images, part in tiles(len(x), steps, self.chunk):
            points = start[images, None].lerp(x[images, None], nodes[part])
            found = gradient(points.flatten(0, 1), owners(images, part, x.device))
            mean[images] += (found.view_as(points) * weights[part]).sum(1)
        return (x - start) * mean

    def refined(self, trace: Trace, row: Tensor) -> Iterator[Tensor]:
        start, x = self.start(trace)[row], trace.x[row]
        mean, before = torch.zeros_like(x), 0
        for steps in (50, 150, 450):
            nodes, weights = (part.to(x).view(-1, 1, 1, 1) for part in quadrature(self.rule, steps))
            if self.rule == "midpoint" and before:  # the middle of each three is a midpoint of before
                new = torch.arange(steps, device=x.device) % 3 != 1
                nodes, weights, mean = nodes[new], weights[new], mean * before / steps
            else:
                mean = torch.zeros_like(x)
            mean = mean + (self._gradients(trace, start.lerp(x, nodes), row) * weights).sum(0, keepdim=True)
            before = steps
            yield (x - start) * mean


@explainers.register("blur-ig")
@dataclass(frozen=True)
class BlurIG(PathExplainer):
    """Blur IG: integrated gradients on the way from a blurred image to a sharp one (Xu et al. 2020, arXiv:2004.03383).

    It needs no colour as a baseline. The integral is a sum over differences of the blurred images themselves
    (trapezoids), so that its error is that of the gradients alone. Differs from the released code: the border is
    repeated where that darkens it, and the standard deviation grows as the square of the step, since most of the
    change is near the sharp image: that halves the error of the sum.

    Args:
        sigma: of the first blur, as a share of the image's shorter side; the paper's 50 pixels at 224.
        steps: from the sharp image to the first blur; None takes 50, then 100 and 200 for images whose sum is not
            right to 1 % yet.
    """

    passes: ClassVar[str] = "52 forward, 51 backward, up to 4 times as many where the sum needs them"
    beyond: ClassVar[int] = 500
    sigma: Annotated[float, Range(0, 10, open_low=True)] = 50 / 224
    steps: Annotated[int | None, Range(1, 500)] = None

    def _blurs(self, trace: Trace, steps: int) -> list[Tensor]:
        """Filters of all steps along the height (S + 1, H, H) and the width (S + 1, W, W), from the sharp image on."""

        def make() -> list[Tensor]:
            sigmas = [self.sigma * min(trace.input_size) * (i / steps) ** 2 for i in range(steps + 1)]
            return [torch.stack([blur_matrix(size, s) for s in sigmas]).to(trace.x) for size in trace.input_size]

        return trace.once((self, steps), make)

    def start(self, trace: Trace) -> Tensor:
        return blurred(trace.x, *(blur[-1:] for blur in self._blurs(trace, self.steps or 50)))[:, 0]

    def along(self, trace: Trace, steps: int) -> Tensor:
        gradient, total = gradient_again(trace), torch.zeros_like(trace.x)
        for images, part in tiles(len(trace.x), steps + 1, self.chunk):
            # With a neighbour on each side, the step of a point is half the way between them.
            around = torch.arange(part.start - 1, part.stop + 1).clamp(0, steps)
            points = blurred(trace.x[images], *(blur[around] for blur in self._blurs(trace, steps)))
            found = gradient(points[:, 1:-1].flatten(0, 1), owners(images, part, trace.x.device))
            total[images] += (found.view_as(points[:, 1:-1]) * (points[:, :-2] - points[:, 2:])).sum(1) / 2
        return total

    def refined(self, trace: Trace, row: Tensor) -> Iterator[Tensor]:
        found: Tensor | None = None
        for steps in (50, 100, 200):
            points = blurred(trace.x[row], *self._blurs(trace, steps))[0]
            if found is None:
                found = self._gradients(trace, points, row)
            else:  # every other point is new
                added = self._gradients(trace, points[1::2], row)
                found = torch.cat([torch.stack([found[:-1], added], dim=1).flatten(0, 1), found[-1:]])
            around = torch.cat([points[:1], points, points[-1:]])
            yield ((around[:-2] - around[2:]) / 2 * found).sum(0, keepdim=True)


@explainers.register("guided-ig")
@dataclass(frozen=True)
class GuidedIG(PathExplainer):
    """Guided IG: the path moves the pixels of least gradient first (Kapishnikov et al. 2021, arXiv:2106.09788).

    So it keeps away from points where the gradient is large for no reason of the image. Each step depends on the one
    before. Differs from the released code: the gradient of a step is the mean of those at its two ends, which costs
    nothing. With the first alone, which chose the pixels for being small there, the sums of 10 maps of tiny-cnn missed
    f(x) - f(baseline) by 24 % in the median; with both by 3 %, at most 18 %. Without a number of steps the path is that
    of 100 choices, and where the sum along it is not right, those steps are halved whose gradients miss most of what
    they add to the score, 50 at a time: the path itself stays. Which pixels move is a choice by rank, in which rounding
    leads to another path: maps of tiny-brnpa differed by 16 to 22 % between a batch and single images. So each image
    runs alone, whatever the batch; another device still rounds otherwise.

    Args:
        baseline: where the path begins: `"black"`, `"mean"`, `"blur"` or `"noise"`, defined on pixels and then
            normalized.
        steps: on the way, one after the other; None takes 100, and up to 300 more points between them for images whose
            sum is not right to 1 % yet.
        fraction: of the features that move at a time.
        reach: how far a feature may be from the straight path, as a share of its way; 0 is the straight path.
    """

    volumes: ClassVar[bool] = True
    passes: ClassVar[str] = "102 forward, 101 backward, one after the other, up to 300 more where the sum needs them"
    beyond: ClassVar[int] = 1000
    baseline: BaselineName = "black"
    steps: Annotated[int | None, Range(1, 10_000)] = None
    fraction: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    reach: Annotated[float, Range(0, 1)] = 0.02

    def start(self, trace: Trace) -> Tensor:
        return baseline_image(trace, self.name, self.baseline)

    def along(self, trace: Trace, steps: int) -> Tensor:
        # One image at a time: a convolution of a batch rounds otherwise than that of one image, and a choice by rank,
        # taken again a hundred times, makes another path of it.
        rows = torch.arange(len(trace.x), device=trace.x.device).split(1)
        return torch.cat([_trapezoids(*self._path(trace, row, steps)[:2]) for row in rows])

    def _path(self, trace: Trace, row: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points of the path of one image (S + 1, C, H, W), gradients and scores (S + 1,) there."""
        slopes = slopes_again(trace)
        first = self.start(trace)[row]
        way = trace.x[row] - first
        length = way.abs().flatten(1)
        place, points, found = torch.zeros_like(length), [first], [slopes(first, row)]
        for step in range(1, steps + 1):
            cost = found[-1][:, :-1].abs().to(length)
            place = guided_step(place, cost, length, step / steps, self.fraction, self.reach)
            points.append(first + place.view_as(way) * way)
            found.append(slopes(points[-1], row))
        path, made = torch.cat(points), torch.cat(found)
        return path, made[:, :-1].reshape(path.shape), made[:, -1]

    def refined(self, trace: Trace, row: Tensor) -> Iterator[Tensor]:
        points, gradients, scores = self._path(trace, row, 100)
        slopes = slopes_again(trace)
        yield _trapezoids(points, gradients)
        for _ in range(_ROUNDS):
            # What a step adds to the score is known, so it is known where the trapezoids miss it: these are halved.
            step, mean = points.diff(dim=0), (gradients[1:] + gradients[:-1]) / 2
            missed = (scores.diff() - (step * mean).flatten(1).sum(1)).abs()
            worst = missed.topk(min(_HALVED, len(missed))).indices.sort().values
            middle = (points[worst] + points[worst + 1]) / 2
            own = row.expand(len(middle))
            made = torch.cat(
                [slopes(*part) for part in zip(middle.split(self.chunk), own.split(self.chunk), strict=True)]
            )
            order = torch.cat([torch.arange(len(points), device=worst.device), worst + 0.5]).argsort()
            points = torch.cat([points, middle])[order]
            gradients = torch.cat([gradients, made[:, :-1].reshape(middle.shape)])[order]
            scores = torch.cat([scores, made[:, -1]])[order]
            yield _trapezoids(points, gradients)


def _trapezoids(points: Tensor, gradients: Tensor) -> Tensor:
    """Attributions (1, C, H, W) along a path (S + 1, C, H, W): each step times the mean gradient of its two ends."""
    return (points.diff(dim=0) * (gradients[1:] + gradients[:-1]) / 2).sum(0, keepdim=True)


@explainers.register("gradient-shap", "expected-gradients")
@dataclass(frozen=True)
class GradientShap(PixelExplainer):
    """GradientSHAP, or expected gradients: E[(x - b) grad f(b + u (x - b))] (Erion et al. 2019, arXiv:1906.10670).

    The baseline b is random, u uniform on [0, 1]. Completeness holds in the mean over the draws. Differs from the
    paper: a method here is bound to no training set, so baselines are images of noise, a new one for each draw; a
    fixed baseline gives integrated gradients at random steps. Computed here rather than by captum, whose draws depend
    on the batch.

    Args:
        baseline: what is drawn: `"noise"`; or a fixed image, `"black"`, `"mean"` or `"blur"`.
        samples: draws.
    """

    volumes: ClassVar[bool] = True
    passes: ClassVar[str] = "50 forward, 50 backward"
    paper: ClassVar[str] = "Erion et al. 2019, arXiv:1906.10670; Lundberg and Lee 2017, arXiv:1705.07874"
    baseline: BaselineName = "noise"
    samples: Annotated[int, Range(1, 10_000)] = 50

    def channels(self, trace: Trace) -> Tensor:
        x, gradient = trace.x, gradient_again(trace)
        draw = drawn_baselines(trace, self.name, self.baseline)
        share = torch.stack(
            [torch.rand(self.samples, generator=trace.generator(i, self.name)) for i in range(len(x))]
        ).to(x)
        total = torch.zeros_like(x)
        for images, samples in tiles(len(x), self.samples, self.chunk):
            own = owners(images, samples, x.device)
            start, end = draw(own), x[own]
            found = gradient(start.lerp(end, share[images, samples].reshape(-1, 1, 1, 1)), own)
            total[images] += ((end - start) * found).unflatten(0, (-1, samples.stop - samples.start)).sum(1)
        return total / self.samples


def drawn_baselines(trace: Trace, method: str, baseline: str) -> Callable[[Tensor], Tensor]:
    """A function that draws the next baseline (B, C, H, W) of each image in (B,), in the order of its samples.

    Raises:
        NotApplicableError: if the baseline is no image by itself.
    """
    chosen, spec = baselines.parse(baseline), trace.spec
    generators = [trace.generator(i, f"{method}/{chosen!r}") for i in range(len(trace.x))]

    def draw(own: Tensor) -> Tensor:
        x, image = trace.x[own], own.tolist()
        replace = chosen.prepare(x, spec.mean, spec.std, lambda row: generators[image[row]])
        return as_image(replace, method, baseline).expand_as(x)

    return draw
