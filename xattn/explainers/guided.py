"""Guided backpropagation, its products with Grad-CAM and Grad-CAM++, and deconvolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xattn.errors import NotApplicableError
from xattn.explainer import Explainer, Family, LayerExplainer
from xattn.explainers import explainers
from xattn.functional.cam import grad_cam, grad_cam_plus_plus
from xattn.functional.gradient import ChannelReduction, guided_relu, reduce_channels
from xattn.functional.resize import resize
from xattn.trace import INPUT, Trace, evaluating, record, unwrap

_RECTIFIERS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "threshold"})
_OTHERS = frozenset(
    {
        "celu", "elu", "gelu", "glu", "hardshrink", "hardswish", "leaky_relu", "logsigmoid", "mish", "prelu", "rrelu",
        "selu", "silu", "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "maximum", "erf",
    }
)  # fmt: skip
_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "log_softmax"})
_PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__", "__imul__"})


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


class Guided(TorchFunctionMode):
    """While it is entered, every ReLU has the guided gradient, whoever calls it and however.

    It sees the calls of torch functions and not modules, so that functional, reused and in-place ReLUs are guided as
    any other, and the model is not touched. ReLU6, `clamp(min=0)` and `threshold(0)` are guided where they are linear.
    Nonlinearities that the rule does not know are counted.

    Args:
        relu: the ReLU with the gradient wanted, of a tensor and an upper bound: `guided_relu` or `deconvolved_relu`.

    Attributes:
        guided: number of activations guided.
        others: number of calls of each other nonlinearity. Gates (sigmoid, softmax) are none, unless they multiply
            their own input.
        active: set it to False to let calls pass.
    """

    def __init__(self, relu: Rectified = guided_relu) -> None:
        super().__init__()
        self.relu = relu
        self.guided = 0
        self.others: Counter[str] = Counter()
        self.active = True
        self._gates: dict[int, tuple[Tensor, Tensor]] = {}  # outputs by id, kept alive so that no id is used again

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        kind = name.strip("_") if not name.startswith("__") else name
        if not self.active:
            return func(*args, **kwargs)
        if kind in _RECTIFIERS:
            x, upper, inplace = _rectifier(kind, name.endswith("_"), args, kwargs)
            if x is not None:
                if torch.is_grad_enabled():
                    return self._guide(x, upper, inplace)
                self.others[f"{kind} in a custom autograd function or under no_grad"] += 1
            elif kind in ("hardtanh", "threshold"):
                self.others[kind] += 1
        elif kind in _OTHERS or (kind == "max" and len(args) > 1 and isinstance(args[1], Tensor)):
            self.others[kind] += 1
        elif kind in _PRODUCTS and len(args) == 2 and self._own_gate(args[0], args[1]):
            self.others["product of x and a gate of x (swish)"] += 1
        result = func(*args, **kwargs)
        if kind in _GATES and isinstance(result, Tensor):
            self._gates[id(result)] = (result, args[0] if args else kwargs["input"])
        return result

    def _guide(self, x: Tensor, upper: float | None, inplace: bool) -> Tensor:
        if not x.requires_grad:  # not on the way from the input
            return x.clamp_(0, upper) if inplace else x.clamp(0, upper)
        self.guided += 1
        y = self.relu(x, upper)
        return x.copy_(y) if inplace else y

    def _own_gate(self, a: object, b: object) -> bool:
        for gate, x in ((a, b), (b, a)):
            known = self._gates.get(id(gate))
            if known is not None and isinstance(x, Tensor) and known[1].data_ptr() == x.data_ptr():
                return known[1].shape == x.shape
        return False

    def __exit__(self, *error: Any) -> None:
        self._gates.clear()
        super().__exit__(*error)


def _rectifier(
    kind: str, inplace: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor | None, float | None, bool]:
    """Input, upper bound and in-place flag of a call that is a ReLU; the input is None where it is not one."""
    values = dict(zip(_SIGNATURES[kind], args, strict=False)) | kwargs
    x = values.get("input", args[0] if args else None)
    inplace = inplace or bool(values.get("inplace"))
    lower, upper = {
        "relu": lambda: (0, None),
        "relu6": lambda: (0, 6),
        "hardtanh": lambda: (values.get("min_val", -1), values.get("max_val", 1)),
        "threshold": lambda: (0 if values.get("threshold") == values.get("value") == 0 else None, None),
        "clamp_min": lambda: (values.get("min"), None),
        "clamp": lambda: (values.get("min"), values.get("max")),
        "clip": lambda: (values.get("min"), values.get("max")),
    }[kind]()
    scalar = isinstance(lower, (int, float)) and lower == 0
    bounded = upper is None or (isinstance(upper, (int, float)) and upper > 0)
    fits = scalar and bounded and isinstance(x, Tensor) and x.is_floating_point() and "out" not in kwargs
    return (x if fits else None), None if upper is None or not fits else float(upper), inplace


_SIGNATURES: dict[str, tuple[str, ...]] = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "threshold": ("input", "threshold", "value", "inplace"),
    "clamp_min": ("input", "min"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
}


def _count(model: nn.Module, x: Tensor) -> Guided:
    """One forward pass with guided ReLUs, for the counts."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicableError(
                f"guided-backprop: layer '{name}' of {type(model).__name__} is TorchScript, whose ReLUs cannot be "
                "seen; pass the Python module it was made from."
            )
    with evaluating(model), torch.enable_grad(), Guided() as mode:
        model(x.detach().clone().requires_grad_())
    return mode


