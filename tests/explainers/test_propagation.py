"""Propagation: sums that are kept, every spelling of a layer, constants, scores, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from tests.explainers.propagating import SPEC, build, run, total, without_biases
from xattn.errors import NotApplicableError, UnknownNameError
from xattn.explainers.guided import deconvolved_relu
from xattn.explainers.propagation import LRP, ExcitationBackprop
from xattn.models import create_model
from xattn.trace import record

TINY = [
    "tiny_cnn",
    "tiny_functional",
    "tiny_gelu",
    "tiny_pooled_scores",
    "tiny_relu_then_pool",
    "tiny_bcnn",
    "tiny_brnpa",
]
RULES = ["epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box"]


# --- conservation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("rule", RULES)
def test_relevance_sums_to_the_logit(name: str, rule: str) -> None:
    model, x = without_biases(getattr(tiny, name)()).double(), tiny.images(3).double()
    found = run(model, x, LRP(rule), spec=model.spec)
    torch.testing.assert_close(total(found), model(x)[:, 1].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("rule", [*RULES, "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat"])
def test_what_biases_absorb_is_known(name: str, rule: str) -> None:
    """The formulas of the rules, summed over the layers, say what the map lacks."""
    model, x = getattr(tiny, name)().double(), tiny.images(3).double()
    trace = record(model, x, 1, spec=model.spec)
    method = LRP(rule)
    maps = method.attribute(trace)
    absorbed, handed, _ = method.books(trace)
    torch.testing.assert_close(handed, trace.logits[:, 1])
    assert absorbed.abs().max() > 1e-3
    if name == "tiny_pooled_scores" and "beta" in rule:  # units without negative products: 2 - 0 is not 1
        assert method.conservation(trace, maps).max() > method.tolerance
        return
    torch.testing.assert_close(maps.sum((1, 2, 3)) + absorbed, handed, rtol=1e-5, atol=1e-7)  # the stabilizer
    assert method.conservation(trace, maps).max() < 1e-5
    grown = maps + maps.abs().mean((2, 3), keepdim=True) / 3
    assert method.conservation(trace, grown).min() > 0.1


@pytest.mark.parametrize("name", TINY)
def test_deep_taylor_sums_to_the_logit_in_spite_of_biases(name: str) -> None:
    model, x = getattr(tiny, name)().double(), tiny.images(3).double()
    torch.testing.assert_close(
        total(run(model, x, "deep-taylor", spec=model.spec)), model(x)[:, 1].detach(), rtol=1e-2, atol=1e-5
    )


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("layer", [None, ""])
def test_excitation_is_a_probability(name: str, layer: str | None) -> None:
    model, x = getattr(tiny, name)(), tiny.images(3)
    found = run(model, x, ExcitationBackprop(layer), spec=model.spec)
    torch.testing.assert_close(total(found), torch.ones(3).double(), rtol=1e-2, atol=0)
    if name != "tiny_gelu":
        assert found.maps.min() >= 0


@pytest.mark.parametrize("name", ["tiny-cnn", "tiny-bcnn", "tiny-brnpa"])
def test_embedded_networks(name: str) -> None:
    """Trained weights: the biases absorb most of what z+ hands down, deep Taylor none."""
    model = create_model(name)
    x = F.avg_pool2d(tiny.images(2, 64, 64), 5, 1, 2)
    logits = model(x).detach()[:, 3].double()
    for method in ("lrp", "lrp:composite=epsilon-gamma-box", "deep-taylor", "excitation-backprop"):
        assert run(model, x, method, 3, model.spec).status == ("ok", "ok")
    torch.testing.assert_close(total(run(model, x, "deep-taylor", 3, model.spec)), logits, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squeezenet1_0", {}),
        ("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2), "num_init_features": 16}),
        ("resnet18", {"layers": [1, 1, 1, 1]}),
        ("resnet50", {"layers": [1, 1, 1, 1]}),
        ("shufflenet_v2_x0_5", {}),
        ("mobilenet_v2", {}),
        ("regnet_y_400mf", {}),
    ],
)
def test_families(name: str, options: dict[str, Any]) -> None:
    """Random weights without biases: concatenations, residual sums, squeeze-and-excitation, shuffled channels."""
    models = pytest.importorskip("torchvision.models")
    build: Callable[[], nn.Module] = lambda: models.get_model(name, weights=None, num_classes=5)  # noqa: E731
    if name == "densenet121":
        build = lambda: models.DenseNet(num_classes=5, **options)  # noqa: E731
    elif name.startswith("resnet"):
        block = models.resnet.Bottleneck if name == "resnet50" else models.resnet.BasicBlock
        build = lambda: models.ResNet(block, num_classes=5, **options)  # noqa: E731
    model, x = without_biases(tiny.seeded(build)), tiny.images(1, 64, 64)
    logits = model(x).detach().double()
    target = int(logits.argmax())
    found = run(model, x, "lrp", target)
    assert found.status == ("ok",)
    torch.testing.assert_close(total(found), logits[:, target], rtol=1e-3, atol=0)
    found = run(model, x, "deep-taylor", target)
    if name.startswith("shufflenet"):  # z+ on units below zero that no activation cuts; see `Tape.bare`
        assert found.status == run(model, x, "lrp:composite=epsilon-alpha2-beta1", target).status == ("non-conserving",)
    else:
        torch.testing.assert_close(total(found), logits[:, target], rtol=5e-3, atol=0)


class Fading(nn.Module):
    """A unit that is active by its bias alone: no input speaks for it, so z+ has nowhere to go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv1.weight.copy_(-self.conv1.weight.abs())
            self.conv1.bias.fill_(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv1(F.relu(x))).mean((2, 3)))


