"""Guided backpropagation, its products with Grad-CAM and Grad-CAM++, and deconvolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xattn.calls import Call, Calls, Kind, Notes, bounds, refuse_scripts
from xattn.errors import NotApplicableError
from xattn.explainer import Explainer, Family, LayerExplainer
from xattn.explainers import explainers
from xattn.functional.cam import grad_cam, grad_cam_plus_plus
from xattn.functional.gradient import ChannelReduction, guided_relu, reduce_channels
from xattn.functional.resize import resize
from xattn.running import evaluating, unwrap
from xattn.trace import INPUT, Trace

# Nonlinearities that the rule does not know, besides those of kind `ACTIVATION`.
_OTHERS = frozenset({"erf", "glu", "logsigmoid", "maximum", "softplus"})
_GATES = (Kind.GATE, Kind.SOFTMAX)


class _DeconvolvedReLU(torch.autograd.Function):
    """ReLU whose gradient is R_in = R_out [R_out > 0]: what the ReLU read does not matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float | None) -> Tensor:
        return x.clamp(min=0, max=upper)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].clamp(min=0), None


def deconvolved_relu(x: Tensor, upper: float | None = None) -> Tensor:
    """ReLU whose gradient is R_in = R_out [R_out > 0] (Zeiler and Fergus 2014, arXiv:1311.2901, sec. 2.1).

    Args:
        x: any shape.
        upper: value at which the activation saturates, as in ReLU6; the gradient passes there too.

    Returns:
        The shape of `x`.

    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> torch.autograd.grad(deconvolved_relu(x), x, torch.tensor([1.0, 1.0, -1.0]))[0].tolist()
    [1.0, 1.0, 0.0]
    """
    y: Tensor = _DeconvolvedReLU.apply(x, upper)
    return y


Rectified = Callable[[Tensor, float | None], Tensor]


class Guided(Calls):
    """While it is entered, every ReLU has the guided gradient, whoever calls it and however.

    ReLU6, `clamp(min=0)` and `threshold(0)` are guided where they are linear. Nonlinearities that the rule does not
    know are counted.

    Args:
        relu: the ReLU with the gradient wanted, of a tensor and an upper bound: `guided_relu` or `deconvolved_relu`.

    Attributes:
        guided: number of activations guided.
        others: number of calls of each other nonlinearity. Gates (sigmoid, softmax) are none, unless they multiply
            their own input.
    """

    def __init__(self, relu: Rectified = guided_relu) -> None:
        super().__init__()
        self.relu = relu
        self.guided = 0
        self.others: Counter[str] = Counter()
        self._gates: Notes[Tensor] = Notes()  # what each gate was made of

    def handle(self, call: Call) -> Any:
        """A ReLU with the gradient wanted; all else as it is, and counted where it is nonlinear."""
        if call.kind in (Kind.RECTIFIER, Kind.CLIP):
            low, high = bounds(call) or (None, None)
            x: Tensor = call.args[0]
            if low == 0 and (high is None or high > 0) and x.is_floating_point() and "out" not in call.kwargs:
                if torch.is_grad_enabled():
                    return self._guide(call, x, high)
                self.others[f"{call.name} in a custom autograd function or under no_grad"] += 1
            elif call.name in ("hardtanh", "threshold"):
                self.others[call.name] += 1
        elif call.kind is Kind.ACTIVATION or call.name in _OTHERS or (call.name == "max" and len(call.tensors) > 1):
            self.others[call.name] += 1
        elif call.kind is Kind.PRODUCT and self._own_gate(*call.args[:2]):
            self.others["product of x and a gate of x (swish)"] += 1
        result = call.run()
        if (call.kind in _GATES or call.name == "log_softmax") and isinstance(result, Tensor):
            self._gates[result] = call.args[0]
        return result

    def _guide(self, call: Call, x: Tensor, upper: float | None) -> Any:
        if not x.requires_grad:  # not on the way from the input
            return call.run()
        self.guided += 1
        return call.finish(self.relu(x, None if upper is None else float(upper)))

    def _own_gate(self, *factors: object) -> bool:
        for gate, x in (factors, factors[::-1]):
            read = self._gates.get(gate) if isinstance(gate, Tensor) else None
            if read is not None and isinstance(x, Tensor) and read.data_ptr() == x.data_ptr():
                return bool(read.shape == x.shape)
        return False


