"""The rules of LRP on one layer: against loops over its connections, and against zennit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn.calls import Kind
from xattn.explainers import rules
from xattn.explainers.rules import Layer, Rule

TINY = 1e-6
LOW, HIGH = torch.full((1, 6), -2.5, dtype=torch.float64), torch.full((1, 6), 3.0, dtype=torch.float64)


def steady(z: float, epsilon: float = TINY) -> float:
    return z - epsilon if z < 0 else z + epsilon


def share(products: list[float], bias: float, epsilon: float = TINY) -> list[float]:
    return [q / steady(sum(products) + bias, epsilon) for q in products]


def up(values: list[float]) -> list[float]:
    return [max(v, 0.0) for v in values]


def down(values: list[float]) -> list[float]:
    return [min(v, 0.0) for v in values]


def gamma(q: list[float], b: float, by: float = 0.4) -> list[float]:
    z = sum(q) + b
    part = up if z > 0 else down
    return share([v + by * p for v, p in zip(q, part(q), strict=True)], b + by * part([b])[0])


def alpha_beta(q: list[float], b: float) -> list[float]:
    more, less = share(up(q), max(b, 0.0)), share(down(q), min(b, 0.0))
    return [2 * m - n for m, n in zip(more, less, strict=True)]


def box(x: list[float], w: list[float]) -> list[float]:
    low, high = float(LOW[0, 0]), float(HIGH[0, 0])
    return share([a * v - low * max(v, 0.0) - high * min(v, 0.0) for a, v in zip(x, w, strict=True)], 0)


# By the inputs x_j, the weights w_jk and the bias b_k of an output: the shares of its inputs.
ORACLES: dict[str, tuple[Rule, Callable[[list[float], list[float], float], list[float]]]] = {
    "epsilon": (rules.epsilon(0.3), lambda x, w, b: share([a * v for a, v in zip(x, w, strict=True)], b, 0.3)),
    "norm": (rules.NORM, lambda x, w, b: share([a * v for a, v in zip(x, w, strict=True)], b)),
    "plus": (rules.plus(), lambda x, w, b: share(up([a * v for a, v in zip(x, w, strict=True)]), max(b, 0.0))),
    "plus, no bias": (
        rules.plus(biased=False),
        lambda x, w, b: share(up([a * v for a, v in zip(x, w, strict=True)]), 0),
    ),
    "alpha-beta": (rules.alpha_beta(2, 1), lambda x, w, b: alpha_beta([a * v for a, v in zip(x, w, strict=True)], b)),
    "gamma": (rules.gamma(0.4), lambda x, w, b: gamma([a * v for a, v in zip(x, w, strict=True)], b)),
    "box": (rules.box(LOW, HIGH), lambda x, w, b: box(x, w)),
    "flat": (rules.FLAT, lambda x, w, b: share([1.0] * len(x), 0)),
    "square": (rules.SQUARE, lambda x, w, b: share([v * v for v in w], 0)),
}


def dense(kind: str = "mixed", bias: bool = True) -> tuple[Layer, Tensor, Tensor]:
    """A linear layer of 6 inputs and 5 outputs, two images and the relevance of their outputs."""
    generator = torch.Generator().manual_seed(3)
    x, above = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (6, 5))
    weight = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    offset = torch.randn(5, generator=generator, dtype=torch.float64) if bias else None
    x = {"mixed": x, "positive": x.abs(), "one": x.abs()}[kind]
    if kind == "one":
        x[1] = -x[1]
    return Layer(Kind.LINEAR, F.linear, 2, x.shape, weight, offset), x, above


@pytest.mark.parametrize("kind", ["mixed", "positive", "one"])
@pytest.mark.parametrize("name", ORACLES)
def test_rule_equals_a_loop_over_the_connections(name: str, kind: str) -> None:
    layer, x, above = dense(kind)
    layer.rule, oracle = ORACLES[name]
    expected, kept = torch.zeros_like(x), torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        for k in range(5):
            shares = oracle(x[i].tolist(), layer.weight[k].tolist(), float(layer.bias[k]))
            expected[i] += above[i, k] * torch.tensor(shares, dtype=torch.float64)
            kept[i] += above[i, k] * (1 - sum(shares))
    (found,) = layer.relevance(x, above)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.below, expected.abs().sum(1), rtol=1e-10, atol=0)
    # What the formula says that biases keep is what is missing below, but for the stabilizer and for outputs without
    # a product of the sign that the rule asks for, whose relevance is lost.
    if (name, kind) in {("alpha-beta", "positive"), ("alpha-beta", "one"), ("plus, no bias", "one")}:
        assert (layer.absorbed - kept).abs().max() > 0.1
        return
    torch.testing.assert_close(layer.absorbed, kept, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ORACLES)
def test_images_do_not_mix(name: str) -> None:
    """Also where one image has inputs below zero and the other none, for which the rules take a shorter way."""
    layer, x, above = dense("one")
    layer.rule = ORACLES[name][0]
    (both,) = layer.relevance(x, above)
    for i in range(2):
        alone = Layer(Kind.LINEAR, F.linear, 1, x[i : i + 1].shape, layer.weight, layer.bias)
        alone.rule = layer.rule
        torch.testing.assert_close(alone.relevance(x[i : i + 1], above[i : i + 1])[0], both[i : i + 1])


def test_parts_of_a_sum_with_the_sign_of_the_whole() -> None:
    x = torch.tensor([[3.0, -1.0], [1.0, -3.0], [2.0, 2.0], [0.0, 0.0]]).double()
    layer = Layer(Kind.SUM, lambda x, _: x.sum(1), 4, x.shape)
    layer.rule = rules.SAME_SIGN
    (found,) = layer.relevance(x, torch.ones(4).double())
    torch.testing.assert_close(found, torch.tensor([[1, 0], [0, 1], [0.5, 0.5], [0, 0]]).double(), atol=1e-6, rtol=0)


def test_an_output_of_zero_hands_nothing_on_without_an_epsilon() -> None:
    layer, x, above = dense(bias=False)
    layer.rule = rules.epsilon(0)
    assert (layer.relevance(torch.zeros_like(x), above)[0] == 0).all()
    torch.testing.assert_close(layer.absorbed, above.sum(1))
    torch.testing.assert_close(layer.relevance(x, above)[0].sum(1), above.sum(1))


def test_opposite_weights() -> None:
    """Of some images, or of all in contrast."""
    layer, x, above = dense()
    negated = Layer(Kind.LINEAR, F.linear, 2, x.shape, -layer.weight, -layer.bias)
    layer.rule = negated.rule = rules.plus()
    (one,), (other,) = layer.relevance(x, above), negated.relevance(x, above)
    kept, kept_by_other = layer.absorbed, negated.absorbed
    layer.contrast = True
    torch.testing.assert_close(layer.relevance(x, above)[0], one - other)
    torch.testing.assert_close(layer.absorbed, kept - kept_by_other)
    layer.opposite = torch.tensor([False, True])
    sign = torch.tensor([1.0, -1.0]).double()
    torch.testing.assert_close(layer.relevance(x, above)[0], sign[:, None] * (one - other))
    layer.contrast = False
    torch.testing.assert_close(layer.relevance(x, above)[0], torch.stack([one[0], other[1]]))
    torch.testing.assert_close(layer.absorbed, torch.stack([kept[0], kept_by_other[1]]))


def test_the_first_layer_of_a_kind_has_a_rule_of_its_own() -> None:
    kinds = (Kind.POOL, Kind.LINEAR, Kind.CONV, Kind.SUM, Kind.CONV)
    layers = [Layer(kind, F.linear, 1, torch.Size([1])) for kind in kinds]
    composite = rules.composite(rules.plus(), rules.epsilon(1e-6))
    rules.assign(layers, composite, {Kind.CONV: rules.FLAT})
    assert [layer.rule for layer in layers] == [
        rules.NORM, composite[Kind.LINEAR], rules.FLAT, rules.NORM, composite[Kind.CONV],
    ]  # fmt: skip
    rules.assign(layers, composite)
    assert layers[2].rule is composite[Kind.CONV]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", [name for name in ORACLES if name != "norm"])
def test_zennit(name: str, signed: bool) -> None:
    """The same rule on a convolution, by hooks."""
    hooks = pytest.importorskip("zennit.rules")
    low, high = (torch.full((1, 3, 1, 1), v, dtype=torch.float64) for v in (-2.5, 3.0))
    ours, theirs = {
        "epsilon": (rules.epsilon(0.3), hooks.Epsilon(0.3)),
        "plus": (rules.plus(), hooks.ZPlus()),
        "plus, no bias": (rules.plus(biased=False), hooks.ZPlus(zero_params=["bias"])),
        "alpha-beta": (rules.alpha_beta(2, 1), hooks.AlphaBeta(2, 1)),
        "gamma": (rules.gamma(0.4), hooks.Gamma(0.4)),
        "box": (rules.box(low, high), hooks.ZBox(low, high)),
        "flat": (rules.FLAT, hooks.Flat()),
        "square": (rules.SQUARE, hooks.WSquare(zero_params=["bias"])),
    }[name]
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    x = torch.randn(2, 3, 7, 7).double()
    x = x if signed else x.abs()
    above = torch.randn(2, 4, 4, 4).double()
    layer = Layer(Kind.CONV, lambda x, w: F.conv2d(x, w, None, 2, 1), 2, x.shape, conv.weight, conv.bias[:, None, None])
    layer.rule = ours
    handle = theirs.register(conv)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(conv(leaf), leaf, above)
    handle.remove()
    torch.testing.assert_close(layer.relevance(x, above)[0], expected, rtol=1e-8, atol=1e-10)