def test_lost_relevance_is_a_status() -> None:
    model, x = tiny.seeded(lambda: nn.Identity()), tiny.images(2)
    model = Fading().eval()
    found = run(model, x, ExcitationBackprop(layer=""))
    assert set(found.status) <= {"non-conserving", "all-zero"}
    assert run(model, x, LRP("epsilon-plus")).status != ("ok", "ok")


def in_place(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def thrown_away(a: Tensor, b: Tensor) -> Tensor:
    a.add_(b)
    return a


def from_zero(a: Tensor, b: Tensor) -> Tensor:
    out = 0
    out = out + a
    out += b
    return out


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda a, b: a + b,
    "+=": in_place,
    "add_": thrown_away,
    "keyword": lambda a, b: torch.add(input=a, other=b),
    "sum()": lambda a, b: sum((a, b)),
    "from zero": from_zero,
    "half of the double": lambda a, b: torch.add(a, 2 * b, alpha=0.5),
    "a - (-b)": lambda a, b: a - (-b),
    "b.__rsub__": lambda a, b: (-a).__rsub__(b),
    "stack, sum": lambda a, b: torch.stack((a, b)).sum(0),
    "both in one map": lambda a, b: F.pad(a, (0, 0, 0, 0)) + b.clone().view_as(a),
}
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "in place by position": lambda x: F.relu(x, True),
    "in place, result thrown away": lambda x: (torch.relu_(x), x)[1],
    "keyword": lambda x: F.relu(input=x),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0),
    "threshold": nn.Threshold(0, 0, inplace=True),
    "hardtanh": nn.Hardtanh(0, 1e9, inplace=True),
    "times one": lambda x: F.relu(x).mul_(1.0) / 1,
}
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, x.shape[-1])[..., 0, 0],
    "sum": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "twice": lambda x: x.mean(3).mean(-1),
    "product": lambda x: torch.bmm(x.flatten(2), x.new_full((len(x), x.shape[2] * x.shape[3], 1), 1 / 64))[..., 0],
    "einsum": lambda x: torch.einsum("nchw,nhw->nc", x, x.new_full((len(x), 8, 8), 1 / 64)),
    "changed in place afterwards": lambda x: (x.mean((2, 3)), x.mul_(3))[0],
}


