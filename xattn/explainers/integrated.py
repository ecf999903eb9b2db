"""Gradients gathered along a path to the image, or over noisy copies of it; all steps of a batch of images at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xattn.explainer import Explainer, Family, needs_of
from xattn.explainers import explainers
from xattn.explainers.gradient import InputXGradient, Saliency
from xattn.explainers.guided import GuidedBackprop, guided_gradient
from xattn.explainers.passes import (
    BaselineName,
    Chunk,
    Halving,
    as_image,
    baseline_image,
    completeness_error,
    gradient_again,
    laid_out,
    owners,
    scores_of,
    tiles,
)
from xattn.functional.baselines import baselines
from xattn.functional.gradient import ChannelReduction, reduce_channels
from xattn.functional.path import Rule, blur_matrix, blurred, guided_step, quadrature
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace


@dataclass(frozen=True)
class PixelExplainer(Explainer):
    """A method with an attribution for each channel of each pixel.

    Args:
        reduce: over the channels: `"sum"` with signs, `"max"` of the absolute values, `"mean_abs"` or `"norm"`.
        chunk: images a batch; no part of the result.
    """

    family: ClassVar[Family] = Family.GRADIENT
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

    The sum is checked where the channels are summed with their signs; a map that misses it by more than 5 % (the
    accuracy that arXiv:1703.01365, sec. 5, asks for) is marked `non-conserving`: more steps help.
    """

    tolerance: ClassVar[float] = 0.05

    @abstractmethod
    def start(self, trace: Trace) -> Tensor:
        """Where the path begins (N, C, H, W)."""

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        """Relative error (N,) of sum of the map = f(x) - f(baseline)."""
        if self.reduce != "sum":
            return None
        start = scores_of(trace, self.start(trace), self.chunk)
        return completeness_error(trace, maps.sum((1, 2, 3)), start, maps.abs().sum((1, 2, 3)))


