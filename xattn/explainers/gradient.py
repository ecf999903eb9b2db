"""Gradients of the score by the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from xattn.explainer import Explainer, Family
from xattn.explainers import explainers
from xattn.functional.gradient import ChannelReduction, reduce_channels
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace


@explainers.register("saliency", "gradient")
@dataclass(frozen=True)
class Saliency(Explainer):
    """Saliency: gradient by the pixels, largest |g_c| over the channels (Simonyan et al. 2013, arXiv:1312.6034).

    Args:
        reduce: over the channels: `"max"` of the absolute values (sec. 3.1), `"sum"` with signs, `"mean_abs"`
            or `"norm"`.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.GRADIENT
    opposes: ClassVar[bool] = True
    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward, down to the input"
    paper: ClassVar[str] = "Simonyan et al. 2013, arXiv:1312.6034, sec. 3.1"
    reduce: ChannelReduction = "max"

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return (INPUT,)

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(trace.gradient(INPUT), self.reduce)


@explainers.register("input-x-gradient")
@dataclass(frozen=True)
class InputXGradient(Explainer):
    """Input x gradient: x_c g_c, summed over the channels (Shrikumar et al. 2016, arXiv:1605.01713).

    The input is the normalized one, so that the mean colour of the training set counts for nothing.

    Args:
        reduce: over the channels: `"sum"` with signs, `"max"` of the absolute values, `"mean_abs"` or `"norm"`.
    """

    volumes: ClassVar[bool] = True
    family: ClassVar[Family] = Family.GRADIENT
    opposes: ClassVar[bool] = True
    grad: ClassVar[bool] = True
    passes: ClassVar[str] = "shared backward, down to the input"
    reduce: ChannelReduction = "sum"

    def layers(self, spec: ModelSpec) -> tuple[str, ...]:
        return (INPUT,)

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(trace.activation(INPUT) * trace.gradient(INPUT), self.reduce)