@pytest.mark.parametrize("method", ["lrp", "deep-taylor"])
class TestSpellings:
    def expect(self, model: nn.Module, method: str, weights: str = "+") -> None:
        x = tiny.images(2, 8, 8)
        torch.testing.assert_close(model(x.clone()), build()(x), rtol=1e-4, atol=1e-5)
        expected = run(build(), x, method)
        torch.testing.assert_close(run(model, x, method).maps, expected.maps, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("name", [n for n in JOINS if n != "stack, sum"])
    def test_sums(self, method: str, name: str) -> None:
        self.expect(build(join=JOINS[name]), method)

    @pytest.mark.parametrize("name", ACTS)
    def test_relus(self, method: str, name: str) -> None:
        self.expect(build(act=ACTS[name]), method)

    @pytest.mark.parametrize("name", POOLS)
    def test_means(self, method: str, name: str) -> None:
        self.expect(build(pool=POOLS[name]), method)


def test_a_sum_over_a_new_first_dimension_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="first dimension"):
        run(build(join=JOINS["stack, sum"]), tiny.images(3, 8, 8), "lrp")


def test_batch_norm_is_folded_wherever_it_is_called() -> None:
    """The same network with the batch norm in the weights."""
    model, folded, x = build(), build(), tiny.images(2, 8, 8)
    scale = folded.bn.weight / (folded.bn.running_var + folded.bn.eps).sqrt()
    with torch.no_grad():
        folded.conv2.weight.mul_(scale[:, None, None, None])
        folded.conv2.bias.copy_((folded.conv2.bias - folded.bn.running_mean) * scale + folded.bn.bias)
    folded.bn = nn.Identity()
    for method in ("lrp", "lrp:composite=epsilon-alpha2-beta1", "deep-taylor"):
        expected = run(folded, x, method).maps
        torch.testing.assert_close(run(model, x, method).maps, expected, rtol=1e-3, atol=1e-6)


def test_a_batch_norm_that_stands_alone_is_a_layer_with_a_bias() -> None:
    """By hand: R_x = s x / (s x + t) R_y, so that an input of zero gets nothing however large the offset is."""
    model, x = build(), tiny.images(2, 8, 8).abs()
    x[:, :, :4] = 0
    model.conv1 = nn.Conv2d(3, 4, 1, bias=False)
    with torch.no_grad():
        model.conv1.weight.copy_(torch.eye(4, 3)[..., None, None])  # z+ hands each channel what it gets
    model.forward = lambda x: model.fc(model.bn(F.relu(model.conv1(x))).mean((2, 3)))
    scale = model.bn.weight / (model.bn.running_var + model.bn.eps).sqrt()
    y = model.bn(F.relu(model.conv1(x)))
    mean = y.mean((2, 3))
    logit = model(x)[:, 1]
    at_mean = mean * model.fc.weight[1]  # epsilon rule: the seed is the logit, and so is the denominator
    at_y = y / y.sum((2, 3), keepdim=True) * at_mean[..., None, None]
    expected = (F.relu(model.conv1(x)) * scale[:, None, None] / y * at_y).sum(1, keepdim=True)
    found = run(model, x, LRP("epsilon-plus"))
    torch.testing.assert_close(found.maps, expected.detach(), rtol=1e-3, atol=1e-5)
    assert (found.maps[:, :, :4] == 0).all()
    assert logit.abs().min() > 0.05
    assert found.status == ("ok", "ok")


def test_an_output_that_is_read_before_its_batch_norm_too() -> None:
    model, x = build(), tiny.images(2, 8, 8)

    def both(x: Tensor) -> Tensor:
        y = model.conv1(x)
        return model.fc((F.relu(y) + F.relu(model.bn(y))).mean((2, 3)))

    model.forward = both
    trace = record(model, x, 1, spec=SPEC)
    assert LRP().conservation(trace, LRP().attribute(trace)).max() < 1e-5


