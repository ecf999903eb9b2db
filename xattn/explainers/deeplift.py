"""DeepLIFT: what each unit adds to the difference from a baseline, by rules for every nonlinear operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xattn.attention_taps import AttentionTaps
from xattn.errors import NotApplicableError
from xattn.explainers import explainers
from xattn.explainers.integrated import PixelExplainer, drawn_baselines
from xattn.explainers.passes import BaselineName, Halving, completeness_error, owners, tiles
from xattn.schema import Range
from xattn.score import apply_score
from xattn.trace import INPUT, Trace, record

_UNARY = frozenset(
    {
        "relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max", "threshold", "celu", "elu", "selu",
        "gelu", "hardshrink", "hardsigmoid", "hardswish", "leaky_relu", "logsigmoid", "mish", "prelu", "rrelu", "silu",
        "softplus", "softshrink", "softsign", "tanh", "tanhshrink", "sigmoid", "erf", "exp", "log", "sqrt", "rsqrt",
        "reciprocal", "square", "pow", "__pow__", "__rpow__", "__rdiv__", "__rtruediv__", "abs", "sin", "cos",
    }
)  # fmt: skip
_PRODUCTS = frozenset(
    {"mul", "multiply", "__mul__", "__rmul__", "__imul__", "matmul", "__matmul__", "mm", "bmm", "einsum"}
)
_QUOTIENTS = frozenset({"div", "divide", "true_divide", "__truediv__", "__itruediv__"})
_POOLS = frozenset(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))
_WITHOUT = frozenset(
    {
        "addcdiv", "addcmul", "amax", "amin", "baddbmm", "bilinear", "cosine_similarity", "cumprod", "glu",
        "group_norm", "instance_norm", "local_response_norm", "log_softmax", "logsumexp", "max", "maximum", "min",
        "minimum", "multi_head_attention_forward", "norm", "normalize", "prod", "rms_norm",
        "scaled_dot_product_attention", "sort", "std", "topk", "var",
    }
)  # fmt: skip

Pair = tuple[Tensor, Tensor]
"""A value that autograd follows, and the same for the baseline."""


class _Valued(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, surrogate: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _slope(function: Callable[[Tensor], Tensor], x: Tensor, ref: Tensor) -> Tensor:
    """(f(x) - f(ref)) / (x - ref) of each value, the derivative where the two are too near to tell."""
    apart = x - ref
    near = (x == ref) | (apart.abs() <= torch.finfo(x.dtype).eps ** 0.5 * (x.abs() + ref.abs()))
    with torch.enable_grad():
        middle = ((x + ref) / 2).requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle.clone()).sum(), middle)
    return torch.where(near, derivative, (function(x.clone()) - function(ref.clone())) / apart.masked_fill(near, 1))


def _unary(function: Callable[[Tensor], Tensor], z: Pair) -> Pair:
    """Rescale rule: the multiplier is the slope between the two points."""
    x, ref = z[0].detach(), z[1]
    return _Valued.apply(z[0] * _slope(function, x, ref), function(x.clone())), function(ref.clone())


def _product(function: Callable[[Tensor, Tensor], Tensor], a: Pair, b: Pair) -> Pair:
    """Each factor adds its difference times the mean of the other one: the Shapley value of two players."""
    mean_a, mean_b = ((x.detach() + ref) / 2 for x, ref in (a, b))
    surrogate = function(a[0].clone(), mean_b) + function(mean_a.clone(), b[0])
    return _Valued.apply(surrogate, function(a[0].detach().clone(), b[0].detach())), function(a[1].clone(), b[1])


def _quotient(a: Pair, b: Pair) -> Pair:
    return _product(torch.mul, a, _unary(torch.reciprocal, b))


def _max_pool(pool: Callable[[Tensor], tuple[Tensor, Tensor]], z: Pair) -> Pair:
    """The difference of the two maxima goes to the place of the larger one."""
    x, ref = z
    (y, at), (y_ref, at_ref) = pool(x.detach()), pool(ref)
    dims = at.ndim - 2
    flat, flat_ref = x.flatten(-dims), ref.flatten(-dims)
    surrogate = torch.zeros_like(y)
    for place, change, otherwise in ((at, (y - y_ref).clamp(min=0), 1), (at_ref, (y - y_ref).clamp(max=0), 0)):
        index = place.flatten(-dims)
        here = flat.gather(-1, index)
        apart = here.detach() - flat_ref.gather(-1, index)
        change = change.flatten(-dims)
        multiplier = torch.where(apart == 0, otherwise, change / apart.masked_fill(apart == 0, 1))
        surrogate = surrogate + (here * multiplier).view_as(y)
    return _Valued.apply(surrogate, y), y_ref


def _softmax(z: Pair, dim: int) -> Pair:
    """exp(z - log sum exp z): the logarithm of the sum takes from each z what the slopes of exp and log give."""
    x, ref = z[0].detach(), z[1]
    total, total_ref = (t.logsumexp(dim, keepdim=True) for t in (x, ref))
    most = torch.maximum(total, total_ref)  # taken from all, it cancels, and nothing overflows
    share = _slope(torch.exp, x - most, ref - most) / _slope(torch.exp, total - most, total_ref - most)
    passed_on = _Valued.apply((z[0] * share).sum(dim, keepdim=True), total)
    return _unary(torch.exp, (z[0] - passed_on, ref - total_ref))


def _layer_norm(z: Pair, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Pair:
    dims = tuple(range(-len(shape), 0))
    centred = z[0] - z[0].mean(dims, keepdim=True), z[1] - z[1].mean(dims, keepdim=True)
    square, square_ref = _product(torch.mul, centred, centred)
    variance = square.mean(dims, keepdim=True), square_ref.mean(dims, keepdim=True)
    y, y_ref = _product(torch.mul, centred, _unary(lambda v: (v + eps).rsqrt(), variance))
    if weight is not None:
        y, y_ref = y * weight, y_ref * weight
    return (y, y_ref) if bias is None else (y + bias, y_ref + bias)


@dataclass(frozen=True)
class _Call:
    """A call that a rule is for: its name, the tensors that can differ from the baseline, and the rule."""

    kind: str
    operands: tuple[Tensor, ...]
    rule: Callable[..., Pair] | None


def _call(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
    """How DeepLIFT sees a call; None if the call is linear, or nothing that it knows."""
    kind = name if name.startswith("__") else name.rstrip("_")
    values: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    tensors = tuple(v for v in values.values() if isinstance(v, Tensor) and v.is_floating_point())
    if kind == "einsum":
        operands = tuple(args[1]) if isinstance(args[1], (tuple, list)) else args[1:]
        rule = (lambda a, b: _product(lambda x, y: func(args[0], x, y), a, b)) if len(operands) == 2 else None
        return _Call(kind, operands, rule) if len(operands) > 1 else None
    first = values.get(0, kwargs.get("input"))
    if not isinstance(first, Tensor):
        return None
    rest = {k: v for k, v in kwargs.items() if k not in ("input", "return_indices")}
    if kind in _UNARY:
        if len(tensors) > 1 and kind != "prelu":
            return _Call(kind, tensors, None)
        return _Call(kind, (first,), lambda z: _unary(lambda t: func(t, *args[1:], **rest), z))
    if kind in _PRODUCTS and len(tensors) == 2:
        return _Call(kind, tensors, lambda a, b: _product(func, a, b))
    if kind in _QUOTIENTS and len(tensors) == 2:
        return _Call(kind, tensors, _quotient if kwargs.get("rounding_mode") is None else None)
    if kind in _POOLS and not kwargs.get("return_indices"):
        pool = getattr(F, kind)
        return _Call(kind, (first,), lambda z: _max_pool(lambda t: pool(t, *args[1:6], **rest, return_indices=True), z))
    if kind == "softmax":
        dim: Any = values.get("dim", values.get(1))
        plain = dim is not None and values.get("dtype") is None
        return _Call(kind, (first,), (lambda z: _softmax(z, dim)) if plain else None)
    if kind == "layer_norm":
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        known = {"weight": None, "bias": None, "eps": 1e-5} | dict(zip(names, args, strict=False)) | kwargs
        return _Call(kind, (first,), lambda z: _layer_norm(z, *(known[name] for name in names[1:])))
    return _Call(kind, tensors, None) if kind in _WITHOUT else None


class Rules(TorchFunctionMode):
    """While it is entered, first with a baseline and then with the image, gradients become DeepLIFT's multipliers.

    It sees the calls of torch functions and not modules, so that functional, reused and in-place activations are
    treated as any other, and the model is not touched. The two passes must make the same calls.

    Attributes:
        strict: refuse operations that have no rule; else their gradient stands.
    """

    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who
        self.strict = True
        self.next: int | None = None
        self._seen: list[tuple[str, tuple[Tensor, ...], bool]] = []

    def compare(self) -> None:
        """The baseline has passed: what comes now is the image."""
        self.next = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = _call(getattr(func, "__name__", ""), func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        if self.next is None:
            before = tuple(operand.detach().clone() for operand in call.operands)
            result = func(*args, **kwargs)
            self._seen.append((call.kind, before, result is call.operands[0]))
            return result
        kind, references, in_place = self._seen[self.next] if self.next < len(self._seen) else ("the end", (), False)
        self.next += 1
        if kind != call.kind or [t.shape for t in references] != [t.shape for t in call.operands]:
            raise NotApplicableError(
                f"{self.who}: the model calls {call.kind} for the image where it has {kind} for the baseline, so that "
                "the two cannot be compared; use integrated-gradients."
            )
        if not any(operand.requires_grad for operand in call.operands):
            return func(*args, **kwargs)
        if call.rule is None:
            same = all(torch.equal(a, b) for a, b in zip(call.operands, references, strict=True))
            if self.strict and not same:
                raise NotApplicableError(
                    f"{self.who}: the model calls {call.kind}, for which DeepLIFT has no rule; "
                    "use integrated-gradients."
                )
            return func(*args, **kwargs)
        y, _ = call.rule(*zip(call.operands, references, strict=True))
        return call.operands[0].copy_(y) if in_place else y


class _Ruled(nn.Module):
    """A model under the rules."""

    def __init__(self, model: nn.Module, rules: Rules) -> None:
        super().__init__()
        self.model = model
        self.rules = rules

    def forward(self, x: Tensor) -> Any:
        # Fused attention is made of the products and the softmax that there are rules for.
        with self.rules, AttentionTaps({"": self.model}, lambda module, kind, tensor: tensor):
            return self.model(x)


def _differences(trace: Trace, who: str, start: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What the pixels (B, C, H, W) of some images add to the score of their baselines, and that score (B,)."""
    rules, target, images = Rules(who), trace.target.index_select(0, own), trace.x.index_select(0, own)
    model = _Ruled(trace.model, rules)

    def score(logits: Tensor, target: Tensor) -> Tensor:
        rules.strict = False
        with rules:
            return trace.score_fn(logits, target)

    before = record(model, start, target, spec=trace.spec, grad=False)
    score_before = apply_score(score, before.logits, target)
    rules.strict = True
    rules.compare()
    after = record(model, images, target, spec=trace.spec, layers=(INPUT,), score=score)
    multipliers = after.gradient(INPUT)
    trace.forwards += before.forwards + after.forwards
    trace.backwards += after.backwards
    return multipliers * (images - start), score_before


