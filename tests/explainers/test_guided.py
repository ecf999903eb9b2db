"""Guided backpropagation: every spelling of a ReLU, every reason to refuse, and the model as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError
from xattn.explainers.guided import GuidedBackprop, guided_share
from xattn.explaining import explain
from xattn.functional.gradient import guided_relu
from xattn.spec import ModelSpec
from xattn.trace import record

SPEC = ModelSpec(feature_layer="conv1", classifier="fc")


class Net(nn.Module):
    """Two activations between two convolutions and a linear layer."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv2(self.act(self.conv1(x)))).mean((2, 3)))


def build(act: Callable[[Tensor], Tensor], **kwargs: Any) -> nn.Module:
    return tiny.seeded(lambda: Net(act), **kwargs)


def maps(model: nn.Module, x: Tensor, target: int = 1) -> Tensor:
    return explain(model, x, GuidedBackprop("sum"), target, spec=SPEC).maps


def returned(x: Tensor) -> Tensor:
    """In place, and what the call gives is thrown away."""
    F.relu_(x)
    return x


def sliced(x: Tensor) -> Tensor:
    """In place on a view."""
    x = x.clone()
    torch.relu_(x[:, :2])
    return torch.cat([x[:, :2], F.relu(x[:, 2:])], 1)


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place, by position": lambda x: F.relu(x, True),
    "F.relu by keyword": lambda x: F.relu(input=x),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "thrown away": returned,
    "of a view": sliced,
    "clamp": lambda x: x.clamp(min=0),
    "clamp by position": lambda x: torch.clamp(x, 0.0),
    "clamp_": lambda x: x.clamp_(0),
    "clip": lambda x: x.clip(min=0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clamp_min_": lambda x: x.clamp_min_(0.0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, 0, 1e9),
}


@pytest.mark.parametrize("name", RELUS)
def test_every_spelling_of_relu_is_guided(name: str) -> None:
    """Against a network that calls the guided function itself."""
    x = tiny.images(2, 8, 8)
    leaf = x.clone().requires_grad_()
    build(guided_relu)(leaf)[:, 1].sum().backward()
    model = build(RELUS[name])
    torch.testing.assert_close(maps(model, x), leaf.grad.sum(1, keepdim=True))
    plain = explain(model, x, "saliency:reduce=sum", 1, spec=SPEC).maps
    assert not torch.allclose(maps(model, x), plain, atol=1e-3)
    guided, total = guided_share(model, x)
    assert guided == total
    assert guided == (4 if name == "of a view" else 2)