@pytest.mark.parametrize("act", [F.gelu, F.silu, F.hardswish, F.elu, F.leaky_relu, F.relu6, torch.tanh])
def test_activations_that_keep_zero_pass_relevance(act: Callable[[Tensor], Tensor]) -> None:
    model, x = build(act=act), tiny.images(2, 8, 8)
    trace = record(model, x, 1, spec=SPEC)
    found = LRP().attribute(trace)
    assert LRP().conservation(trace, found).max() < 1e-5


def test_pixels_may_be_shifted_and_scaled_first() -> None:
    """A change of units before the first layer, as in models that normalize by themselves."""
    plain, x = build(), tiny.images(2, 8, 8)
    inside = build()
    inside.forward = lambda x: plain((x - 0.5) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
    shifted = (x - 0.5) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    rule = "lrp:composite=epsilon-plus-flat"
    torch.testing.assert_close(run(inside, x, rule).maps, run(plain, shifted, rule).maps)


# --- constants ---------------------------------------------------------------------------------------------------


def test_gates_take_nothing() -> None:
    """Squeeze-and-excitation: all relevance goes to what is weighted, as if the weights had been given."""
    gate = torch.rand(2, 4, 1, 1)
    fixed = build(act=lambda x: F.relu(x) * gate)
    computed = build()
    squeeze = tiny.seeded(lambda: nn.Linear(4, 4))
    kept: list[Tensor] = []

    def act(x: Tensor) -> Tensor:
        x = F.relu(x)
        kept.append(torch.sigmoid(squeeze(x.mean((2, 3))))[..., None, None].detach())
        return x * torch.sigmoid(squeeze(x.mean((2, 3))))[..., None, None]

    x = tiny.images(2, 8, 8)
    computed.act = act
    found = run(computed, x, "lrp").maps
    given = iter(kept)
    fixed.act = lambda x: F.relu(x) * next(given)
    kept.extend(kept[:2])  # explain() runs a model twice
    torch.testing.assert_close(run(fixed, x, "lrp").maps, found)


def test_swish_by_hand() -> None:
    x = tiny.images(2, 8, 8)
    expected = run(build(act=F.silu), x, "lrp").maps
    torch.testing.assert_close(run(build(act=lambda x: x * x.sigmoid()), x, "lrp").maps, expected, rtol=1e-4, atol=1e-6)


class Given(nn.Module):
    """Attention maps that do not depend on the image."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, features: Tensor) -> Tensor:
        return self.maps


@pytest.mark.parametrize("name", ["tiny_bcnn", "tiny_brnpa"])
@pytest.mark.parametrize("method", ["lrp", "deep-taylor", "excitation-backprop"])
def test_attention_maps_are_constants(name: str, method: str) -> None:
    model, x = getattr(tiny, name)(), tiny.images(2)
    expected = run(model, x, method, spec=model.spec)
    maps = record(model, x, spec=model.spec, layers=("head.attention",)).activation("head.attention")
    model.head.attention = Given(maps)
    torch.testing.assert_close(run(model, x, method, spec=model.spec).maps, expected.maps)


# --- scores ------------------------------------------------------------------------------------------------------


def test_other_scores_hand_out_their_gradient_times_the_logits() -> None:
    model, x = tiny.tiny_cnn().double(), tiny.images(3).double()
    z = model(x).detach()
    margin = run(model, x, "deep-taylor", spec=model.spec, score="margin")
    torch.testing.assert_close(total(margin), z[:, 1] - z[:, [0, 2, 3, 4]].amax(1), rtol=1e-4, atol=1e-6)
    difference = run(model, x, "deep-taylor", spec=model.spec, score=lambda z, t: z[:, 0] - 2 * z[:, 3])
    torch.testing.assert_close(total(difference), z[:, 0] - 2 * z[:, 3], rtol=1e-4, atol=1e-6)
    p = z.softmax(1)
    expected = p[:, 1] * (z[:, 1] - (p * z).sum(1))
    torch.testing.assert_close(
        total(run(model, x, "deep-taylor", spec=model.spec, score="prob")), expected, rtol=1e-4, atol=1e-6
    )
    excited = run(model, x, "excitation-backprop", spec=model.spec, score="sigmoid")
    torch.testing.assert_close(total(excited), z[:, 1].sigmoid() * (1 - z[:, 1].sigmoid()), rtol=1e-4, atol=1e-6)


def test_a_logit_below_zero_gives_relevance_below_zero() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(4)
    z = model(x).detach()
    lowest = z.argmin(1)
    assert (z.amin(1) < 0).all()
    found = run(model, x, "deep-taylor", lowest, model.spec)
    assert (total(found) < 0).all()
    assert (found.maps <= 1e-4).all()


# --- excitation backprop -----------------------------------------------------------------------------------------


def test_excitation_of_the_last_layer_is_the_positive_part_of_cam() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    features = record(model, x, spec=model.spec, layers=("trunk",)).activation("trunk")
    cam = (features * model.fc.weight[1].detach().clamp(min=0)[:, None, None]).sum(1, keepdim=True)
    expected = cam / cam.sum((2, 3), keepdim=True)
    found = run(model, x, "excitation-backprop", spec=model.spec).maps
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_contrast_takes_the_opposite_class_off() -> None:
    model, opposite, x = tiny.tiny_cnn(), tiny.tiny_cnn(), tiny.images(2)
    with torch.no_grad():
        opposite.fc.weight.neg_()
    plain, other = (run(m, x, "excitation-backprop:layer=conv3", spec=model.spec).maps for m in (model, opposite))
    found = run(model, x, "excitation-backprop:layer=conv3,contrastive=true", spec=model.spec)
    torch.testing.assert_close(found.maps, (plain - other).clamp(min=0), rtol=1e-4, atol=1e-6)
    assert found.maps.max() > 0


@pytest.mark.parametrize("join", [torch.add, lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1), in_place, from_zero])
def test_what_goes_around_the_layer_is_not_lost(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The shortcut takes its share; what is left is the chance that the winner passes the layer."""
    model, x = build(join=join), tiny.images(2, 8, 8)
    with torch.no_grad():
        model.fc.weight[1].abs_()
    trace = record(model, x, 1, spec=SPEC)
    method = ExcitationBackprop("conv2")
    maps = method.attribute(trace)
    around, handed, _ = method.books(trace)
    assert (around > 0.05).all()
    assert (around < 0.95).all()
    torch.testing.assert_close(maps.double().sum((1, 2, 3)) + around, handed, rtol=1e-4, atol=0)
    whole = ExcitationBackprop("").attribute(trace)
    torch.testing.assert_close(whole.sum((1, 2, 3)), torch.ones(2), rtol=1e-2, atol=0)


def test_a_layer_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="trunk"):
        run(tiny.tiny_cnn(), tiny.images(1), "excitation-backprop:layer=trunkk", spec=tiny.tiny_cnn().spec)


# --- deconvolution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTS)
def test_every_relu_is_deconvolved(name: str) -> None:
    x = tiny.images(2, 8, 8)
    leaf = x.clone().requires_grad_()
    build(act=deconvolved_relu)(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(
        run(build(act=ACTS[name]), x, "deconvolution:reduce=sum").maps, leaf.grad.sum(1, keepdim=True)
    )
    guided = run(build(act=ACTS[name]), x, "guided-backprop:reduce=sum").maps
    assert not torch.allclose(guided, leaf.grad.sum(1, keepdim=True), atol=1e-3)


def test_deconvolution_refuses_other_activations() -> None:
    with pytest.raises(NotApplicableError, match="deconvolution: its rule is defined where all activations are ReLUs"):
        run(build(act=F.gelu), tiny.images(1, 8, 8), "deconvolution")