@explainers.register("deeplift")
@dataclass(frozen=True)
class DeepLift(PixelExplainer):
    """DeepLIFT: differences from a baseline by the Rescale rule (Shrikumar et al. 2017, arXiv:1704.02685).

    Each activation passes on its own slope between baseline and image. Maxima go to where they are; products of two
    activations (attention, squeeze-excitation, layer norm, softmax) are shared by their Shapley values. Computed here
    rather than by captum, which refuses activations that are used twice, overlooks functional ones and those it has
    no rule for, and then gives sums that are wrong without a word. Here a map whose sum is not f(x) - f(baseline) is
    marked `non-conserving`, and operations known to have no rule are refused.

    Args:
        baseline: what the image is compared with: `"black"`, `"mean"`, `"blur"` or `"noise"`, defined on pixels and
            then normalized.
        reduce: over the channels: `"sum"` with signs, which keeps the map complete, `"max"` of the absolute values,
            `"mean_abs"` or `"norm"`.
        chunk: images a batch; no part of the result.
    """

    name: ClassVar[str] = "deeplift"
    passes: ClassVar[str] = "2 forward, 1 backward"
    paper: ClassVar[str] = "Shrikumar et al. 2017, arXiv:1704.02685"
    baseline: BaselineName = "black"

    def draws(self) -> int:
        """Number of baselines."""
        return 1

    def _explained(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """Attributions (N, C, H, W), and the mean score (N,) of the baselines."""
        for name, module in trace.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise NotApplicableError(
                    f"{self.name}: layer '{name}' of {type(trace.model).__name__} is TorchScript, whose operations "
                    "cannot be seen; pass the Python module it was made from, or use integrated-gradients."
                )
        draw, count, scores = drawn_baselines(trace, self.name, self.baseline), self.draws(), []

        def run(start: Tensor, own: Tensor) -> Tensor:
            found, score = _differences(trace, self.name, start, own)
            scores.append(score)
            return found

        again, total = Halving(run), torch.zeros_like(trace.x)
        for images, samples in tiles(len(trace.x), count, self.chunk):
            own = owners(images, samples, trace.x.device)
            found = again(draw(own), own)
            total[images] += found.unflatten(0, (-1, samples.stop - samples.start)).sum(1)
        return total / count, torch.cat(scores).view(-1, count).mean(1)

    def channels(self, trace: Trace) -> Tensor:
        return trace.once(self, lambda: self._explained(trace))[0]

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor | None:
        """Relative error (N,) of sum of the map = f(x) - f(baseline)."""
        if self.reduce != "sum":
            return None
        start = trace.once(self, lambda: self._explained(trace))[1]
        return completeness_error(trace, maps.sum((1, 2, 3)), start, maps.abs().sum((1, 2, 3)))


@explainers.register("deeplift-shap")
@dataclass(frozen=True)
class DeepLiftShap(DeepLift):
    """DeepLIFT SHAP: mean DeepLIFT over random baselines (Lundberg and Lee 2017, arXiv:1705.07874).

    As `deeplift`, for baselines that are drawn: images of noise, since a method here is bound to no training set.

    Args:
        baseline: what is drawn: `"noise"`; a fixed image (`"black"`, `"mean"`, `"blur"`) gives `deeplift`.
        samples: baselines.
        reduce: over the channels: `"sum"` with signs, which keeps the map complete, `"max"` of the absolute values,
            `"mean_abs"` or `"norm"`.
        chunk: images a batch; no part of the result.
    """

    name: ClassVar[str] = "deeplift-shap"
    passes: ClassVar[str] = "20 forward, 10 backward"
    paper: ClassVar[str] = "Lundberg and Lee 2017, arXiv:1705.07874"
    baseline: BaselineName = "noise"
    samples: Annotated[int, Range(1, 10_000)] = 10

    def draws(self) -> int:
        return self.samples