def guided_share(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """How many activations of a model guided backpropagation reaches.

    Args:
        model: any module from images to logits; it leaves as it came.
        x: images (N, C, H, W) in the model's normalized space.

    Returns:
        Number of ReLUs that would be guided, and that of all nonlinearities on the way from the input, gates
        (sigmoid, softmax) left out. Guided backpropagation is defined where the two are equal and not zero.

    Raises:
        NotApplicableError: if a part of the model is TorchScript.
    """
    mode = _count(unwrap(model), x)
    return mode.guided, mode.guided + mode.others.total()


# Three methods share the guided pass of one trace.
_DONE: WeakKeyDictionary[Trace, dict[Rectified, Tensor]] = WeakKeyDictionary()


def guided_gradient(trace: Trace, method: str = "guided-backprop", relu: Rectified = guided_relu) -> Tensor:
    """Gradient (N, C, H, W) of the score by the input with guided ReLUs; one forward and one backward of its own.

    Args:
        trace: the recorded pass; a second call for it repeats nothing.
        method: who asks, for messages.
        relu: the ReLU with the gradient wanted.

    Raises:
        NotApplicableError: if not all nonlinearities of the model are ReLUs, with the counts.
    """
    if (done := _DONE.get(trace, {}).get(relu)) is not None:
        return done
    who = type(trace.model).__name__
    for name, module in trace.model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicableError(
                f"{method}: layer '{name}' of {who} is TorchScript, whose ReLUs cannot be seen; "
                "pass the Python module it was made from, or use saliency."
            )
    mode = Guided(relu)

    def score(logits: Tensor, target: Tensor) -> Tensor:
        mode.active = False  # a ReLU in the score is not one of the model
        return trace.score_fn(logits, target)

    with torch.inference_mode(False), mode:
        again = record(trace.model, trace.x, trace.target, spec=trace.spec, layers=(INPUT,), score=score)
    trace.forwards += again.forwards
    if mode.guided == 0 or mode.others:
        counts = ", ".join(f"{count} {name}" for name, count in mode.others.most_common())
        raise NotApplicableError(
            f"{method}: its rule is defined where all activations are ReLUs; {who} has {mode.guided} "
            f"ReLUs{' and ' + counts if counts else ' that can be seen'}. Use saliency or input-x-gradient."
        )
    gradient = again.gradient(INPUT)
    trace.backwards += again.backwards
    _DONE.setdefault(trace, {})[relu] = gradient
    return gradient


@explainers.register("guided-backprop", "guided-backpropagation")
@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """Guided backpropagation: at each ReLU only positive gradients pass (Springenberg et al. 2014, arXiv:1412.6806).

    R_in = R_out [R_out > 0] [x > 0] at every ReLU, functional, reused and in-place ones included. A model with other
    activations (GELU, SiLU, ...) is refused: a mixture would be neither guided nor the gradient.

    Args:
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    name: ClassVar[str] = "guided-backprop"
    title: ClassVar[str] = "Guided backprop"
    family: ClassVar[Family] = Family.PROPAGATION
    passes: ClassVar[str] = "1 forward, 1 backward"
    serves: ClassVar[str] = "ReLU networks"
    paper: ClassVar[str] = "Springenberg et al. 2014, arXiv:1412.6806, sec. 3.4"
    reduce: ChannelReduction = "max"

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(guided_gradient(trace, self.name), self.reduce)


@explainers.register("deconvolution", "deconvnet")
@dataclass(frozen=True)
class Deconvolution(Explainer):
    """Deconvolution: the signal on its way back passes a ReLU of its own (Zeiler and Fergus 2014, arXiv:1311.2901).

    R_in = R_out [R_out > 0] at every ReLU, whatever it read; max pooling sends the signal back to where the maximum
    was. A model with other activations is refused.

    Args:
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    name: ClassVar[str] = "deconvolution"
    family: ClassVar[Family] = Family.PROPAGATION
    passes: ClassVar[str] = "1 forward, 1 backward"
    serves: ClassVar[str] = "ReLU networks"
    paper: ClassVar[str] = "Zeiler and Fergus 2014, arXiv:1311.2901, sec. 2.1"
    reduce: ChannelReduction = "max"

    def attribute(self, trace: Trace) -> Tensor:
        return reduce_channels(guided_gradient(trace, self.name, deconvolved_relu), self.reduce)


@dataclass(frozen=True)
class _GuidedCAM(LayerExplainer):
    """A class activation map on the grid of the image, times guided backpropagation."""

    family: ClassVar[Family] = Family.PROPAGATION
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

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output.
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    name: ClassVar[str] = "guided-gradcam"
    paper: ClassVar[str] = "Selvaraju et al. 2017, arXiv:1610.02391, sec. 3.2"
    formula: ClassVar[Callable[[Tensor, Tensor], Tensor]] = staticmethod(grad_cam)


@explainers.register("guided-gradcam++")
@dataclass(frozen=True)
class GuidedGradCAMPlusPlus(_GuidedCAM):
    """Guided Grad-CAM++: guided backpropagation times Grad-CAM++ (Chattopadhyay et al. 2018, arXiv:1710.11063).

    Grad-CAM++ is upsampled bilinearly to the grid of the image.

    Args:
        layer: name of the layer; None is the model's last layer with a spatial output.
        reduce: over the channels: `"max"` of the absolute values, `"sum"` with signs, `"mean_abs"` or `"norm"`.
    """

    name: ClassVar[str] = "guided-gradcam++"
    paper: ClassVar[str] = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    formula: ClassVar[Callable[[Tensor, Tensor], Tensor]] = staticmethod(grad_cam_plus_plus)
