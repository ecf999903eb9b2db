"""DeepLIFT: what each unit adds to the difference from a baseline, by rules for every nonlinear operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.attention_taps import AttentionTaps
from xattn.calls import Call, Calls, Kind, Refusal, Ruled, refuse_scripts
from xattn.explainers import explainers
from xattn.explainers.integrated import PixelExplainer, drawn_baselines
from xattn.explainers.passes import BaselineName, Halving, completeness_error, owners, tiles
from xattn.schema import Range
from xattn.score import apply_score
from xattn.trace import INPUT, Trace

Pair = tuple[Tensor, Tensor]
"""A value that autograd follows, and the same for the baseline."""


def _slope(function: Callable[[Tensor], Tensor], x: Tensor, ref: Tensor) -> Tensor:
    """(f(x) - f(ref)) / (x - ref) of each value, the derivative where the two are too near to tell."""
    apart = x - ref
    near = (x == ref) | (apart.abs() <= torch.finfo(x.dtype).eps ** 0.5 * (x.abs() + ref.abs()))
    with torch.enable_grad():
        middle = ((x + ref) / 2).requires_grad_()
        (derivative,) = torch.autograd.grad(function(middle.clone()).sum(), middle)
    return torch.where(near, derivative, (function(x.clone()) - function(ref.clone())) / apart.masked_fill(near, 1))


def _valued(surrogate: Tensor, value: Tensor) -> Tensor:
    """The value with the gradient of the surrogate."""
    y: Tensor = Ruled.apply(value.clone, None, surrogate)
    return y


def _unary(function: Callable[[Tensor], Tensor], z: Pair) -> Pair:
    """Rescale rule: the multiplier is the slope between the two points."""
    x, ref = z[0].detach(), z[1]
    return _valued(z[0] * _slope(function, x, ref), function(x.clone())), function(ref.clone())


def _product(function: Callable[[Tensor, Tensor], Tensor], a: Pair, b: Pair) -> Pair:
    """Each factor adds its difference times the mean of the other one: the Shapley value of two players."""
    mean_a, mean_b = ((x.detach() + ref) / 2 for x, ref in (a, b))
    surrogate = function(a[0].clone(), mean_b) + function(mean_a.clone(), b[0])
    return _valued(surrogate, function(a[0].detach().clone(), b[0].detach())), function(a[1].clone(), b[1])


def _max_pool(pool: Callable[[Tensor], tuple[Tensor, Tensor]], z: Pair) -> Pair:
    """The difference of the two maxima goes to the place of the larger one."""
    x, ref = z
    (y, at), (y_ref, at_ref) = pool(x.detach()), pool(ref)
    dims = at.ndim - 2
    flat, flat_ref = x.flatten(-dims), ref.flatten(-dims)
    surrogate = torch.zeros_like(y)
    for cells, change, otherwise in ((at, (y - y_ref).clamp(min=0), 1), (at_ref, (y - y_ref).clamp(max=0), 0)):
        index = cells.flatten(-dims)
        here = flat.gather(-1, index)
        apart = here.detach() - flat_ref.gather(-1, index)
        change = change.flatten(-dims)
        multiplier = torch.where(apart == 0, otherwise, change / apart.masked_fill(apart == 0, 1))
        surrogate = surrogate + (here * multiplier).view_as(y)
    return _valued(surrogate, y), y_ref


def _softmax(z: Pair, dim: int) -> Pair:
    """exp(z - log sum exp z): the logarithm of the sum takes from each z what the slopes of exp and log give."""
    x, ref = z[0].detach(), z[1]
    total, total_ref = (t.logsumexp(dim, keepdim=True) for t in (x, ref))
    most = torch.maximum(total, total_ref)  # taken from all, it cancels, and nothing overflows
    share = _slope(torch.exp, x - most, ref - most) / _slope(torch.exp, total - most, total_ref - most)
    passed_on = _valued((z[0] * share).sum(dim, keepdim=True), total)
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
class _Plan:
    """What a call that is not linear needs: the tensors that can differ from the baseline, and the rule, if any."""

    operands: Sequence[Tensor]
    rule: Callable[..., Pair] | None = None


def _values(call: Call) -> list[Tensor]:
    given = (*call.args, *call.kwargs.values())
    return [value for value in given if isinstance(value, Tensor) and value.is_floating_point()]


def _curve(call: Call) -> _Plan:
    tensors = _values(call)
    if (len(tensors) > 1 and call.name != "prelu") or not isinstance(call.args[0], Tensor):
        return _Plan(tensors)
    return _Plan(call.args[:1], lambda z: _unary(call.run, z))


def _multiply(call: Call) -> _Plan | None:
    tensors = _values(call)
    return _Plan(tensors, lambda a, b: _product(call.function, a, b)) if len(tensors) == 2 else None


def _einsum(call: Call) -> _Plan | None:
    operands = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
    if len(operands) == 2:
        return _Plan(operands, lambda a, b: _product(lambda x, y: call.function(call.args[0], x, y), a, b))
    return _Plan(operands) if len(operands) > 1 else None


def _quotient(call: Call) -> _Plan | None:
    if len(tensors := _values(call)) < 2:
        return _curve(call) if call.reflected else None
    plain = call.kwargs.get("rounding_mode") is None and not call.reflected
    return _Plan(tensors, (lambda a, b: _product(torch.mul, a, _unary(torch.reciprocal, b))) if plain else None)


def _pool(call: Call) -> _Plan:
    pool = getattr(F, call.name)
    rest = {key: value for key, value in call.kwargs.items() if key != "return_indices"}
    if call.kwargs.get("return_indices") or call.name.endswith("_with_indices"):
        return _Plan(call.args[:1])
    return _Plan(call.args[:1], lambda z: _max_pool(lambda t: pool(t, *call.args[1:6], **rest, return_indices=True), z))


def _attend(call: Call) -> _Plan:
    dim: Any = call.arguments.get("dim")
    plain = dim is not None and call.kwargs.get("dtype") is None
    return _Plan(call.args[:1], (lambda z: _softmax(z, dim)) if plain else None)


def _normalize(call: Call) -> _Plan:
    given = {"weight": None, "bias": None, "eps": 1e-5} | call.arguments
    names = ("normalized_shape", "weight", "bias", "eps")
    return _Plan(call.args[:1], lambda z: _layer_norm(z, *(given[name] for name in names)))


def _without(call: Call) -> _Plan:
    return _Plan(_values(call))


# What is not here is linear, or a question about a tensor; a plan is None where a call turns out to be linear.
_RULES: Mapping[str | Kind, Callable[[Call], _Plan | None]] = {
    **dict.fromkeys((Kind.RECTIFIER, Kind.CLIP, Kind.ACTIVATION, Kind.CURVE, Kind.GATE), _curve),
    **dict.fromkeys((Kind.NORM, Kind.EXTREME, Kind.MIXTURE, Kind.ATTENTION), _without),
    Kind.PRODUCT: _multiply,
    Kind.MATMUL: _multiply,
    "einsum": _einsum,
    Kind.QUOTIENT: _quotient,
    Kind.MAX_POOL: _pool,
    Kind.SOFTMAX: _attend,
    "layer_norm": _normalize,
}


class Rules(Calls):
    """While it is entered, first with a baseline and then with the image, gradients become DeepLIFT's multipliers.

    The two passes must make the same calls.

    Attributes:
        strict: refuse operations that have no rule; else their gradient stands.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.strict = True
        self.next: int | None = None
        self._seen: list[tuple[str, tuple[Tensor, ...]]] = []

    def compare(self) -> None:
        """The baseline has passed: what comes now is the image."""
        self.next = 0

    def handle(self, call: Call) -> Any:
        """The value of a call, whose gradient is the multiplier where there is a rule."""
        rule = call.rule(_RULES)
        plan = None if rule is None else rule(call)
        if plan is None:
            return call.run()
        if self.next is None:
            self._seen.append((call.name, tuple(operand.detach().clone() for operand in plan.operands)))
            return call.run()
        name, references = self._seen[self.next] if self.next < len(self._seen) else ("the end", ())
        self.next += 1
        if name != call.name or [t.shape for t in references] != [t.shape for t in plan.operands]:
            raise Refusal(
                f"{self.method}: the model calls {call.name} for the image where it has {name} for the baseline, so "
                "that the two cannot be compared; use integrated-gradients."
            )
        if not any(operand.requires_grad for operand in plan.operands):
            return call.run()
        if plan.rule is None:
            same = all(torch.equal(a, b) for a, b in zip(plan.operands, references, strict=True))
            if self.strict and not same:
                raise Refusal(
                    f"{self.method}: the model calls {call.name}, for which DeepLIFT has no rule; "
                    "use integrated-gradients."
                )
            return call.run()
        return call.finish(plan.rule(*zip(plan.operands, references, strict=True))[0])


