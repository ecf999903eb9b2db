"""Relevance through a vision transformer by deep Taylor rules on the calls of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn.calls import Call, Calls, Kind, Refusal, Ruled, refuse_scripts, tensors_in, tracked
from xattn.errors import NotApplicableError
from xattn.functional.attention import without_autocast
from xattn.functional.transformer import linear_relevance, product_relevance, quotient, sum_relevance
from xattn.running import copied, in_this_thread
from xattn.trace import Trace, place_of


class Relevance(Calls):
    """While it is entered, the gradient of each torch function is relevance, or the function is refused.

    Chefer et al. 2021 (arXiv:2012.09838): positive products in linear layers, half for each operand of a product of
    matrices, shares of the absolute sums in residual sums, and the identity for norms, activations and the softmax.
    What does not require a gradient is a constant, as parameters are: added to the tokens or multiplied with them
    (layer scale) it takes no relevance.

    Args:
        model: name of the model's class, for messages.
        images: number of images N.
    """

    def __init__(self, model: str, images: int) -> None:
        super().__init__()
        self.model = model
        self.images = images

    def handle(self, call: Call) -> Any:
        """The value of a call, whose gradient is relevance by the rule of the call."""
        if not torch.is_grad_enabled() or call.name in ("set_grad_enabled", "requires_grad"):  # before the first block
            return call.run()
        if not any(map(tracked, call.tensors)):
            return call.constant()
        return call.finish((call.rule(_RULES) or Relevance._other)(self, call))

    def refuse(self, what: str) -> Refusal:
        """The exception for a call that no rule fits."""
        return Refusal(
            f"transformer-attribution: {self.model} {what} in or behind its first block, for which there is no "
            "relevance rule; use attention-x-gradient or agcam."
        )

    def _ruled(self, call: Call, rule: Callable[..., Sequence[Tensor | None]], *inputs: Tensor) -> Any:
        # In place: a copy is kept for the way back.
        return Ruled.apply(call.value, rule, *(x.clone() if call.in_place else x for x in inputs))

    def _run(self, call: Call) -> Any:
        return call.run()

    def _same(self, call: Call) -> Any:
        """A function of each value, or of all of a token through its mean and spread or its softmax: the identity."""
        return Ruled.apply(call.value, None, call.args[0])

    def _mean(self, call: Call) -> Any:
        """R_j = x_j sum_i (dz_i / dx_j) R_i / z_i."""

        def rule(x: Tensor, relevance: Tensor) -> tuple[Tensor]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                z = call.run(leaf)
                (gradient,) = torch.autograd.grad(z, leaf, quotient(relevance, z.detach()))
            return (x * gradient,)

        return self._ruled(call, rule, call.args[0])

    def _linear(self, call: Call) -> Any:
        return self._positive(call, call.arguments["weight"].detach())

    def _positive(self, call: Call, weight: Tensor) -> Any:
        return self._ruled(call, lambda x, relevance: (linear_relevance(x, weight, relevance),), call.args[0])

    def _product(self, call: Call) -> Any:
        a, b = call.args[:2] if len(call.args) == 2 else (None, None)
        if isinstance(b, Tensor) and b.ndim == 2 and not tracked(b):
            return self._positive(call, b.T)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or call.reflected:
            raise self.refuse(f"calls {call.name}()")
        if not (tracked(a) and tracked(b)) or a.shape[:-2] != b.shape[:-2]:
            raise self.refuse(f"multiplies {tuple(a.shape)} by {tuple(b.shape)}")
        return self._ruled(call, product_relevance, a, b)

    def _pair(self, call: Call) -> Any:
        """A sum, or a product value by value."""
        a, b = call.pair
        if tracked(a) and tracked(b):
            if call.kind is not Kind.SUM or a.shape != b.shape or len(a) != self.images or call.kwargs.get("alpha"):
                raise self.refuse(f"computes {call.name}() of two tensors {tuple(a.shape)} and {tuple(b.shape)}")
            sign = -1 if "sub" in call.name else 1
            return self._ruled(call, lambda x, y, relevance: sum_relevance(x, sign * y, relevance), a, b)
        if call.kind is Kind.QUOTIENT and not tracked(a):
            raise self.refuse("divides a constant by a tensor")
        return self._broadcast(call, a if tracked(a) else b)

    def _broadcast(self, call: Call, x: Tensor) -> Any:
        shapes = (t.shape for t in call.tensors)
        return Ruled.apply(call.value, None, x.expand(torch.broadcast_shapes(*shapes)))

    def _other(self, call: Call) -> Any:
        """Questions about a tensor (its shape, where it is largest) hand on nothing."""
        with torch.no_grad():
            result = call.run()
        if any(t.is_floating_point() for t in tensors_in(result)):
            raise self.refuse(f"calls {call.name}()")
        return result


_RULES: Mapping[str | Kind, Callable[[Relevance, Call], Any]] = {
    Kind.LINEAR: Relevance._linear,
    Kind.MATMUL: Relevance._product,
    "einsum": Relevance._other,
    Kind.SUM: Relevance._pair,
    Kind.PRODUCT: Relevance._pair,
    Kind.QUOTIENT: Relevance._pair,
    Kind.NORM: Relevance._same,
    Kind.RECTIFIER: Relevance._same,
    Kind.ACTIVATION: Relevance._same,
    Kind.NEGATION: Relevance._same,
    Kind.SOFTMAX: Relevance._same,
    "mean": Relevance._mean,
    "sum": Relevance._mean,
    Kind.MOVE: Relevance._run,
    Kind.JOIN: Relevance._run,
    "masked_fill": Relevance._run,
    "detach": Relevance._run,
}


def token_relevance(trace: Trace, layers: Sequence[str], first: str) -> Trace:
    """The images run again so that `Trace.gradient` gives relevance; one forward and one backward pass.

    The target's logit hands out a relevance of 1. A copy of the model in double precision runs, thrown away after it.

    Args:
        trace: the recorded pass.
        layers: where relevance is wanted; tokens stay tokens (N, T, C).
        first: the module whose input relevance ends at.

    Raises:
        NotApplicableError: if no rule fits a call of the model, or the target has no logit of its own.
    """
    model = trace.model
    refuse_scripts(model, "transformer-attribution", "attention-x-gradient")
    if not trace.goal.by_class:
        raise NotApplicableError(
            f"transformer-attribution: '{trace.goal.text(0, trace.spec)}' is no output of the model to start from; use "
            "attention-x-gradient."
        )
    if bool(trace.opposite.any()):
        raise NotApplicableError(
            "transformer-attribution: class 0 of a model with one output has no output to start from; explain class 1."
        )
    # Quotients by sums that nearly cancel make relevance out of rounding errors: in single precision a map of twelve
    # blocks is off by a quarter of its largest value.
    exact = torch.float32 if trace.x.device.type == "mps" else torch.float64
    if place_of(model)[1] != exact:
        model = copied(model).to(exact)
    column = trace.target if trace.logits.shape[1] > 1 else torch.zeros_like(trace.target)

    def begin(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # From here on all that depends on the image requires a gradient, and nothing else.
        torch.set_grad_enabled(True)
        if not inputs or not isinstance(inputs[0], Tensor):
            raise NotApplicableError(
                f"transformer-attribution: block '{first}' of {type(model).__name__} does not take tokens as its first "
                "argument; use attention-x-gradient."
            )
        return inputs[0].detach().requires_grad_(), *inputs[1:]

    handle = model.get_submodule(first).register_forward_pre_hook(in_this_thread(begin))
    try:
        with torch.inference_mode(False), without_autocast(trace.x), Relevance(type(model).__name__, len(trace.x)):
            again = trace.again(
                trace.x.to(exact), model=model, spec=replace(trace.spec, tokens=None), layers=layers,
                score=lambda logits, _: logits.gather(1, column[:, None])[:, 0],
            )  # fmt: skip
    finally:
        handle.remove()
    with without_autocast(trace.x):
        again.gradient(layers[-1])
    return again
