"""Statistics of the attributions of another method over noisy copies of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from xattn.explainer import Explainer, Family, needs_of, refuse_volumes
from xattn.explainers import explainers
from xattn.explainers.gradient import InputXGradient, Saliency
from xattn.explainers.guided import GuidedBackprop, guided_gradient
from xattn.explainers.passes import Chunk, Halving, laid_out, most_with_graph, owners, tiles
from xattn.functional.gradient import reduce_channels
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace

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

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.GRADIENT
    passes: ClassVar[str] = "50 forward, 50 backward, shared by the three of the noise tunnel"
    of: Annotated[str, explainers.parse] = "saliency"
    samples: Annotated[int, Range(1, 10_000)] = 50
    noise: Annotated[float, Range(0, 100, open_low=True)] = 0.15
    chunk: Chunk = field(default=64, kw_only=True, repr=False, compare=False)

    def check(self, spec: ModelSpec) -> None:
        explainers.parse(self.of).check(spec)

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        """Those of the other method, so that what speaks against its maps is said of these too."""
        return explainers.parse(self.of).layers(spec)

    def statistic(self, mean: Tensor, variance: Tensor) -> Tensor:
        """What is shown, from mean and variance over the copies."""
        raise NotImplementedError

    def attribute(self, trace: Trace) -> Tensor:
        inner = explainers.parse(self.of)
        refuse_volumes(inner, trace.inputs)
        channels = getattr(inner, "channels", None) or _CHANNELS.get(type(inner))
        key = ("noise", inner, self.samples, self.noise)
        mean, variance = trace.once(key, lambda: self._moments(trace, inner, channels))
        result = self.statistic(mean, variance)
        return result if channels is None else reduce_channels(result, inner.reduce)  # type: ignore[attr-defined]

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
        again = Halving(
            lambda images, own, seed: self._inner(trace, inner, channels, images, own, seed), most_with_graph(x)
        )
        blocks: list[tuple[int, Tensor, Tensor]] = []
        for images, samples in tiles(len(x), self.samples, self.chunk):
            own = owners(images, samples, x.device)
            # One copy after the other, so that the numbers do not depend on how they are cut into batches.
            noise = torch.stack([torch.randn(x.shape[1:], generator=generators[i]) for i in own.tolist()])
            copies = x[own] + sigma[own].view(-1, 1, 1, 1) * noise.to(x)
            values = again(copies, own, seeds[images, samples].flatten())
            values = values.unflatten(0, (-1, samples.stop - samples.start))
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            if samples.start == 0:
                blocks.append((samples.stop, mean, variance))
                continue
            # More samples of the same image: two groups of known mean and variance make one (Chan et al. 1979).
            before, old_mean, old_variance = blocks.pop()
            share, apart = 1 - before / samples.stop, mean - old_mean
            variance = old_variance.lerp(variance, share) + share * (1 - share) * apart.square()
            blocks.append((samples.stop, old_mean + share * apart, variance))
        return torch.cat([m for _, m, _ in blocks]), torch.cat([v for _, _, v in blocks])

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
        maps = inner.explanation(again).maps if channels is None else channels(again)
        return maps.flatten(2, 3) if maps.ndim == 5 else maps  # slices of a volume below each other, as in `attribute`


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

    @property
    def signed(self) -> bool:
        """As the method that it averages."""
        return explainers.parse(self.of).signed

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
