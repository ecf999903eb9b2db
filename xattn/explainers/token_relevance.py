"""Relevance through a vision transformer by deep Taylor rules on the calls of its forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xattn.errors import NotApplicableError
from xattn.functional.attention import without_autocast
from xattn.functional.transformer import linear_relevance, product_relevance, quotient, sum_relevance
from xattn.trace import Trace, place_of, record

Function = Callable[..., Any]
Rule = Callable[..., Sequence[Tensor | None]]

_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
_SUMS = frozenset({"add", "__add__", "__radd__", "sub", "subtract", "__sub__"})
_SCALES = frozenset({"mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__"})
# One value depends on one value, or on all of a token through its mean and spread or its softmax: the identity.
_SAME = frozenset({"layer_norm", "rms_norm", "group_norm", "gelu", "relu", "silu", "tanh", "softmax", "neg", "dropout"})
_MEANS = frozenset({"mean", "sum"})
# Values that are moved or chosen, or left as they are: autograd moves relevance as it moves a gradient.
_MOVES = frozenset(
    {
        "view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "expand",
        "contiguous", "clone", "to", "float", "double", "type", "type_as", "cat", "concat", "stack",
        "split", "chunk", "unbind", "narrow", "select", "index_select", "gather", "__getitem__", "__get__", "t",
        "masked_fill", "detach",
    }
)  # fmt: skip


class _Call(torch.autograd.Function):
    """A call whose gradient is relevance."""

    @staticmethod
    def forward(ctx: Any, run: Function, rule: Rule, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        y: Tensor = run(*inputs)
        return y

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        return None, None, *ctx.rule(*ctx.saved_tensors, relevance[0])


def _keep(x: Tensor, relevance: Tensor) -> tuple[Tensor]:
    return (relevance,)


def _in_proportion(run: Function) -> Rule:
    """The rule of a linear call without weights of its own: R_j = x_j sum_i (dz_i / dx_j) R_i / z_i."""

    def rule(x: Tensor, relevance: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            z = run(leaf)
            (gradient,) = torch.autograd.grad(z, leaf, quotient(relevance, z.detach()))
        return (x * gradient,)

    return rule


class Relevance(TorchFunctionMode):
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
        self.refusal: NotApplicableError | None = None

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        full = getattr(func, "__name__", "")
        if not torch.is_grad_enabled() or full in ("_set_grad_enabled", "requires_grad_"):  # before the first block
            return func(*args, **kwargs)
        if not any(map(_moves, _tensors((args, kwargs)))):
            with torch.no_grad():
                return _constant(func(*args, **kwargs))
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        name = full.replace("__i", "__", 1) if full.endswith("__") else full.removesuffix("_")
        if name == full:
            return self._call(func, full, args, kwargs)
        if not hasattr(Tensor, name):
            raise self._refuse(f"calls {full}()")
        # In place: a copy is worked on, so that what is kept for the way back stays.
        return args[0].copy_(self._call(getattr(Tensor, name), name, (args[0].clone(), *args[1:]), kwargs))

    def _call(self, func: Function, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in _MOVES:
            return func(*args, **kwargs)
        if name == "linear":
            return self._linear(*args, **kwargs)
        if name in _PRODUCTS and len(args) == 2:
            return self._product(func, *args)
        if name in _SUMS | _SCALES and len(args) == 2:
            return self._pair(func, name, *args, **kwargs)
        if name in _SAME and isinstance(args[0], Tensor):
            kwargs.pop("inplace", None)
            return _Call.apply(lambda x: func(x.clone(), *args[1:], **kwargs), _keep, args[0])
        if name in _MEANS and isinstance(args[0], Tensor):
            run = lambda x: func(x, *args[1:], **kwargs)  # noqa: E731 (used twice)
            return _Call.apply(run, _in_proportion(run), args[0])
        with torch.no_grad():
            result = func(*args, **kwargs)
        # Questions about a tensor (its shape, where it is largest) hand on nothing.
        if any(t.is_floating_point() for t in _tensors(result)):
            raise self._refuse(f"calls {name or type(func).__name__}()")
        return result

    def _refuse(self, what: str) -> NotApplicableError:
        self.refusal = NotApplicableError(
            f"transformer-attribution: {self.model} {what} in or behind its first block, for which there is no "
            "relevance rule; use attention-x-gradient or agcam."
        )
        return self.refusal

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        fixed = weight.detach()

        def rule(x: Tensor, relevance: Tensor) -> tuple[Tensor]:
            return (linear_relevance(x, fixed, relevance),)

        shift = None if bias is None else bias.detach()
        y: Tensor = _Call.apply(lambda x: F.linear(x, fixed, shift), rule, input)
        return y

    def _product(self, func: Function, a: Tensor, b: Tensor) -> Tensor:
        if not _moves(b) and b.ndim == 2:
            return self._linear(a, b.T)
        if not (_moves(a) and _moves(b)) or a.shape[:-2] != b.shape[:-2]:
            raise self._refuse(f"multiplies {tuple(a.shape)} by {tuple(b.shape)}")
        y: Tensor = _Call.apply(func, product_relevance, a, b)
        return y

    def _pair(self, func: Function, name: str, a: Any, b: Any, **kwargs: Any) -> Tensor:
        """A sum, or a product value by value."""
        first, second = (isinstance(x, Tensor) and _moves(x) for x in (a, b))
        if first and second:
            if name not in _SUMS or a.shape != b.shape or len(a) != self.images or kwargs:
                raise self._refuse(f"computes {name.strip('_')}() of two tensors {tuple(a.shape)} and {tuple(b.shape)}")
            sign = -1 if "sub" in name else 1
            y: Tensor = _Call.apply(func, lambda x, y, relevance: sum_relevance(x, sign * y, relevance), a, b)
            return y
        if not first and "div" in name:
            raise self._refuse("divides a constant by a tensor")
        run = (lambda x: func(x, b, **kwargs)) if first else (lambda x: func(a, x, **kwargs))
        y = _Call.apply(run, _keep, a if first else b)
        return y  # noqa: RET504 (its type is known)


def _moves(tensor: Tensor) -> bool:
    """Whether relevance may pass through a tensor."""
    return tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter)


def _constant(result: Any) -> Any:
    """Without the `requires_grad` that a view of a parameter has even under `no_grad`."""
    if isinstance(result, Tensor):
        return result.detach() if result.requires_grad and not isinstance(result, torch.nn.Parameter) else result
    return tuple(map(_constant, result)) if type(result) in (tuple, list) else result


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))


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
    if trace.logits.shape[1] == 1 and not bool(trace.target.all()):
        raise NotApplicableError(
            "transformer-attribution: class 0 of a model with one output has no output to start from; explain class 1."
        )
    # Quotients by sums that nearly cancel make relevance out of rounding errors: in single precision a map of twelve
    # blocks is off by a quarter of its largest value.
    exact = torch.float32 if trace.x.device.type == "mps" else torch.float64
    if place_of(model)[1] != exact:
        model = copy.deepcopy(model).to(exact)
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

    handle = model.get_submodule(first).register_forward_pre_hook(begin)
    mode = Relevance(type(model).__name__, len(trace.x))
    try:
        with torch.inference_mode(False), without_autocast(trace.x), mode:
            again = record(
                model, trace.x.to(exact), trace.target, spec=replace(trace.spec, tokens=None), layers=layers,
                score=lambda logits, _: logits.gather(1, column[:, None])[:, 0],
            )  # fmt: skip
    except TypeError:  # what Python makes of a refusal in the operator of two tensors
        if mode.refusal is None:
            raise
        raise mode.refusal from None
    finally:
        handle.remove()
    with without_autocast(trace.x):
        again.gradient(layers[-1])
    trace.forwards += again.forwards
    trace.backwards += again.backwards
    return again
