"""LRP, deep Taylor decomposition and excitation backpropagation: relevance handed back by a rule for each layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xattn.calls import Kind
from xattn.errors import NotApplicableError
from xattn.explainer import Explainer, Family, feature_layer
from xattn.explainers import explainers, rules
from xattn.explainers.propagation_tape import Passage, Tape, hand_back
from xattn.schema import Range
from xattn.spec import ModelSpec
from xattn.trace import INPUT, Trace

Composite = Literal[
    "auto", "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
]  # fmt: skip


class Propagation(Explainer):
    """Relevance is handed from the score back to the pixels or a layer, by a rule for each kind of call."""

    family: ClassVar[Family] = Family.PROPAGATION

    @abstractmethod
    def passage(self, trace: Trace) -> Passage:
        """Relevance, and the books of where it went."""

    def attribute(self, trace: Trace) -> Tensor:
        return self._passage(trace).relevance

    def _passage(self, trace: Trace) -> Passage:
        def run() -> Passage:
            passage = self.passage(trace)
            return replace(passage, relevance=passage.relevance.sum(1, keepdim=True))

        return trace.once(("relevance", self), run)

    def books(self, trace: Trace) -> tuple[Tensor, ...]:
        """Relevance (N,) that biases absorbed or that went around the layer, that was handed out, and its size."""
        passage = self._passage(trace)
        return passage.absorbed, passage.total, passage.size

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        """Error of sum R + absorbed = handed out, relative to the sum of |R|, here or at the top: the smaller.

        What biases and the epsilon rule absorb is worked out at each layer from its outputs, by the formula of the
        rule, so that relevance that goes missing or appears elsewhere is an error: a unit where the rule finds no
        input to hand it to, for one. So is a map that holds so little of it that nothing can be said.
        """
        absorbed, total, size = self.books(trace)
        values = maps.flatten(1).double()
        error, scale = (values.sum(1) + absorbed - total).abs(), torch.minimum(values.abs().sum(1), size)
        return error / scale.where(scale > 0, error.clamp(min=torch.finfo(error.dtype).tiny))


class _Layerwise(Propagation):
    """Each linear call has a rule of LRP."""

    passes: ClassVar[str] = "1 forward, 1 backward in which each layer runs up to 5 times"
    serves: ClassVar[str] = "CNNs without layer norm"
    of_logits: ClassVar[bool] = True

    @abstractmethod
    def assign(self, tape: Tape, trace: Trace) -> None:
        """Give each layer of the tape its rule."""

    def stop(self, spec: ModelSpec) -> str:
        """The layer whose relevance is the map."""
        return INPUT

    def check(self, spec: ModelSpec) -> None:
        if spec.tokens is not None:
            raise NotApplicableError(
                f"{self.name}: its rules are for convolutional networks and the model works on tokens; "
                "use attnlrp, cp-lrp or libragrad, which have rules for attention and layer norm."
            )

    def passage(self, trace: Trace) -> Passage:
        assign = partial(self.assign, trace=trace)
        return hand_back(trace, self.name, self.stop(trace.spec), assign, of_logits=self.of_logits)


# z+ everywhere, without biases.
_EXCITATION = rules.composite(rules.plus(biased=False), rules.plus(biased=False), rules.SAME_SIGN)


def _box(tape: Tape, trace: Trace) -> tuple[Tensor, Tensor] | None:
    """Least and largest values (N, C, 1, 1) of the pixels that the first convolution reads; None if they are unknown.

    These are black and white in normalized space, or what the image has where it goes beyond them.
    """
    spec, x = trace.spec, trace.x
    first = next(iter(tape.weighted), None)
    if spec.mean is None or spec.std is None or first is None or first.shape[1:2] != x.shape[1:2] or x.ndim != 4:
        return None
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.minimum(-mean / std, low), torch.maximum((1 - mean) / std, high)


@explainers.register("lrp")
@dataclass(frozen=True)
class LRP(_Layerwise):
    """LRP: relevance handed back layer by layer (Bach et al. 2015; composites: Kohlbrenner 2020, arXiv:1910.09840).

    The logits hand out R_k = g_k z_k, with g the gradient of the score: the explained logit itself, so that the map
    sums to it, less what biases and the epsilon rule absorb, which in a trained network can be most of it. For other
    scores the sum is sum_k g_k z_k, which is the score where that is linear in the logits. Batch norm is folded into
    the convolution before it or is a layer of its own, sums of two maps are split in proportion, and attention maps
    of B-CNN and BR-NPA heads and gates (squeeze-and-excitation) are constants. A model with a call that no rule fits
    is refused. Relevance of the channels is added.

    Args:
        composite: rules by kind of layer: epsilon in linear layers; z+, gamma or alpha-beta in
            convolutions; the z-box or the flat rule in the first layer. `"auto"` is `"epsilon-plus-flat"` for networks
            with residual sums or concatenations, and `"epsilon-gamma-box"` for chains of layers such as VGG (Montavon
            et al. 2019) and where a layer reads what no activation has passed (linear bottlenecks of MobileNet): there
            z+ finds nothing to hand relevance to.
        epsilon: stabilizer of the epsilon rule.
        gamma: how much the gamma rule favours positive weights.
    """

    paper: ClassVar[str] = (
        "Bach et al. 2015, doi:10.1371/journal.pone.0130140; Kohlbrenner et al. 2020, arXiv:1910.09840"
    )
    opposes: ClassVar[bool] = True
    composite: Composite = "auto"
    epsilon: Annotated[float, Range(0, 1000)] = 1e-6
    gamma: Annotated[float, Range(0, 1000)] = 0.25

    def assign(self, tape: Tape, trace: Trace) -> None:
        box, name = _box(tape, trace), self.composite
        if name == "auto":
            boxed = box is not None and (tape.bare or not tape.joins)
            name = "epsilon-gamma-box" if boxed else "epsilon-plus-flat"
        if name == "epsilon-gamma-box" and box is None:
            raise NotApplicableError(
                "lrp: epsilon-gamma-box needs the range of the pixels, but the model's mean and std are unknown or its "
                "first convolution reads something else; use composite=epsilon-plus-flat."
            )
        first: rules.Composite = {}
        if name == "epsilon-gamma-box" and box is not None:
            conv, first = rules.gamma(self.gamma), {Kind.CONV: rules.box(*box)}
        else:
            conv = rules.plus() if "plus" in name else rules.alpha_beta(2, 1)
            first = dict.fromkeys((Kind.CONV, Kind.LINEAR), rules.FLAT) if name.endswith("-flat") else {}
        rules.assign(tape.layers, rules.composite(conv, rules.epsilon(self.epsilon)), first)


@explainers.register("deep-taylor", "dtd")
@dataclass(frozen=True)
class DeepTaylor(_Layerwise):
    """Deep Taylor decomposition: z+ rule, z-box at the pixels (Montavon et al. 2017, arXiv:1512.02479, eqs. 13, 18).

    R_j = sum_k a_j w+_jk / (sum_j a_j w+_jk) R_k, without biases, so that the map sums to the logit up to the
    stabilizer. Where mean and std of the model are unknown, the w-square rule stands in for the z-box. Inputs below
    zero, which the paper does not have, pair with negative weights. Of a sum of two maps or a mean, the parts that
    have the sign of the whole share in proportion. Batch norm, gates, attention maps and what the logits hand out are
    as in LRP.
    """

    paper: ClassVar[str] = "Montavon et al. 2017, arXiv:1512.02479"

    def assign(self, tape: Tape, trace: Trace) -> None:
        box = _box(tape, trace)
        pixels = rules.SQUARE if box is None else rules.box(*box)
        rules.assign(tape.layers, _EXCITATION, {Kind.CONV: pixels, Kind.LINEAR: pixels})


@explainers.register("excitation-backprop", "ebp")
@dataclass(frozen=True)
class ExcitationBackprop(_Layerwise):
    """Excitation backprop: probability that a cell excites the class, winner takes all (Zhang 2016, arXiv:1608.00507).

    P(a_j) = sum_i a_j w+_ji / (sum_j a_j w+_ji) P(a_i), without biases, from 1 at the class (in general: from the
    gradient of the score by the logits) to the cells of a layer, whose channels are added: the map sums to 1, less
    what goes around the layer. Inputs below zero, which the paper does not have, pair with negative weights; of a sum
    of two maps or a mean, the parts that have the sign of the whole share in proportion. Batch norm, gates and
    attention maps are as in LRP.

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output, `""` the image.
        contrastive: take off what excites the opposite of the class, which has the negated weights (sec. 3.3), and
            cut the map at zero.
    """

    paper: ClassVar[str] = "Zhang et al. 2016, arXiv:1608.00507, eqs. 2-5"
    of_logits: ClassVar[bool] = False
    layer: str | None = None
    contrastive: bool = False

    def stop(self, spec: ModelSpec) -> str:
        return feature_layer(spec, self.name) if self.layer is None else self.layer

    def assign(self, tape: Tape, trace: Trace) -> None:
        rules.assign(tape.layers, _EXCITATION)
        if self.contrastive:
            if not tape.weighted:
                raise NotApplicableError(
                    f"{self.name}: there are no weights between layer '{self.stop(trace.spec)}' and the logits whose "
                    "opposite could be taken; choose an earlier layer, or contrastive=false."
                )
            tape.weighted[-1].contrast = True

    def attribute(self, trace: Trace) -> Tensor:
        maps = super().attribute(trace)
        return maps.clamp(min=0) if self.contrastive else maps

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        return None if self.contrastive else super().conservation(trace, maps)