@explainers.register("integrated-gradients", "ig")
@dataclass(frozen=True)
class IntegratedGradients(PathExplainer):
    """Integrated gradients: (x - b) x mean gradient between b and x (Sundararajan et al. 2017, arXiv:1703.01365).

    The path from the baseline b is straight. Computed here rather than by captum: baselines are those of the metrics,
    and the steps of all images fill batches of one size.

    Args:
        baseline: where the path begins: `"black"`, `"mean"`, `"blur"` or `"noise"`, defined on pixels and then
            normalized.
        steps: gradients on the way.
        rule: of the integral, `"midpoint"` or `"gauss-legendre"`.
    """

    passes: ClassVar[str] = "51 forward, 50 backward"
    paper: ClassVar[str] = "Sundararajan et al. 2017, arXiv:1703.01365, eq. 1"
    baseline: BaselineName = "black"
    steps: Annotated[int, Range(1, 2000)] = 50
    rule: Rule = "midpoint"

    def start(self, trace: Trace) -> Tensor:
        return baseline_image(trace, self.name, self.baseline)

    def channels(self, trace: Trace) -> Tensor:
        start, x = self.start(trace), trace.x
        nodes, weights = (part.to(x).view(-1, 1, 1, 1) for part in quadrature(self.rule, self.steps))
        gradient, mean = gradient_again(trace), torch.zeros_like(x)
        for images, steps in tiles(len(x), self.steps, self.chunk):
            points = start[images, None].lerp(x[images, None], nodes[steps])
            found = gradient(points.flatten(0, 1), owners(images, steps, x.device))
            mean[images] += (found.view_as(points) * weights[steps]).sum(1)
        return (x - start) * mean


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
        steps: from the sharp image to the first blur.
    """

    passes: ClassVar[str] = "52 forward, 51 backward"
    sigma: Annotated[float, Range(0, 10, open_low=True)] = 50 / 224
    steps: Annotated[int, Range(1, 500)] = 50

    def _blurs(self, trace: Trace) -> list[Tensor]:
        """Filters of all steps along the height (S + 1, H, H) and the width (S + 1, W, W), from the sharp image on."""

        def make() -> list[Tensor]:
            sigmas = [self.sigma * min(trace.input_size) * (i / self.steps) ** 2 for i in range(self.steps + 1)]
            return [torch.stack([blur_matrix(size, s) for s in sigmas]).to(trace.x) for size in trace.input_size]

        return trace.once(self, make)

    def start(self, trace: Trace) -> Tensor:
        return blurred(trace.x, *(blur[-1:] for blur in self._blurs(trace)))[:, 0]

    def channels(self, trace: Trace) -> Tensor:
        gradient, total = gradient_again(trace), torch.zeros_like(trace.x)
        for images, steps in tiles(len(trace.x), self.steps + 1, self.chunk):
            # With a neighbour on each side, the step of a point is half the way between them.
            around = torch.arange(steps.start - 1, steps.stop + 1).clamp(0, self.steps)
            points = blurred(trace.x[images], *(blur[around] for blur in self._blurs(trace)))
            found = gradient(points[:, 1:-1].flatten(0, 1), owners(images, steps, trace.x.device))
            total[images] += (found.view_as(points[:, 1:-1]) * (points[:, :-2] - points[:, 2:])).sum(1) / 2
        return total


@explainers.register("guided-ig")
@dataclass(frozen=True)
class GuidedIG(PixelExplainer):
    """Guided IG: the path moves the pixels of least gradient first (Kapishnikov et al. 2021, arXiv:2106.09788).

    So it keeps away from points where the gradient is large for no reason of the image. Each step depends on the one
    before. Differs from the released code: the gradient of a step is the mean of those at its two ends, which costs
    nothing. With the first alone, which chose the pixels for being small there, the sums of 10 maps of tiny-cnn missed
    f(x) - f(baseline) by 24 % in the median; with both by 3 %, at most 18 %. So the sum is not checked. Which pixels
    move is a choice by rank, in which rounding leads to another path: maps of tiny-brnpa differed by 16 to 22 % between
    a batch and single images. So each image runs alone, whatever the batch; another device still rounds otherwise.

    Args:
        baseline: where the path begins: `"black"`, `"mean"`, `"blur"` or `"noise"`, defined on pixels and then
            normalized.
        steps: on the way, one after the other.
        fraction: of the features that move at a time.
        reach: how far a feature may be from the straight path, as a share of its way; 0 is the straight path.
    """

    passes: ClassVar[str] = "101 forward, 101 backward, one after the other"
    baseline: BaselineName = "black"
    steps: Annotated[int, Range(1, 10_000)] = 100
    fraction: Annotated[float, Range(0, 1, open_low=True)] = 0.25
    reach: Annotated[float, Range(0, 1)] = 0.02

    def channels(self, trace: Trace) -> Tensor:
        gradient, start = gradient_again(trace), baseline_image(trace, self.name, self.baseline)
        maps = []
        # One image at a time: a convolution of a batch rounds otherwise than that of one image, and a choice by rank,
        # taken again a hundred times, makes another path of it.
        for rows in torch.arange(len(trace.x), device=trace.x.device).split(1):
            first, way = start[rows], trace.x[rows] - start[rows]
            length = way.abs().flatten(1)
            place, total = torch.zeros_like(length), torch.zeros_like(way)
            here = gradient(first, rows)
            for step in range(1, self.steps + 1):
                moved = guided_step(
                    place, here.abs().flatten(1).to(length), length, step / self.steps, self.fraction, self.reach
                )
                there = gradient(first + moved.view_as(way) * way, rows)
                total += (here + there) / 2 * (moved - place).view_as(way) * way
                place, here = moved, there
            maps.append(total)
        return torch.cat(maps)


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


def drawn_baselines(trace: Trace, who: str, baseline: str) -> Callable[[Tensor], Tensor]:
    """A function that draws the next baseline (B, C, H, W) of each image in (B,), in the order of its samples.

    Raises:
        NotApplicableError: if the baseline is no image by itself.
    """
    chosen, spec = baselines.parse(baseline), trace.spec
    generators = [trace.generator(i, f"{who}/{chosen!r}") for i in range(len(trace.x))]

    def draw(own: Tensor) -> Tensor:
        x, image = trace.x[own], own.tolist()
        replace = chosen.prepare(x, spec.mean, spec.std, lambda row: generators[image[row]])
        return as_image(replace, who, baseline).expand_as(x)

    return draw


# Methods whose attributions have channels, before these are reduced as their field `reduce` says.
_CHANNELS: dict[type[Explainer], Callable[[Trace], Tensor]] = {
    Saliency: lambda trace: trace.gradient(INPUT),
    InputXGradient: lambda trace: trace.activation(INPUT) * trace.gradient(INPUT),
    GuidedBackprop: guided_gradient,
}


@dataclass(frozen=True)
class NoiseTunnel(Explainer):
    """A statistic of another method's attributions over noisy copies of the image.

    Where that method has an attribution for each channel of each pixel, the statistic is taken of these, with their
    signs, and the channels are reduced after; else of its maps. All three statistics come from the same copies: with
    equal parameters, the second and third of them cost nothing. Computed here rather than by captum, whose noise
    depends on the batch and whose default takes absolute values first.

    Args:
        of: the other method and its parameter, as in `"saliency"`, `"gradcam"` or `"integrated-gradients:steps=8"`.
        samples: noisy copies.
        noise: standard deviation of the Gaussian noise, as a share of the range of the normalized image.
        chunk: images a batch; no part of the result.
    """

    family: ClassVar[Family] = Family.GRADIENT
    passes: ClassVar[str] = "50 forward, 50 backward, shared by the three of the noise tunnel"
    of: Annotated[str, explainers.parse] = "saliency"
    samples: Annotated[int, Range(1, 10_000)] = 50
    noise: Annotated[float, Range(0, 100, open_low=True)] = 0.15
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)

    def check(self, spec: ModelSpec) -> None:
        explainers.parse(self.of).check(spec)

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        """What is shown, from mean and variance over the copies."""
        raise NotImplementedError

    def attribute(self, trace: Trace) -> Tensor:
        inner = explainers.parse(self.of)
        channels = getattr(inner, "channels", None) or _CHANNELS.get(type(inner))
        key = ("noise", inner, self.samples, self.noise)
        mean, variance = trace.once(key, lambda: self._moments(trace, inner, channels))
        found = self.statistic(mean, variance)
        return found if channels is None else reduce_channels(found, inner.reduce)  # type: ignore[attr-defined]

    def _moments(
        self, trace: Trace, inner: Explainer, channels: Callable[[Trace], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance over the noisy copies, (N, C, H, W) or (N, 1, h, w)."""
        x = trace.x
        sigma = self.noise * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))
        generators = [trace.generator(i, "noise tunnel") for i in range(len(x))]
        seeds = torch.stack(
            [
                torch.randint(1 << 31, (self.samples,), generator=trace.generator(i, "noise tunnel/seeds"))
                for i in range(len(x))
            ]
        )
        again = Halving(lambda images, own, seed: self._inner(trace, inner, channels, images, own, seed))
        found: list[tuple[int, Tensor, Tensor]] = []
        for images, samples in tiles(len(x), self.samples, self.chunk):
            own = owners(images, samples, x.device)
            # One copy after the other, so that the numbers do not depend on how they are cut into batches.
            noise = torch.stack([torch.randn(x.shape[1:], generator=generators[i]) for i in own.tolist()])
            copies = x[own] + sigma[own].view(-1, 1, 1, 1) * noise.to(x)
            values = again(copies, own, seeds[images, samples].flatten())
            values = values.unflatten(0, (-1, samples.stop - samples.start))
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            if samples.start == 0:
                found.append((samples.stop, mean, variance))
                continue
            # More samples of the same image: two groups of known mean and variance make one (Chan et al. 1979).
            before, old_mean, old_variance = found.pop()
            share, apart = 1 - before / samples.stop, mean - old_mean
            variance = old_variance.lerp(variance, share) + share * (1 - share) * apart.square()
            found.append((samples.stop, old_mean + share * apart, variance))
        return torch.cat([m for _, m, _ in found]), torch.cat([v for _, _, v in found])

    def _inner(
        self,
        trace: Trace,
        inner: Explainer,
        channels: Callable[[Trace], Tensor] | None,
        images: Tensor,
        own: Tensor,
        seed: Tensor,
    ) -> Tensor:
        again = trace.again(laid_out(images), rows=own, seeds=seed.tolist(), **needs_of([inner], trace.spec))
        return inner.explanation(again).maps if channels is None else channels(again)