def guided_share(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """How many activations of a model guided backpropagation reaches.

    Args:
        model: any module from images to logits; it leaves as it came.
        x: images (N, C, H, W) in the model's normalized space.

    Returns:
        Number of ReLUs that would be guided, and that of all nonlinearities on the way from the input, gates
        (sigmoid, softmax) left out. Guided backpropagation is defined where the two are equal and not zero.
    """
    model = unwrap(model)
    refuse_scripts(model, "guided-backprop", "saliency")
    with evaluating(model), torch.enable_grad(), Guided() as mode:
        model(x.detach().clone().requires_grad_())
    return mode.guided, mode.guided + mode.others.total()


def guided_gradient(trace: Trace, method: str = "guided-backprop", relu: Rectified = guided_relu) -> Tensor:
    """Gradient (N, C, H, W) of the score by the input with guided ReLUs; one forward and one backward of its own.

    Args:
        trace: the recorded pass; a second call for it repeats nothing.
        method: the one that asks, for messages.
        relu: the ReLU with the gradient wanted.
    """
    return trace.once(("guided gradient", relu), lambda: _guided_gradient(trace, method, relu))


def _guided_gradient(trace: Trace, method: str, relu: Rectified) -> Tensor:
    refuse_scripts(trace.model, method, "saliency")
    mode = Guided(relu)

    def score(logits: Tensor, target: Tensor) -> Tensor:
        mode.active = False  # a ReLU in the score is not one of the model
        return trace.score_fn(logits, target)

    with torch.inference_mode(False), mode:
        again = trace.again(layers=(INPUT,), score=score)
    if mode.guided == 0 or mode.others:
        counts = ", ".join(f"{count} {name}" for name, count in mode.others.most_common())
        raise NotApplicableError(
            f"{method}: its rule is defined where all activations are ReLUs; {type(trace.model).__name__} has "
            f"{mode.guided} ReLUs{' and ' + counts if counts else ' that can be seen'}. Use saliency or "
            "input-x-gradient."
        )
    return again.gradient(INPUT)


@explainers.register("guided-backprop", "guided-backpropagation")
@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """Guided backpropagation: at each ReLU only positive gradients pass (Springenberg et al. 2014, arXiv:1412.6806).

    R_in = R_out [R_out > 0] [x > 0] at every ReLU, functional, reused and in-place ones included. A model with other
    activations (GELU, SiLU, ...) is refused: a mixture would be neither guided nor the gradient.

    Args:
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    volumes: ClassVar[bool] = True
    title: ClassVar[str] = "Guided backprop"
    family: ClassVar[Family] = Family.PROPAGATION
    opposes: ClassVar[bool] = True
    passes: ClassVar[str] = "1 forward, 1 backward"
    serves: ClassVar[str] = "ReLU networks"
    paper: ClassVar[str] = "Springenberg et al. 2014, arXiv:1412.6806, sec. 3.4"
    relu: ClassVar[Rectified] = staticmethod(guided_relu)
    reduce: ChannelReduction = "max"

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(guided_gradient(trace, self.name, type(self).relu), self.reduce)


@explainers.register("deconvolution", "deconvnet")
@dataclass(frozen=True)
class Deconvolution(GuidedBackprop):
    """Deconvolution: the signal on its way back passes a ReLU of its own (Zeiler and Fergus 2014, arXiv:1311.2901).

    R_in = R_out [R_out > 0] at every ReLU, whatever it read; max pooling sends the signal back to where the maximum
    was. A model with other activations is refused.
    """

    title: ClassVar[str] = "Deconvolution"
    paper: ClassVar[str] = "Zeiler and Fergus 2014, arXiv:1311.2901, sec. 2.1"
    relu: ClassVar[Rectified] = staticmethod(deconvolved_relu)


@dataclass(frozen=True)
class _GuidedCAM(LayerExplainer):
    """A class activation map on the grid of the image, times guided backpropagation.

    Args:
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    family: ClassVar[Family] = Family.PROPAGATION
    opposes: ClassVar[bool] = True
    grad: ClassVar[bool] = True
    serves: ClassVar[str] = "ReLU networks"
    passes: ClassVar[str] = "shared backward, 1 forward, 1 backward"
    formula: ClassVar[Callable[[Tensor, Tensor], Tensor]]
    reduce: ChannelReduction = "max"

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        maps = type(self).formula(trace.activation(layer), trace.gradient(layer))
        # The map is not negative and the same for all channels, so it can be multiplied after they are reduced.
        gradient = reduce_channels(guided_gradient(trace, self.name), self.reduce)
        return gradient * resize(maps, trace.input_size, "bilinear")


@explainers.register("guided-gradcam")
@dataclass(frozen=True)
class GuidedGradCAM(_GuidedCAM):
    """Guided Grad-CAM: guided backpropagation times Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, fig. 2).

    Grad-CAM is upsampled bilinearly to the grid of the image.
    """

    paper: ClassVar[str] = "Selvaraju et al. 2017, arXiv:1610.02391, sec. 3.2"
    formula: ClassVar[Callable[[Tensor, Tensor], Tensor]] = staticmethod(grad_cam)


@explainers.register("guided-gradcam++")
@dataclass(frozen=True)
class GuidedGradCAMPlusPlus(_GuidedCAM):
    """Guided Grad-CAM++: guided backpropagation times Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063).

    Grad-CAM++ is upsampled bilinearly to the grid of the image.
    """

    formula: ClassVar[Callable[[Tensor, Tensor], Tensor]] = staticmethod(grad_cam_plus_plus)