@pytest.mark.parametrize("act", [nn.ReLU6(), F.relu6, lambda x: x.clamp(0, 6), nn.Hardtanh(0, 6, inplace=True)])
def test_relu6_is_guided_in_its_linear_range(act: Callable[[Tensor], Tensor]) -> None:
    x = 20 * tiny.images(2, 8, 8)
    leaf = x.clone().requires_grad_()
    build(lambda y: guided_relu(y, 6))(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(maps(build(act), x), leaf.grad.sum(1, keepdim=True))
    unbounded = x.clone().requires_grad_()
    build(guided_relu)(unbounded)[:, 1].sum().backward()
    assert not torch.allclose(leaf.grad, unbounded.grad)


def test_logits_do_not_change() -> None:
    """The guided function has the value of the ReLU that it stands for."""
    for act in (F.relu, F.relu6):
        model, x = build(act), 20 * tiny.images(2, 8, 8)
        trace = record(model, x, spec=SPEC)
        GuidedBackprop().attribute(trace)
        torch.testing.assert_close(trace.logits, model(x).detach(), rtol=0, atol=0)


class CustomSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class CustomReLU(CustomSwish):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.relu(x)


MIXTURES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "GELU": (F.gelu, "2 gelu"),
    "SiLU": (nn.SiLU(), "2 silu"),
    "SiLU in place": (nn.SiLU(inplace=True), "2 silu"),
    "swish by hand": (lambda x: x * x.sigmoid(), "2 product of x and a gate"),
    "swish by hand, in place": (lambda x: x.mul_(x.sigmoid()), "2 product of x and a gate"),
    "swish by hand, times": (lambda x: torch.mul(torch.sigmoid(x), x), "2 product of x and a gate"),
    "swish in a function": (CustomSwish.apply, "2 product of x and a gate"),
    "hard swish": (F.hardswish, "2 hardswish"),
    "leaky": (nn.LeakyReLU(0.1, inplace=True), "2 leaky_relu"),
    "PReLU": (lambda x: F.prelu(x, x.new_tensor([0.2])), "2 prelu"),
    "ELU": (F.elu, "2 elu"),
    "SELU": (F.selu_, "2 selu"),
    "mish": (F.mish, "2 mish"),
    "softplus": (F.softplus, "2 softplus"),
    "tanh": (torch.tanh, "2 tanh"),
    "hardtanh": (F.hardtanh, "2 hardtanh"),
    "threshold elsewhere": (lambda x: F.threshold(x, 0.5, 0.5), "2 threshold"),
    "maxout": (lambda x: torch.maximum(x, x.flip(1)), "2 maximum"),
    "GELU by hand": (lambda x: x * (1 + torch.erf(x)), "2 erf"),
    "ReLU in a function": (CustomReLU.apply, "2 relu in a custom autograd function"),
    "both": (lambda x: F.gelu(F.relu(x)), "2 ReLUs and 2 gelu"),
    "none": (lambda x: x, "0 ReLUs that can be seen"),
    "by comparison": (lambda x: x * (x > 0), "0 ReLUs that can be seen"),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("method", ["guided-backprop", "guided-gradcam", "guided-gradcam++"])
def test_anything_else_is_refused_with_the_counts(name: str, method: str) -> None:
    act, reason = MIXTURES[name]
    with pytest.raises(NotApplicableError, match=reason) as caught:
        explain(build(act), tiny.images(1, 8, 8), method, spec=SPEC)
    assert "saliency" in str(caught.value)
    assert str(caught.value).startswith(f"{method}: ")


def test_guided_share_counts() -> None:
    x = tiny.images(1, 8, 8)
    assert guided_share(build(F.relu), x) == (2, 2)
    assert guided_share(build(F.gelu), x) == (0, 2)
    assert guided_share(build(lambda y: F.gelu(F.relu(y))), x) == (2, 4)
    assert guided_share(build(lambda y: y), x) == (0, 0)


def test_gates_are_allowed() -> None:
    """Squeeze and excitation: the sigmoid scales another tensor than the one it was computed from."""

    def excite(x: Tensor) -> Tensor:
        x = F.relu(x)
        return x * F.hardsigmoid(x.mean((2, 3), keepdim=True)) * torch.sigmoid(x.mean(1, keepdim=True))

    model, x = build(excite), tiny.images(1, 8, 8)
    assert guided_share(model, x) == (2, 2)
    leaf = x.clone().requires_grad_()
    build(lambda y: excite(guided_relu(y)))(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(maps(model, x), leaf.grad.sum(1, keepdim=True))


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), torch.zeros(1, 4, 8, 8))
    model = build(F.relu)
    model.conv2 = nn.Sequential(model.conv2, scripted)
    for call in (lambda: maps(model, tiny.images(1, 8, 8)), lambda: guided_share(model, tiny.images(1, 8, 8))):
        with pytest.raises(NotApplicableError, match=r"layer 'conv2\.1' of Net is TorchScript"):
            call()


def test_compiled_submodule_is_seen_through() -> None:
    x = tiny.images(1, 8, 8)
    model, plain = build(F.relu), build(F.relu)
    model.conv2 = torch.compile(nn.Sequential(model.conv2, nn.ReLU()), backend="eager")
    with torch.no_grad():
        model(x)
    torch.testing.assert_close(maps(model, x), maps(plain, x))


def test_relu_of_the_score_is_not_one_of_the_model() -> None:
    model, x = build(F.relu), tiny.images(2, 8, 8)
    logits = model(x).detach()

    def hinge(z: Tensor, t: Tensor) -> Tensor:
        return -F.relu(100 - z[:, 1])  # its gradient is the logit's; guided, it would be zero

    assert bool((logits[:, 1] < 100).all())
    found = explain(model, x, GuidedBackprop("sum"), 1, spec=SPEC, score=hinge)
    torch.testing.assert_close(found.maps, maps(model, x))


def test_dead_end_branch_is_not_counted() -> None:
    """An activation of something that does not come from the image has no gradient to guide."""
    constant = torch.linspace(-1, 1, 4).view(1, 4, 1, 1)
    model = build(lambda x: F.relu(x) + F.relu(constant) + constant.clone().relu_())
    assert guided_share(model, tiny.images(1, 8, 8)) == (2, 2)


def test_counts_on_known_networks() -> None:
    torchvision = pytest.importorskip("torchvision")
    x = tiny.images(1, 32, 32)
    counts = {"resnet18": (17, 17), "squeezenet1_1": (26, 26), "mobilenet_v2": (35, 35), "mobilenet_v3_small": (14, 33)}
    for name, expected in counts.items():
        assert guided_share(torchvision.models.get_model(name, weights=None), x) == expected


@pytest.mark.parametrize("make", [tiny.tiny_bcnn, tiny.tiny_brnpa])
def test_attention_heads_are_no_activations(make: Callable[[], nn.Module]) -> None:
    model, x = make(), tiny.images()
    guided, total = guided_share(model, x)
    assert guided == total > 0
    assert set(explain(model, x, "guided-backprop").status) == {"ok"}