@explainers.register("smoothgrad")
@dataclass(frozen=True)
class SmoothGrad(NoiseTunnel):
    """SmoothGrad: mean attribution over noisy copies of the image (Smilkov et al. 2017, arXiv:1706.03825).

    The mean is taken of the gradients with their signs, as in the paper; their absolute values come after.

    Args:
        of: the other method and its parameter, as in `"saliency"`, `"gradcam"` or `"integrated-gradients:steps=8"`.
        samples: noisy copies.
        noise: standard deviation of the Gaussian noise, as a share of the range of the normalized image; the paper
            has 0.1 to 0.2.
    """

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return mean


@explainers.register("smoothgrad-squared", "smoothgrad-sq", "square-grad")
@dataclass(frozen=True)
class SmoothGradSquared(NoiseTunnel):
    """SmoothGrad-squared: mean square of the attribution over noisy copies (Hooker et al. 2019, arXiv:1806.10758).

    Args:
        of: the other method and its parameter, as in `"saliency"`, `"gradcam"` or `"integrated-gradients:steps=8"`.
        samples: noisy copies.
        noise: standard deviation of the Gaussian noise, as a share of the range of the normalized image.
    """

    paper: ClassVar[str] = "Hooker et al. 2019, ROAR, arXiv:1806.10758"

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return mean.square() + variance


@explainers.register("vargrad")
@dataclass(frozen=True)
class VarGrad(NoiseTunnel):
    """VarGrad: variance of the attribution over noisy copies of the image (Adebayo et al. 2018, arXiv:1810.03292).

    Args:
        of: the other method and its parameter, as in `"saliency"`, `"gradcam"` or `"integrated-gradients:steps=8"`.
        samples: noisy copies, at least two.
        noise: standard deviation of the Gaussian noise, as a share of the range of the normalized image.
    """

    samples: Annotated[int, Range(2, 10_000)] = 50

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        return variance
