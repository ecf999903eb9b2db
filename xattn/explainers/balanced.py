"""Relevance through any differentiable network as input x gradient, with gradients by which it is conserved.

Where all that a network does is linear, or passes each value on times a factor, the input times the gradient adds up to
the output less what biases add. Attention, normalization, gates and products are no such functions; the rules here
give them factors, so that one plain backward pass carries relevance through all of them: R = x g at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xattn.attention_taps import AttentionTaps
from xattn.calls import Call, Calls, Kind, Refusal, Ruled, bounds, refuse_scripts, tensors_in, tracked
from xattn.explainers import explainers
from xattn.explainers.propagation import Propagation
from xattn.explainers.propagation_tape import Passage, constant_attention, gradient_of
from xattn.functional.attention import without_autocast
from xattn.running import copied
from xattn.trace import INPUT, Trace, place_of

_SMALL = 1e-6  # a value nearer to zero than this has the factor of one that far


class Balance(Calls):
    """While it is entered, gradients become those by which x g is conserved; a call that no rule fits is refused.

    Args:
        method: its name, for messages.
        model: name of the model's class, for messages.
        images: number of images.
        through_softmax: relevance passes the probabilities of attention; else they are constants.

    Attributes:
        absorbed: relevance of each image (N,) that biases and other constants which are added keep, by the formulas of
            the rules; filled by the backward pass.
    """

    def __init__(self, method: str, model: str, images: int, *, through_softmax: bool) -> None:
        super().__init__()
        self.method, self.model, self.images, self.through_softmax = method, model, images, through_softmax
        self.absorbed: list[Tensor] = []

    def refuse(self, what: str) -> Refusal:
        """The exception for a call that no rule fits."""
        return Refusal(
            f"{self.method}: {self.model} {what}, for which there is no relevance rule; use input-x-gradient or "
            "integrated-gradients."
        )

    def handle(self, call: Call) -> Any:
        if not any(map(tracked, call.tensors)):
            return call.constant() if any(t.requires_grad for t in call.tensors) else call.run()
        # In place on a view: autograd makes the node of the view anew each time, and what hangs on the old one is lost.
        view = call.args[0] if call.in_place and call.args[0]._is_view() else None
        if view is not None:
            call.args = (view.clone(), *call.args[1:])
        result = call.finish((call.rule(_RULES) or Balance._other)(self, call))
        return result if view is None else view.copy_(result)

    def set_constant(self, made: object, *, cut: bool) -> None:
        """Constants need no note: where they are added, they are counted."""

    def _per_image(self, values: Tensor) -> Tensor:
        values = values.double()
        if values.shape[0] % self.images:
            if values.ndim < 2 or values.shape[1] != self.images:
                raise self.refuse(f"works on {tuple(values.shape)}, whose first dimension is not the images,")
            values = values.transpose(0, 1)
        return values.reshape(self.images, -1).sum(1)

    def _keep(self, y: Tensor, constant: Tensor) -> Tensor:
        """Count what a constant that is part of a sum keeps of the relevance of the sum."""
        constant = constant.detach()
        # An infinite mask keeps nothing: what it hides has no gradient.
        _on_gradient(y, lambda g: self.absorbed.append(self._per_image((g * constant).where(g != 0, 0))))
        return y

    def _run(self, call: Call) -> Any:
        return call.run()

    def _cut(self, call: Call) -> Any:
        """What weights and normalizes is a constant."""
        with torch.no_grad():
            return call.run()

    def _factor(self, call: Call) -> Any:
        """f(x) = x (f(x) / x), of each value by itself, with the quotient as a constant: all relevance passes."""
        x = call.args[0]
        with torch.no_grad():
            apart = x.detach().masked_fill(x.detach().abs() < _SMALL, _SMALL)
            factor = call.run(apart.clone()) / apart
        return x * factor

    def _power(self, call: Call) -> Any:
        """Powers from one on keep zero, as in the squared ReLU; roots and inverses normalize."""
        given = dict(zip(("input", "exponent"), call.args, strict=False)) | call.kwargs
        power = given.get("exponent")
        return self._factor(call) if isinstance(power, (int, float)) and power >= 1 else self._cut(call)

    def _clip(self, call: Call) -> Any:
        low, high = bounds(call) or (1, None)
        keeps_zero = (low is None or low <= 0) and (high is None or high >= 0)
        return self._factor(call) if keeps_zero else self._other(call)

    def _affine(self, call: Call) -> Any:
        given = call.arguments
        if tracked(given.get("weight")) or tracked(given.get("bias")) or not tracked(given["input"]):
            raise self.refuse(f"calls {call.name}() with weights made of the image")
        y, bias = call.run(), given.get("bias")
        return y if bias is None else self._keep(y, _along(bias, y, -1 if call.kind is Kind.LINEAR else 1))

    def _batch_norm(self, call: Call) -> Any:
        given = call.arguments
        if given.get("training") or given.get("running_mean") is None:
            raise self.refuse("normalizes by the statistics of the batch")
        y, weight, bias = call.run(), given.get("weight"), given.get("bias")
        scale = (given["running_var"] + given.get("eps", 1e-5)).rsqrt() * (1 if weight is None else weight)
        return self._keep(y, _along((0 if bias is None else bias) - given["running_mean"] * scale, y, 1))

    def _layer_norm(self, call: Call) -> Any:
        """Centring is linear, and the spread is a constant (Ali et al. 2022, the LN rule)."""
        given = call.arguments
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        y = _normalized(given["input"], dims, given.get("eps", 1e-5))
        return self._scaled(y, given.get("weight"), given.get("bias"))

    def _group_norm(self, call: Call) -> Any:
        names = ("input", "num_groups", "weight", "bias", "eps")
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        x = given["input"]
        y = _normalized(x.reshape(len(x), given["num_groups"], -1), (-1,), given.get("eps", 1e-5)).view_as(x)
        weight, bias = (None if v is None else _along(v, y, 1) for v in (given.get("weight"), given.get("bias")))
        return self._scaled(y, weight, bias)

    def _instance_norm(self, call: Call) -> Any:
        names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
        given = dict(zip(names, call.args, strict=False)) | call.kwargs
        if not given.get("use_input_stats", True):
            raise self.refuse("calls instance_norm() with given statistics")
        y = _normalized(given["input"], tuple(range(2, given["input"].ndim)), given.get("eps", 1e-5))
        weight, bias = (None if v is None else _along(v, y, 1) for v in (given.get("weight"), given.get("bias")))
        return self._scaled(y, weight, bias)

    def _scaled(self, y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = y if weight is None else y * weight.detach()
        return y if bias is None else self._keep(y + bias.detach(), bias)

    def _sum(self, call: Call) -> Any:
        a, b = call.pair
        y = call.run()
        if tracked(a) and tracked(b):
            return y
        factor = (-1 if "sub" in call.name and tracked(a) else 1) * (call.kwargs.get("alpha", 1) if tracked(a) else 1)
        constant = torch.as_tensor(b if tracked(a) else a, dtype=y.dtype, device=y.device)
        return self._keep(y, constant * factor)

    def _product(self, call: Call) -> Any:
        """Each of two factors gets half."""
        factors = sum(map(tracked, call.tensors))
        if factors > 2:
            raise self.refuse(f"calls {call.name}() on more than two feature maps")
        y = call.run()
        if factors == 2:
            _on_gradient(y, lambda g: g / 2)
        return y

    def _quotient(self, call: Call) -> Any:
        a, b = call.pair
        if not tracked(a):
            return self._cut(call)
        if call.kwargs.get("rounding_mode") is not None:
            raise self.refuse(f"calls {call.name}() with rounding")
        return a / (b.detach() if isinstance(b, Tensor) else b)

    def _softmax(self, call: Call) -> Any:
        """Taylor: R_i = x_i (R_i - s_i sum_j R_j) (Achtibat et al. 2024, prop. 3.1), which is the gradient itself."""
        if not self.through_softmax:
            return self._cut(call)
        y, x = call.run(), call.args[0].detach()

        def keep(g: Tensor) -> None:
            s = y.detach()
            below = s * (g - (s * g).sum(call.arguments["dim"], keepdim=True))
            self.absorbed.append(self._per_image(s * g - (x * below).where(below != 0, 0)))

        _on_gradient(y, keep)
        return y

    def _add_product(self, call: Call) -> Any:
        """A constant and a product, as in the global response normalization of ConvNeXt V2."""
        constant, a, b = call.args[:3]
        if tracked(constant) or (tracked(a) and tracked(b)):
            raise self.refuse(f"calls {call.name}() on several feature maps")
        return self._keep(call.run(), constant)

    def _glu(self, call: Call) -> Any:
        given = dict(zip(("input", "dim"), call.args, strict=False)) | call.kwargs
        a, b = given["input"].chunk(2, given.get("dim", -1))
        return a * b.detach().sigmoid()

    def _var_mean(self, call: Call) -> Any:
        spread, _ = self._cut(call)
        rest = {k: v for k, v in call.kwargs.items() if k in ("dim", "keepdim")}
        return spread, call.args[0].mean(*call.args[1:2], **rest)

    def _join(self, call: Call) -> Any:
        anchor = next(filter(tracked, call.tensors))

        def sunk(value: Any) -> Any:
            """A constant takes its share as all others do, and it is counted."""
            if isinstance(value, (tuple, list)):
                return type(value)(map(sunk, value))
            if not isinstance(value, Tensor) or tracked(value):
                return value

            def count(anchor: Tensor, g: Tensor) -> tuple[None]:
                self.absorbed.append(self._per_image((g * value.detach()).where(g != 0, 0)))
                return (None,)

            return Ruled.apply(value.detach().clone, count, anchor[:0].clone())

        call.args, call.kwargs = sunk(call.args), {k: sunk(v) for k, v in call.kwargs.items()}
        return call.run()

    def _fill(self, call: Call) -> Any:
        if call.name == "pad" and call.arguments.get("value") not in (None, 0):
            with torch.no_grad():
                rim = call.run(torch.zeros_like(call.args[0]))
            return self._keep(call.run(), rim)
        return call.run()  # what is filled hides scores of attention

    def _attention(self, call: Call) -> Any:
        raise self.refuse(f"calls {call.name}() with options that it is not taken apart with")

    def _other(self, call: Call) -> Any:
        """A question about a tensor (its size, where it is largest) is answered, what computes with it is refused."""
        result = call.run()
        if any(tensor.requires_grad for tensor in tensors_in(result)):
            raise self.refuse(f"calls {call.name}()")
        return result


_RULES: Mapping[str | Kind, Callable[[Balance, Call], Any]] = {
    **dict.fromkeys((Kind.LINEAR, Kind.CONV), Balance._affine),
    **dict.fromkeys((Kind.MOVE, Kind.POOL, Kind.MAX_POOL, Kind.NEGATION, "relu"), Balance._run),
    **dict.fromkeys((Kind.ACTIVATION, "relu6", "normalize", "rms_norm", "local_response_norm"), Balance._factor),
    **dict.fromkeys((Kind.GATE, Kind.CURVE, "norm", "std", "var"), Balance._cut),
    **dict.fromkeys((Kind.PRODUCT, Kind.MATMUL), Balance._product),
    **dict.fromkeys(("amax", "amin", "max", "min", "topk", "sort"), Balance._run),
    "square": Balance._factor,
    "pow": Balance._power,
    Kind.CLIP: Balance._clip,
    Kind.BATCH_NORM: Balance._batch_norm,
    Kind.SUM: Balance._sum,
    Kind.QUOTIENT: Balance._quotient,
    Kind.SOFTMAX: Balance._softmax,
    Kind.ATTENTION: Balance._attention,
    Kind.FILL: Balance._fill,
    Kind.JOIN: Balance._join,
    "layer_norm": Balance._layer_norm,
    "group_norm": Balance._group_norm,
    "instance_norm": Balance._instance_norm,
    "addcmul": Balance._add_product,
    "glu": Balance._glu,
    "var_mean": Balance._var_mean,
}


def _on_gradient(y: Tensor, rule: Callable[[Tensor], Tensor | None]) -> None:
    """Call a rule with the gradient of a tensor as it is now, which becomes what the rule gives, if it gives one.

    A hook of the tensor would move on when it is changed in place.
    """
    node, index = y.grad_fn, y.output_nr

    def before(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
        given = gradients[index]
        changed = None if given is None else rule(given)
        return None if changed is None else (*gradients[:index], changed, *gradients[index + 1 :])

    if node is not None:
        node.register_prehook(before)


def _along(values: Tensor, output: Tensor, dim: int) -> Tensor:
    """Values of the channels (C,) in a shape that can be added to an output whose channels lie along `dim`."""
    return values.view(-1, *[1] * (output.ndim - dim % output.ndim - 1))


def _normalized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()


def balanced(trace: Trace, method: str, *, through_softmax: bool) -> Passage:
    """Hand relevance from the score back to the pixels; one forward and one backward pass.

    Class k hands out g_k z_k, with z the logits and g the gradient of the score by them.

    Args:
        trace: the recorded pass; its images and targets are run again.
        method: its name, for messages.
        through_softmax: as for `Balance`.

    Raises:
        NotApplicableError: if no rule fits a call of the model.
    """
    model, name = trace.model, type(trace.model).__name__
    if place_of(model)[1] in (torch.float16, torch.bfloat16):
        model = copied(model).float()
    refuse_scripts(model, method, "input-x-gradient")
    balance = Balance(method, name, len(trace.x), through_softmax=through_softmax)
    handed: list[Tensor] = []

    def score(logits: Tensor, target: Tensor) -> Tensor:
        balance.active = False  # the score is no part of the model
        if not tracked(logits):
            raise balance.refuse("ends in a softmax or sigmoid instead of logits")
        gradient = gradient_of(trace, logits, target)
        handed.append(gradient * logits.detach())
        return (logits * gradient).sum(1)

    with torch.inference_mode(False), without_autocast(trace.x), constant_attention(
        model, trace.spec.attention_layer, balance
    ), balance, AttentionTaps({"": model}, lambda module, kind, tensor: tensor):  # fmt: skip
        again = trace.again(model=model, layers=(INPUT,), score=score)
    with torch.inference_mode(False), without_autocast(trace.x):
        relevance = again.activation(INPUT) * again.gradient(INPUT)
    total, size = handed[0].double().sum(1), handed[0].double().abs().sum(1)
    return Passage(relevance, sum(balance.absorbed, torch.zeros_like(total)), total, size)


class _Balanced(Propagation):
    """Relevance as input x gradient, by rules for attention, normalization, gates and products."""

    passes: ClassVar[str] = "1 forward, 1 backward"
    serves: ClassVar[str] = "transformers and CNNs"
    opposes: ClassVar[bool] = True
    through_softmax: ClassVar[bool] = False

    def passage(self, trace: Trace) -> Passage:
        return balanced(trace, self.name, through_softmax=self.through_softmax)


@explainers.register("attnlrp")
@dataclass(frozen=True)
class AttnLRP(_Balanced):
    """AttnLRP: relevance through both factors of attention, and its softmax (Achtibat et al. 2024, arXiv:2402.05602).

    Linear layers hand on by the epsilon rule (eq. 8) and activations all that they get; of a product of matrices or of
    values each factor gets half (prop. 3.3); of a softmax s each input x gets x_i (R_i - s_i sum_j R_j), and the rest
    is absorbed (prop. 3.1); normalization by the spread passes all on (prop. 3.4). Relevance is input x gradient with
    gradients changed accordingly (Arras et al. 2025, arXiv:2502.15886), so that epsilon is zero and one backward pass
    does. What biases, position embeddings and the softmax absorb is counted, and with it the map adds up to the
    logit. Differs from the paper: its experiments with vision transformers have the gamma rule in linear layers and
    convolutions, and here it is the epsilon rule; sigmoid gates are constants.

    The authors' library says that LRP is a patented technology, free of charge for personal and scientific purposes
    only; patents of Fraunhofer and TU Berlin on "Relevance score assignment for artificial neural networks" are listed
    (EP 3271863 B1, US 12061966 B2). They concern LRP as such, which `lrp`, `deep-taylor` and `cp-lrp` are kinds of as
    well. This is what was found and no legal advice: have it checked before commercial use.
    """

    through_softmax: ClassVar[bool] = True


@explainers.register("cp-lrp")
@dataclass(frozen=True)
class CPLRP(_Balanced):
    """CP-LRP: relevance through the values of attention alone, probabilities fixed (Ali et al. 2022, arXiv:2202.07304).

    Attention probabilities are constants (AH rule), and so is the spread by which a layer norm divides, though not the
    mean that it takes off (LN rule). Activations hand on all that they get; gates are constants, of products of two
    feature maps each gets half. Biases and position embeddings absorb what they add; with that the map adds up to the
    logit. Differs from the paper: GELU has the rule of LRP, where the authors' code has its gradient, by which
    relevance is not conserved; group norm, RMS norm and batch norm follow the LN rule. A kind of LRP: see `attnlrp` on
    patents.
    """


@explainers.register("libragrad")
@dataclass(frozen=True)
class LibraGrad(_Balanced):
    """LibraGrad: input x gradient, of gradients pruned and scaled to add up (Mehri et al. 2025, arXiv:2411.16760).

    Gradients are pruned where a factor is taken for a constant: through the probabilities of attention, the gate of a
    gated activation (GELU is x times its gate) and the spread of a norm; and scaled by a half in products of two
    feature maps. So the network is complete in the sense of FullGrad: input x gradient and what biases add are the
    logit. Differs from the paper: its best method adds the biases of all layers to the map, and this is its input x
    gradient. Found from other principles, it is equal to `cp-lrp` on networks for which both papers have rules, as all
    layers of ViT, Swin and ConvNeXt.
    """