class _Ruled(nn.Module):
    """A model under the rules."""

    def __init__(self, model: nn.Module, rules: Rules) -> None:
        super().__init__()
        self.model = model
        self.rules = rules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Fused attention is made of the products and the softmax that there are rules for.
        with self.rules, AttentionTaps({"": self.model}, lambda module, kind, tensor: tensor):
            return self.model(*args, **kwargs)


def _differences(trace: Trace, method: str, start: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What the pixels (B, C, H, W) of some images add to the score of their baselines, and that score (B,)."""
    rules, images = Rules(method), trace.x.index_select(0, own)
    model = _Ruled(trace.model, rules)

    def score(logits: Tensor, target: Tensor) -> Tensor:
        rules.strict = False
        with rules:
            return trace.score_fn(logits, target)

    before = trace.again(start, rows=own, model=model, grad=False)
    score_before = apply_score(score, before.logits, before.target)
    rules.strict = True
    rules.compare()
    after = trace.again(images, rows=own, model=model, layers=(INPUT,), score=score)
    multipliers = after.gradient(INPUT)
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
    """

    passes: ClassVar[str] = "2 forward, 1 backward"
    baseline: BaselineName = "black"

    def draws(self) -> int:
        """Number of baselines."""
        return 1

    def _explained(self, trace: Trace) -> tuple[Tensor, Tensor]:
        """Attributions (N, C, H, W), and the mean score (N,) of the baselines."""
        refuse_scripts(trace.model, self.name, "integrated-gradients")
        draw, count, scores = drawn_baselines(trace, self.name, self.baseline), self.draws(), []

        def run(start: Tensor, own: Tensor) -> Tensor:
            attributions, score = _differences(trace, self.name, start, own)
            scores.append(score)
            return attributions

        again, total = Halving(run), torch.zeros_like(trace.x)
        for images, samples in tiles(len(trace.x), count, self.chunk):
            own = owners(images, samples, trace.x.device)
            total[images] += again(draw(own), own).unflatten(0, (-1, samples.stop - samples.start)).sum(1)
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
    """

    passes: ClassVar[str] = "20 forward, 10 backward"
    baseline: BaselineName = "noise"
    samples: Annotated[int, Range(1, 10_000)] = 10

    def draws(self) -> int:
        return self.samples
