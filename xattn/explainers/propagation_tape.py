"""The calls of a forward pass on a tape, so that relevance can be handed back through each of them by a rule.

Functional and reused layers, residual sums of any spelling and batch norms anywhere are seen, no module is touched, and
a call that no rule fits is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.calls import Call, Calls, Kind, Notes, Refusal, Ruled, bounds, refuse_scripts, tensors_in, tracked
from xattn.errors import NotApplicableError, unknown
from xattn.explainers.rules import Layer
from xattn.functional.attention import without_autocast
from xattn.running import copied, in_this_thread
from xattn.score import apply_score
from xattn.trace import INPUT, Trace, place_of

_WEIGHTED = (Kind.LINEAR, Kind.CONV)
_ACTIVATIONS = (Kind.RECTIFIER, Kind.CLIP, Kind.ACTIVATION, Kind.NEGATION)
# What may have a constant made of the image beside what has relevance: it weights and chooses, but is not added.
_CONSTANT_TAKERS = (Kind.MOVE, Kind.MAX_POOL, Kind.FILL, Kind.PRODUCT, Kind.QUOTIENT, Kind.MATMUL)
EARLIER, CUT = "earlier", "cut"


class Tape(Calls):
    """While it is entered, each torch function that the input's relevance must pass is put on the tape, or refused.

    Convolutions and linear layers (the batch norm behind them folded in), means, sums of two maps or with a constant
    and products with constant maps become a `Layer`. Activations and multiplications by constants pass relevance
    unchanged. Gates (sigmoid, softmax) are constants: all relevance of `x * gate` is that of x. Max pooling and what
    moves values are left to autograd.

    Args:
        method: its name, for messages.
        model: name of the model's class, for messages.
        images: number of images.
        whole: it starts at the image and not at a layer.

    Attributes:
        layers: in the order of the forward pass.
        around: relevance of each image (N,) that goes around the layer where the tape starts.
        joins: number of sums and concatenations of two maps; a chain of layers has none.
        bare: number of layers with weights that read what no activation has passed, as in linear bottlenecks.
        active: set it to False to let calls pass; what they give is then constant or the caller's business.
    """

    def __init__(self, method: str, model: str, images: int, whole: bool) -> None:
        super().__init__()
        self.method, self.model, self.images, self.whole = method, model, images, whole
        self.layers: list[Layer] = []
        self.joins = 0
        self.bare = 0
        self.around: list[Tensor] = []
        # Of tensors: what the layer that made it read, that layer and its weight; made by weights, with no activation
        # since; which kind of constant.
        self._made: Notes[tuple[Tensor, Layer, Tensor]] = Notes()
        self._signed: Notes[bool] = Notes()
        self._constants: Notes[str] = Notes()

    def __exit__(self, *error: Any) -> None:
        self._made.clear()  # inputs that the backward pass frees one after the other
        super().__exit__(*error)

    @property
    def weighted(self) -> list[Layer]:
        """The layers that have weights, as convolutions do."""
        return [layer for layer in self.layers if layer.weight is not None]

    def refuse(self, what: str) -> Refusal:
        """The exception for a call that no rule fits."""
        return Refusal(
            f"{self.method}: {self.model} {what}, for which there is no relevance rule; "
            "use input-x-gradient; of relevance, attnlrp, cp-lrp and libragrad have rules for more calls."
        )

    def handle(self, call: Call) -> Any:
        tensors = call.tensors
        anchor = next(filter(tracked, tensors), None)
        if anchor is None:  # a constant, also if it is made of parameters
            result = call.constant() if any(t.requires_grad for t in tensors) else call.run()
            if kinds := set(map(self._constant, tensors)) - {None}:
                self.set_constant(result, cut=CUT in kinds)
            return result
        gated = any(self._constant(tensor) == CUT for tensor in tensors)
        if gated and call.kind not in _CONSTANT_TAKERS:
            raise self.refuse(f"calls {call.name}() with a gate, a mask or attention maps")
        signed = any(map(self._signed.get, tensors))
        self.bare += signed and call.kind in _WEIGHTED
        if call.kind in (Kind.SUM, Kind.JOIN):
            call.args, call.kwargs = self._with_sinks(call.args, anchor), self._with_sinks(call.kwargs, anchor)
        result = call.finish((call.rule(_RULES) or Tape._other)(self, call))
        passed = call.kind in _ACTIVATIONS or (gated and call.kind not in (Kind.MOVE, Kind.MAX_POOL))  # swish by hand
        signed = not passed and (signed or call.kind in _WEIGHTED or call.kind is Kind.BATCH_NORM)
        for tensor in tensors_in(result):
            if signed:
                self._signed[tensor] = True
            else:
                self._signed.pop(tensor)
        return result

    def set_constant(self, made: object, *, cut: bool) -> None:
        """Note that tensors depend on the image though no relevance reaches them.

        Args:
            made: a tensor, or a tuple with tensors.
            cut: they were made of what has relevance (a gate, a mask), so they may weight and choose but not add;
                otherwise of what comes before the layer where the tape starts.
        """
        for tensor in tensors_in(made):
            self._constants[tensor] = CUT if cut else EARLIER

    def _constant(self, tensor: Tensor) -> str | None:
        """Which of these constants a tensor is, if it is one."""
        return None if tracked(tensor) else self._constants.get(tensor)

    def _with_sinks(self, value: Any, anchor: Tensor) -> Any:
        """The arguments of a sum, where maps that go around the layer take their share as all others do."""
        if isinstance(value, dict):
            return {key: self._with_sinks(v, anchor) for key, v in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(self._with_sinks(v, anchor) for v in value)
        if not isinstance(value, Tensor) or self._constant(value) != EARLIER:
            return value

        def count(anchor: Tensor, above: Tensor) -> tuple[None]:
            self.around.append(above.reshape(self.images, -1).double().sum(1))
            return (None,)

        return Ruled.apply(value.clone, count, anchor[:0].clone())  # whose own values may change in place

    def _layer(self, kind: Kind, x: Tensor, value: Callable[[], Tensor], run: Callable[..., Any], **parts: Any) -> Any:
        """A layer on the tape, and its output."""
        if x.shape[0] % self.images:
            raise self.refuse(f"works on {tuple(x.shape)}, whose first dimension is not the images,")
        layer = Layer(kind, run, self.images, x.shape, **parts)
        self.layers.append(layer)
        return Ruled.apply(value, layer.relevance, x)

    def _same(self, call: Call) -> Any:
        """A function of each value by itself: relevance passes unchanged."""
        return Ruled.apply(call.value, None, call.args[0])

    def _clip(self, call: Call) -> Any:
        low, high = bounds(call) or (1, None)
        keeps_zero = (low is None or low <= 0) and (high is None or high >= 0)
        return self._same(call) if keeps_zero else self._other(call)

    def _pool(self, call: Call) -> Any:
        """A mean, or another sum with weights that no rule changes; what it reads may change in place afterwards."""
        return self._layer(Kind.POOL, call.args[0].clone(), call.value, lambda x, _: call.run(x))

    def _weighted(self, call: Call) -> Tensor:
        given = call.arguments
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        if not tracked(x) or tracked(weight) or tracked(bias):
            raise self.refuse(f"calls {call.name}() with weights made of the image")
        rest = {key: v for key, v in call.kwargs.items() if key not in ("weight", "bias")}

        def run(x: Tensor, weight: Tensor) -> Any:
            return call.function(x, weight, None, *call.args[3:], **rest)

        y: Tensor = self._layer(call.kind, x, call.value, run, weight=weight)
        layer = self.layers[-1]
        if bias is not None:
            layer.bias = _along(bias.detach(), y, -1 if call.kind is Kind.LINEAR else x.ndim - y.ndim + 1)
        if "transpose" not in call.name:
            self._made[y] = x, layer, weight.detach()
        return y

    def _batch_norm(self, call: Call) -> Any:
        given = call.arguments
        y: Tensor = given["input"]
        if given.get("training") or given.get("running_mean") is None:
            raise self.refuse("normalizes by the statistics of the batch")
        scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt()
        scale = scale if given.get("weight") is None else scale * given["weight"].detach()
        shift = -given["running_mean"] * scale
        shift = _along(shift if given.get("bias") is None else shift + given["bias"].detach(), y, 1)
        made = self._made.get(y)
        if made is None or y._version:
            # No convolution to fold it into. Its offset is a bias as that of a convolution: if it were passed over,
            # relevance would reach units that gave nothing.
            return self._shift(Ruled.apply(lambda: y * _along(scale, y, 1), None, y), shift)
        x, unfolded, weight = made
        z = self._layer(
            unfolded.kind, x, call.value, unfolded.run,
            weight=weight * scale.view(-1, *[1] * (weight.ndim - 1)),
            bias=shift if unfolded.bias is None else shift + unfolded.bias * _along(scale, y, 1),
        )  # fmt: skip
        # In place of the convolution, whose own output leads nowhere unless something else reads it too.
        self.layers[self.layers.index(unfolded)] = layer = self.layers.pop()
        layer.unfolded = unfolded
        return z

    def _sum(self, call: Call) -> Any:
        a, b = call.pair
        factor = (-1 if "sub" in call.name else 1) * call.kwargs.get("alpha", 1)
        if factor != 1:
            b = Ruled.apply(lambda: b * factor, None, b) if tracked(b) else b * factor
        if not tracked(a) or not tracked(b):
            return self._shift(a, b) if tracked(a) else self._shift(b, a)
        self.joins += 1
        parts = torch.stack(torch.broadcast_tensors(a, b), dim=1)
        return self._layer(Kind.SUM, parts, lambda: a + b, lambda x, _: x.sum(1))

    def _shift(self, x: Tensor, constant: Any) -> Any:
        """Add a constant: a bias, or before the first weights a change of the unit in which the image is measured."""
        if self.whole and not self.weighted:
            return Ruled.apply(lambda: x + constant, None, x)
        bias = torch.as_tensor(constant, dtype=x.dtype, device=x.device)
        x = x.expand(torch.broadcast_shapes(x.shape, bias.shape)).clone()
        return self._layer(Kind.POOL, x, lambda: x + bias, lambda x, _: x.clone(), bias=bias)

    def _scale(self, call: Call) -> Any:
        a, b = call.pair
        if tracked(a) and tracked(b):
            raise self.refuse(f"calls {call.name}() on two feature maps")
        if call.kind is Kind.QUOTIENT and not tracked(a):
            raise self.refuse(f"calls {call.name}() to divide by a feature map")
        x, constant = (a, b) if tracked(a) else (b, a)
        if isinstance(constant, Tensor):
            x = x.expand(torch.broadcast_shapes(x.shape, constant.shape))
        return Ruled.apply(call.value, None, x)

    def _product(self, call: Call) -> Any:
        equation, operands = call.args[:1], call.args[1:] if call.name == "einsum" else call.args
        if call.name != "einsum":
            equation = ()
        elif len(operands) == 1 and isinstance(operands[0], (tuple, list)):
            operands = tuple(operands[0])
        if len(operands) != 2 or all(map(tracked, operands)) or call.kwargs:
            raise self.refuse(f"multiplies feature maps ({call.name})")
        first = tracked(operands[0])
        x, constant = operands if first else reversed(operands)

        def run(x: Tensor, weight: Tensor | None) -> Any:
            weight = constant if weight is None else weight
            return call.function(*equation, *((x, weight) if first else (weight, x)))

        # A matrix is a layer's weight. Constants with a dimension for the images are maps that pool.
        is_weight = constant.ndim == 2
        return self._layer(
            Kind.LINEAR if is_weight else Kind.POOL, x if is_weight else x.clone(), call.value, run,
            weight=constant if is_weight else None,
        )  # fmt: skip

    def _join(self, call: Call) -> Any:
        self.joins += 1
        return call.run()

    def _fill(self, call: Call) -> Any:
        value = call.arguments.get("value")
        if value not in (None, 0, float("-inf")):
            raise self.refuse(f"{call.name}s with {value}")
        return call.run()

    def _run(self, call: Call) -> Any:
        return call.run()

    def _gate(self, call: Call) -> Any:
        with torch.no_grad():
            result = call.run()
        self.set_constant(result, cut=True)
        return result

    def _other(self, call: Call) -> Any:
        """A question about a tensor (its size, where it is largest) is answered, what computes with it is refused."""
        result = call.run()
        if any(tensor.requires_grad for tensor in tensors_in(result)):
            raise self.refuse(f"calls {call.name}()")
        self.set_constant(result, cut=True)
        return result


_RULES: Mapping[str | Kind, Callable[[Tape, Call], Any]] = {
    **dict.fromkeys((Kind.LINEAR, Kind.CONV), Tape._weighted),
    **dict.fromkeys((Kind.RECTIFIER, Kind.ACTIVATION, Kind.NEGATION), Tape._same),
    **dict.fromkeys((Kind.PRODUCT, Kind.QUOTIENT), Tape._scale),
    **dict.fromkeys((Kind.GATE, Kind.SOFTMAX), Tape._gate),
    **dict.fromkeys((Kind.MOVE, Kind.MAX_POOL, "amax"), Tape._run),
    Kind.BATCH_NORM: Tape._batch_norm,
    Kind.CLIP: Tape._clip,
    Kind.POOL: Tape._pool,
    Kind.SUM: Tape._sum,
    Kind.MATMUL: Tape._product,
    Kind.FILL: Tape._fill,
    Kind.JOIN: Tape._join,
}


def _along(values: Tensor, output: Tensor, dim: int) -> Tensor:
    """Values of the channels (C,) in a shape that can be added to an output whose channels lie along `dim`."""
    return values.view(-1, *[1] * (output.ndim - dim % output.ndim - 1))


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
def constant_attention(model: nn.Module, layer: str | None, tape: Any) -> Iterator[None]:
    """The maps of an attention head are constants, and how they are made does not matter."""
    handles = []

    def before(module: nn.Module, inputs: Any) -> None:
        tape.active = False

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        tape.active = True
        constant = type(output)(t.detach() for t in output) if isinstance(output, (tuple, list)) else output.detach()
        tape.set_constant(constant, cut=True)
        return constant

    try:
        if layer is not None:
            module = dict(model.named_modules()).get(layer)
            if module is None:
                raise unknown(f"layer of {type(model).__name__}", layer, [n for n, _ in model.named_modules() if n])
            handles.append(module.register_forward_pre_hook(in_this_thread(before)))
            handles.append(module.register_forward_hook(in_this_thread(after)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_of(trace: Trace, logits: Tensor, target: Tensor) -> Tensor:
    """Gradient (N, K) of the score by the logits."""
    z = logits.detach().requires_grad_()
    with torch.enable_grad():
        value = apply_score(trace.score_fn, z, target)
    return torch.autograd.grad(value.sum(), z)[0]


def hand_back(trace: Trace, method: str, layer: str, assign: Callable[[Tape], None], *, of_logits: bool) -> Passage:
    """Hand relevance from the score back to a layer; one forward and one backward pass.

    Class k gets the relevance g_k z_k, with z the logits and g the gradient of the score by them: the logit itself
    where the score is the logit, and a sum that is the score wherever that is linear in the logits. The one logit of a
    binary model is that of class 1; for class 0 the last weights have the other sign.

    Args:
        trace: the recorded pass; its images and targets are run again.
        method: its name, for messages.
        layer: where to stop; `""` is the input.
        assign: gives each layer of the tape its rule.
        of_logits: False hands out g_k instead, probabilities of excitation backpropagation.

    Raises:
        NotApplicableError: if no rule fits a call of the model.
    """
    model, name = trace.model, type(trace.model).__name__
    half = place_of(model)[1] in (torch.float16, torch.bfloat16)
    if half:
        model = copied(model).float()
    refuse_scripts(model, method, "input-x-gradient")
    tape = Tape(method, name, len(trace.x), layer == INPUT)
    opposite = trace.opposite
    handed: list[Tensor] = []

    def score(logits: Tensor, target: Tensor) -> Tensor:
        tape.active = False  # the score is no part of the model
        if not tracked(logits):
            raise tape.refuse("ends in a softmax or sigmoid instead of logits")
        gradient = gradient_of(trace, logits, target)
        handed.append(gradient * logits.detach() if of_logits else gradient.where(~opposite[:, None], -gradient))
        return (logits * handed[0]).sum(1)

    autocast = torch.is_autocast_enabled(trace.x.device.type)
    with torch.inference_mode(False), without_autocast(trace.x), constant_attention(
        model, trace.spec.attention_layer, tape
    ), tape:  # fmt: skip
        if layer != INPUT:
            tape.set_constant(trace.x, cut=False)
        again = trace.again(model=model, layers=(layer,), score=score)
    off = float((again.logits - trace.logits).abs().max() / trace.logits.abs().max().clamp(min=1e-30))
    if off > 0.05 and not half and not autocast:
        raise NotApplicableError(
            f"{method}: {name} gives other logits when it runs again (off by {off:.0%}), so its relevance would be "
            "another network's; its forward pass must be a function of the image alone."
        )
    assign(tape)
    layers = [part for made in tape.layers for part in (made, made.unfolded) if part is not None]
    for made in tape.layers:
        if made.unfolded is not None:
            made.unfolded.rule = made.rule
    if tape.weighted and bool(opposite.any()):
        tape.weighted[-1].opposite = opposite
    with torch.inference_mode(False), without_autocast(trace.x):
        relevance = again.gradient(layer)
    total, size = handed[0].double().sum(1), handed[0].double().abs().sum(1)
    kept = (*(part.absorbed for part in layers if part.absorbed is not None), *tape.around)
    top = next((part.below for part in reversed(tape.weighted) if part.below is not None), size)
    return Passage(relevance, sum(kept, torch.zeros_like(total)), total, torch.maximum(size, top))
