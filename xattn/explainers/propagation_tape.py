"""The calls of a forward pass on a tape, so that relevance can be handed back through each of them by a rule of zennit.

zennit hooks modules, and rewrites a model by canonizers that leave residue and know a few architectures. Here the rules
of zennit are put on the *calls* of torch functions instead. So functional and reused layers, residual sums of any
spelling and batch norms anywhere are seen, no module is touched, and a call that no rule fits is an error.
"""

from __future__ import annotations

import copy
import functools
import importlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xattn.errors import NotApplicableError, unknown
from xattn.functional.attention import without_autocast
from xattn.score import apply_score
from xattn.trace import INPUT, Trace, place_of, record

Function = Callable[..., Any]

_WEIGHTED: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_POOLS = frozenset(
    {
        "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
        "adaptive_avg_pool3d", "interpolate", "upsample",
    }
)  # fmt: skip
_PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "einsum"})
# Each value depends on one value, and zero stays zero: the relevance of the one is that of the other.
_ELEMENTWISE = frozenset(
    {
        "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish",
        "tanh", "softsign", "tanhshrink", "hardshrink", "softshrink", "neg", "negative",
    }
)  # fmt: skip
_CLIPS = frozenset({"clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "threshold"})
_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax"})
_SUMS = {"add": 1, "radd": 1, "sub": -1, "subtract": -1, "rsub": -1}
_SCALES = frozenset({"mul", "multiply", "div", "divide", "true_divide", "truediv"})
# Values that are moved, chosen or left as they are: autograd moves relevance as it moves a gradient.
_MOVES = frozenset(
    {
        "view", "reshape", "flatten", "unflatten", "ravel", "permute", "transpose", "t", "adjoint", "movedim",
        "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as",
        "broadcast_to", "contiguous", "clone", "alias", "to", "float", "double", "type", "type_as", "requires_grad",
        "cat", "concat", "concatenate", "stack", "hstack", "vstack", "split", "split_with_sizes", "chunk",
        "tensor_split", "unbind", "narrow", "select", "index_select", "__getitem__", "__get__", "roll", "flip",
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool1d",
        "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
        "native_channel_shuffle",
    }
)  # fmt: skip
_JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
_HARMLESS = _MOVES | _SCALES | _PRODUCTS | {"rmul"}  # with a constant made of the image
EARLIER, CUT = "earlier", "cut"


def zennit(who: str, part: str) -> Any:
    """A module of zennit.

    Raises:
        NotApplicableError: if it is not installed.
    """
    try:
        import zennit
    except ImportError:
        raise NotApplicableError(f"{who}: needs zennit, which is not installed; pip install zennit.") from None
    return importlib.import_module(f"{zennit.__name__}.{part}")


@functools.cache
def _carrier(kind: Any) -> Any:
    """A subclass of `kind`, so that a composite takes it for one, that holds the parameters of one call."""

    def forward(module: Any, x: Tensor) -> Tensor:
        module.biases.append(module.bias)  # rules change the parameters while they run it
        y: Tensor = module.function(x, *(p for p in (module.weight, module.bias) if p is not None))
        return y

    return type(kind.__name__, (kind,), {"forward": forward})


class Refusal(Exception):  # noqa: N818 (it becomes an error outside of the model)
    """No rule fits a call. Not a TypeError, which Python's operators would take for an operand that does not fit."""


class Call:
    """A linear call of a forward pass: a convolution, a pool, a sum of two maps.

    Args:
        kind: class of the module that zennit's composites see, by which they choose a rule.
        run: the function of the input and of the weight and bias, where there are any.
        images: number of images in the batch.
        shape: of the input.
        weight: of the call, batch norm folded in.
        bias: likewise, or what is added.
        channel: dimension of the output along which the bias lies; None where it has a shape of its own.

    Attributes:
        rule: rule of zennit by which relevance passes.
        unfolded: the call that this one stands for, without the batch norm.
        contrast: relevance by the opposite weights is taken off (contrastive excitation backpropagation).
        absorbed: relevance of each image (N,) that biases and the epsilon of the epsilon rule keep, by the formula of
            the rule.
        below: sum of the absolute relevance of its inputs, of each image (N,).
    """

    def __init__(
        self,
        kind: type[nn.Module],
        run: Function,
        images: int,
        shape: torch.Size,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        channel: int | None = None,
    ) -> None:
        carrier = _carrier(kind)  # type: ignore[arg-type]  # mypy takes the hash of an instance for that of the class
        self.module: Any = carrier.__new__(carrier)
        nn.Module.__init__(self.module)  # not that of `kind`: it makes weights of its own
        for name, tensor in (("weight", weight), ("bias", bias)):
            kept = None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)
            self.module.register_parameter(name, kept)
        self.module.function = run
        self.module.biases = []
        self.kind = kind
        self.images = images
        self.shape = shape
        self.channel = channel
        self.rule: Any = None
        self.unfolded: Call | None = None
        self.contrast = False
        self.absorbed: Tensor | None = None
        self.below: Tensor | None = None

    @property
    def weighted(self) -> bool:
        """Whether it has weights, as convolutions and linear layers do."""
        return self.module.weight is not None

    def negate(self) -> None:
        """Turn the sign of weight and bias."""
        for name, parameter in list(self.module.named_parameters(recurse=False)):
            setattr(self.module, name, nn.Parameter(-parameter.detach(), requires_grad=False))

    def relevance(self, x: Tensor, above: Tensor) -> Tensor:
        """Relevance of the input from that of the output, by the rule."""
        below = self._pass(x, above)
        if self.contrast:
            self.negate()
            below = below - self._pass(x, above, -1)
            self.negate()
        return below

    def _pass(self, x: Tensor, above: Tensor, sign: int = 1) -> Tensor:
        rule, biases = self.rule.copy(), self.module.biases
        quotients = rule.gradient_mapper
        passed: list[Any] = []

        def note(out: Tensor, outputs: list[Tensor]) -> Any:
            """What reaches the input is linear in the outputs less their biases, so the biases' share is known."""
            found = quotients(out, outputs)
            each = found if isinstance(found, (tuple, list)) else (found,)
            offsets = [None if b is None else self._spread(b, z) for b, z in zip(biases, outputs, strict=True)]
            for values in (outputs, offsets):
                shares = [0.0 if v is None else self._per_image(g * v) for g, v in zip(each, values, strict=True)]
                passed.append(rule.reducer([1.0] * len(shares), shares))
            return found

        rule.gradient_mapper = note
        rule.forward(self.module, (x,), None)
        biases.clear()
        (below,) = rule.backward(self.module, (x,), (above,))
        to_all, to_biases = passed
        kept = to_biases + (self._per_image(above) - to_all if type(rule).__name__ == "Epsilon" else 0)
        self.absorbed = sign * kept if self.absorbed is None else self.absorbed + sign * kept
        self.below = self._per_image(below.abs())
        return below

    def _per_image(self, values: Tensor) -> Tensor:
        return values.detach().reshape(self.images, -1).double().sum(1)

    def _spread(self, bias: Tensor, output: Tensor) -> Tensor:
        return bias.view(-1, *[1] * (output.ndim - 2)) if self.channel == 1 else bias


class _Linear(torch.autograd.Function):
    """A call whose gradient is relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        y: Tensor = call.module(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.call.relevance(x, gradients[0]), None


class _Same(torch.autograd.Function):
    """A function of each value by itself: relevance passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Function) -> Tensor:
        y: Tensor = value()
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Sink(torch.autograd.Function):
    """A map that does not come from the layer: its relevance is counted, and goes no further."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, tape: Tape) -> Tensor:
        ctx.tape = tape
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.tape.around.append(gradients[0].reshape(ctx.tape.images, -1).double().sum(1))
        return None, None, None


class Tape(TorchFunctionMode):
    """While it is entered, each torch function that the input's relevance must pass is put on the tape, or refused.

    Convolutions and linear layers (the batch norm behind them folded in), means, sums of two maps or with a constant
    and products with constant maps become a `Call`. Activations and multiplications by constants pass relevance
    unchanged. Gates (sigmoid, softmax) are constants: all relevance of `x * gate` is that of x. Max pooling and what
    moves values are left to autograd.

    Args:
        who: name of the method, for messages.
        model: name of the model's class, for messages.
        images: number of images.
        whole: it starts at the image and not at a layer.

    Attributes:
        calls: in the order of the forward pass.
        around: relevance of each image (N,) that goes around the layer where the tape starts.
        joins: number of sums and concatenations of two maps; a chain of layers has none.
        bare: number of layers with weights that read what no activation has passed, as in linear bottlenecks.
        active: set it to False to let calls pass; what they give is then constant or the caller's business.
    """

    def __init__(self, who: str, model: str, images: int, whole: bool) -> None:
        super().__init__()
        self.who = who
        self.whole = whole
        self.model = model
        self.images = images
        self.calls: list[Call] = []
        self.joins = 0
        self.bare = 0
        self.active = True
        self._sum = zennit(who, "layer").Sum
        self._made: dict[int, tuple[weakref.ref[Tensor], Tensor, Call]] = {}
        self.around: list[Tensor] = []
        self._signed: dict[int, weakref.ref[Tensor]] = {}
        self._constants: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def __exit__(self, *error: Any) -> None:
        self._made.clear()  # inputs that the backward pass frees one after the other
        super().__exit__(*error)

    def refuse(self, what: str) -> Refusal:
        """The exception for a call that no rule fits."""
        return Refusal(
            f"{self.who}: {self.model} {what}, for which there is no relevance rule; use input-x-gradient or gradcam."
        )

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not self.active:
            return func(*args, **kwargs)
        tensors = list(_tensors((*args, *kwargs.values())))
        anchor = next(filter(_tracked, tensors), None)
        if anchor is None:
            if any(t.requires_grad for t in tensors):  # of parameters alone: a constant
                with torch.no_grad():
                    result = func(*args, **kwargs)
            else:
                result = func(*args, **kwargs)
            if kinds := set(map(self._kind, tensors)) - {None}:
                self.set_constant(result, cut=CUT in kinds)
            return result
        if next(iter(kwargs), None) == "input" and not args:
            args = (kwargs.pop("input"),)
        full: str = getattr(func, "__name__", type(func).__name__)
        inplace = full.startswith("__i") or (full.endswith("_") and not full.startswith("_"))
        name = full.strip("_")[full.startswith("__i") :]
        name = full if full in _MOVES | _PRODUCTS else name
        gated = any(self._kind(t) == CUT for t in tensors)
        if gated and (name in _JOINS or name not in _HARMLESS):
            raise self.refuse(f"calls {name}() with a gate, a mask or attention maps")
        first, signed = args[0] if args else None, any(map(self._is_signed, tensors))
        self.bare += signed and name in _WEIGHTED
        if name in _JOINS or name in _SUMS:
            args, kwargs = self._with_sinks(args, anchor), {k: self._with_sinks(v, anchor) for k, v in kwargs.items()}
        result = self._call(func, name, args, kwargs)
        if inplace and isinstance(first, Tensor) and isinstance(result, Tensor) and result is not first:
            result = first.copy_(result)
        passed = name in _ELEMENTWISE | _CLIPS or (gated and name not in _MOVES)  # an activation, swish by hand too
        signed = not passed and (signed or name in _WEIGHTED or name == "batch_norm")
        for tensor in _tensors((result,)):
            if signed:
                self._signed[id(tensor)] = weakref.ref(tensor)
            else:
                self._signed.pop(id(tensor), None)
        return result

    def _call(self, func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in _WEIGHTED:
            return self._weighted(func, name, args, kwargs)
        if name == "batch_norm":
            return self._batch_norm(func, args, kwargs)
        if name in _ELEMENTWISE or (name in _CLIPS and _keeps_zero(name, args, kwargs)):
            return self._same(args[0], lambda x: func(x, *args[1:], **kwargs))
        if name in _POOLS:
            return self._pool(args[0], lambda x: func(x, *args[1:], **kwargs))
        if name in _SUMS:
            return self._sum_of(name, args, kwargs)
        if name in _SCALES or name == "rmul":
            return self._scale(name, args, kwargs)
        if name in _PRODUCTS:
            return self._product(func, name, args, kwargs)
        if name == "pad":
            value = kwargs.get("value", args[3] if len(args) > 3 else None)
            if value not in (None, 0, float("-inf")):
                raise self.refuse(f"pads with {value}")
            return func(*args, **kwargs)
        if name in _MOVES:
            self.joins += name in _JOINS
            return func(*args, **kwargs)
        with torch.set_grad_enabled(name not in _GATES):
            result = func(*args, **kwargs)
        # A question about the tensor (its size, where it is largest) is answered, what computes with it is refused.
        if any(t.requires_grad for t in _tensors((result,))):
            raise self.refuse(f"calls {name}()")
        self.set_constant(result, cut=True)
        return result

    def set_constant(self, made: object, *, cut: bool) -> None:
        """Note that tensors depend on the image though no relevance reaches them.

        Args:
            made: a tensor, or a tuple with tensors.
            cut: they were made of what has relevance (a gate, a mask), so they may weight and choose but not add;
                otherwise of what comes before the layer where the tape starts.
        """
        for tensor in _tensors((made,)):
            self._constants[id(tensor)] = weakref.ref(tensor), CUT if cut else EARLIER

    def _is_signed(self, tensor: Tensor) -> bool:
        """Whether weights made it and no activation has passed it since."""
        ref = self._signed.get(id(tensor))
        return ref is not None and ref() is tensor

    def _kind(self, tensor: Tensor) -> str | None:
        """Which of these constants a tensor is, if it is one."""
        ref, kind = self._constants.get(id(tensor), (None, None))
        return kind if ref is not None and ref() is tensor and not _tracked(tensor) else None

    def _with_sinks(self, value: Any, anchor: Tensor) -> Any:
        """The arguments of a sum, where maps that go around the layer take their share as all others do."""
        if isinstance(value, (tuple, list)):
            changed = [self._with_sinks(v, anchor) for v in value]
            return tuple(changed) if isinstance(value, tuple) else changed
        if isinstance(value, Tensor) and self._kind(value) == EARLIER:
            return _Sink.apply(anchor, value, self)
        return value

    def _linear(self, x: Tensor, kind: type[nn.Module], run: Function, **parts: Any) -> Tensor:
        if x.shape[0] % self.images:
            raise self.refuse(f"works on {tuple(x.shape)}, whose first dimension is not the images,")
        call = Call(kind, run, self.images, x.shape, **parts)
        self.calls.append(call)
        y: Tensor = _Linear.apply(x, call)
        return y

    def _pool(self, x: Tensor, run: Function, **parts: Any) -> Tensor:
        """A mean, or another sum with weights that no rule changes; what it reads may change in place afterwards."""
        return self._linear(x.clone(), nn.AvgPool2d, run, **parts)

    def _same(self, x: Tensor, run: Function) -> Tensor:
        """The output of a function of each value by itself, in place where the function works in place."""
        with torch.no_grad():
            read = x.detach().clone()
            value = run(read)
        y: Tensor = _Same.apply(x, lambda: value)
        return x.copy_(y) if read._version else y

    def _weighted(self, func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        rest = dict(kwargs)
        x, weight, bias = (
            args[i] if i < len(args) else rest.pop(k, None) for i, k in enumerate(("", "weight", "bias"))
        )
        if not _tracked(x) or _tracked(weight) or _tracked(bias):
            raise self.refuse(f"calls {name}() with weights made of the image")

        def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
            return func(x, weight, bias, *args[3:], **rest)

        channel = -1 if name == "linear" else 1
        y = self._linear(x, _WEIGHTED[name], run, weight=weight, bias=bias, channel=channel)
        if "transpose" not in name:
            self._made[id(y)] = weakref.ref(y), x, self.calls[-1]
        return y

    def _batch_norm(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
        y: Tensor = given["input"]
        if given.get("training") or given.get("running_mean") is None:
            raise self.refuse("normalizes by the statistics of the batch")
        scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt()
        scale = scale if given.get("weight") is None else scale * given["weight"].detach()
        shift = -given["running_mean"] * scale
        shift = shift if given.get("bias") is None else shift + given["bias"].detach()
        made = self._made.get(id(y))
        if made is None or made[0]() is not y or y._version:
            # No convolution to fold it into. Its offset is a bias as that of a convolution: if it were passed over,
            # relevance would reach units that gave nothing.
            along = (-1, *[1] * (y.ndim - 2))
            return self._shift(self._same(y, lambda v: v * scale.view(along)), shift.view(along))
        _, x, call = made
        weight, bias = call.module.weight, call.module.bias
        shift = shift if bias is None else shift + bias * scale
        folded = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        at = self.calls.index(call)
        z = self._linear(x, call.kind, call.module.function, weight=folded, bias=shift, channel=call.channel)
        self.calls[at] = self.calls.pop()  # in place of the convolution, whose own output leads nowhere
        self.calls[at].unfolded = call
        return z

    def _sum_of(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        a, b = args[0], args[1] if len(args) > 1 else kwargs["other"]
        factor = _SUMS[name] * kwargs.get("alpha", 1)
        if name == "rsub":
            a, b = b, a
        if factor != 1:
            b = self._same(b, lambda v: v * factor) if _tracked(b) else b * factor
        if not _tracked(a) or not _tracked(b):
            return self._shift(a, b) if _tracked(a) else self._shift(b, a)
        self.joins += 1
        return self._linear(torch.stack(torch.broadcast_tensors(a, b), dim=-1), self._sum, lambda v: v.sum(-1))

    def _shift(self, x: Tensor, constant: Any) -> Tensor:
        """Add a constant: a bias, or before the first weights a change of the unit in which the image is measured."""
        if self.whole and not any(call.weighted for call in self.calls):
            return self._same(x, lambda v: v + constant)
        bias = torch.as_tensor(constant, dtype=x.dtype, device=x.device)
        x = x.expand(torch.broadcast_shapes(x.shape, bias.shape))
        return self._pool(x, lambda v, c: v + c, bias=bias)

    def _scale(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        x, constant = args[0], args[1] if len(args) > 1 else kwargs["other"]
        if _tracked(x) and _tracked(constant):
            raise self.refuse(f"calls {name}() on two feature maps")
        divides = "div" in name
        if not _tracked(x):
            if divides:
                raise self.refuse("divides by a feature map")
            x, constant = constant, x
        if isinstance(constant, Tensor):
            x = x.expand(torch.broadcast_shapes(x.shape, constant.shape))
        return self._same(x, lambda v: v / constant if divides else v * constant)

    def _product(self, func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        equation, operands = (args[0], list(_tensors(args[1:]))) if name == "einsum" else (None, list(args[:2]))
        if len(operands) != 2 or all(map(_tracked, operands)) or kwargs:
            raise self.refuse(f"multiplies feature maps ({name})")
        first = _tracked(operands[0])
        x, constant = operands if first else reversed(operands)

        def run(x: Tensor, weight: Tensor) -> Any:
            pair = (x, weight) if first else (weight, x)
            return func(*pair) if equation is None else func(equation, *pair)

        # A matrix is a layer's weight. Constants with a dimension for the images are maps that pool.
        if constant.ndim == 2:
            return self._linear(x, nn.Linear, run, weight=constant)
        return self._pool(x, lambda v: run(v, constant))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _detached(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(map(_detached, value))
    return value.detach() if isinstance(value, Tensor) else value


def _tracked(value: object) -> bool:
    """Whether relevance arrives at it: it depends on the image by operations on the tape."""
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _keeps_zero(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "threshold":
        given = dict(zip(("threshold", "value"), args[1:], strict=False)) | kwargs
        return bool(given["threshold"] == given["value"] == 0)
    names = {"hardtanh": ("min_val", "max_val"), "clamp_max": ("max",)}.get(name, ("min", "max"))
    bounds = {"min_val": -1, "max_val": 1} if name == "hardtanh" else {}
    bounds |= dict(zip(names, args[1:], strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    low, high = (next((v for k, v in bounds.items() if k.startswith(end)), None) for end in ("min", "max"))
    numbers = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    return numbers and (low is None or low <= 0) and (high is None or high >= 0)


@dataclass(frozen=True, eq=False)
class Passage:
    """What came of handing relevance back once.

    Args:
        relevance: (N, C, h, w), of the values of the layer.
        absorbed: (N,), kept by biases and the epsilon rule, by its formula, and what went around the layer.
        total: (N,), that was handed out at the logits.
        size: (N,), sum of its absolute values, or of those below the last layer with weights, where these are more:
            what may cancel.
    """

    relevance: Tensor
    absorbed: Tensor
    total: Tensor
    size: Tensor


@contextmanager
def _constant_attention(model: nn.Module, layer: str | None, tape: Tape) -> Iterator[None]:
    """The maps of an attention head are constants, and how they are made is nobody's business."""
    handles = []

    def before(module: nn.Module, inputs: Any) -> None:
        tape.active = False

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        tape.active = True
        constant: Any = _detached(output)
        tape.set_constant(constant, cut=True)
        return constant

    try:
        if layer is not None:
            module = dict(model.named_modules()).get(layer)
            if module is None:
                raise unknown(f"layer of {type(model).__name__}", layer, [n for n, _ in model.named_modules() if n])
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def hand_back(
    trace: Trace, who: str, layer: str, assign: Callable[[Tape], None], rows: Tensor, *, of_logits: bool, opposite: bool
) -> Passage:
    """Hand relevance from the score of some images back to a layer; one forward and one backward pass.

    Class k gets the relevance g_k z_k, with z the logits and g the gradient of the score by them: the logit itself
    where the score is the logit, and a sum that is the score wherever that is linear in the logits.

    Args:
        trace: the recorded pass; its images and targets are run again.
        who: name of the method, for messages.
        layer: where to stop; `""` is the input.
        assign: gives each call of the tape its rule.
        rows: the images (M,).
        of_logits: False hands out g_k instead, probabilities of excitation backpropagation.
        opposite: the logit of the one output is that of the other class, as class 0 of a binary model has it.

    Raises:
        NotApplicableError: if no rule fits a call of the model.
    """
    model, name = trace.model, type(trace.model).__name__
    half = place_of(model)[1] in (torch.float16, torch.bfloat16)
    if half:
        model = copy.deepcopy(model).float()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotApplicableError(
                f"{who}: layer '{path}' of {name} is TorchScript, whose calls cannot be seen; "
                "pass the Python module it was made from, or use input-x-gradient."
            )
    tape = Tape(who, name, len(rows), layer == INPUT)
    handed: list[Tensor] = []

    def score(logits: Tensor, target: Tensor) -> Tensor:
        tape.active = False  # the score is no part of the model
        if not _tracked(logits):
            raise tape.refuse("ends in a softmax or sigmoid instead of logits")
        sign = -1 if opposite else 1
        z = logits.detach().requires_grad_()
        with torch.enable_grad():
            value = apply_score(trace.score_fn, z, target)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        handed.append(gradient * z.detach() if of_logits else sign * gradient)
        return (logits * handed[0]).sum(1)

    autocast = torch.is_autocast_enabled(trace.x.device.type)
    with torch.inference_mode(False), without_autocast(trace.x), _constant_attention(
        model, trace.spec.attention_layer, tape
    ), tape:  # fmt: skip
        x = trace.x[rows]
        if layer != INPUT:
            tape.set_constant(x, cut=False)
        try:
            again = record(model, x, trace.target[rows], spec=trace.spec, layers=(layer,), score=score)
        except Refusal as refused:
            raise NotApplicableError(str(refused)) from None
    trace.forwards += again.forwards
    before = trace.logits[rows]
    off = float((again.logits - before).abs().max() / before.abs().max().clamp(min=1e-30))
    if off > 0.05 and not half and not autocast:
        raise NotApplicableError(
            f"{who}: {name} gives other logits when it runs again (off by {off:.0%}), so its relevance would be "
            "another network's; its forward pass must be a function of the image alone."
        )
    assign(tape)
    for call in tape.calls:
        if call.unfolded is not None:
            call.unfolded.rule = call.rule
    if opposite and (weighted := [call for call in tape.calls if call.weighted]):
        weighted[-1].negate()
    with torch.inference_mode(False), without_autocast(trace.x):
        relevance = again.gradient(layer)
    trace.backwards += again.backwards
    total, size = handed[0].double().sum(1), handed[0].double().abs().sum(1)
    calls = [c for call in tape.calls for c in (call, call.unfolded) if c is not None]
    kept = (*(c.absorbed for c in calls if c.absorbed is not None), *tape.around)
    top = next((c.below for c in reversed(tape.calls) if c.weighted and c.below is not None), size)
    return Passage(relevance, sum(kept, torch.zeros_like(total)), total, torch.maximum(size, top))
