"""Networks that cut autograd's graph, or run parts of themselves twice, inside their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import xattn
from tests.tiny_models import images
from xattn.errors import NotApplicableError
from xattn.trace import INPUT, record

Context = Callable[[], AbstractContextManager[object]]


def trunk() -> nn.Sequential:
    """Three blocks with batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.GELU(),
    )  # fmt: skip


class Net(nn.Module):
    """A trunk and a head of two layers; `way` is how the trunk is run."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = trunk()
        self.head = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 5))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self.trunk, x).mean((2, 3)))


def inside(context: Context, net: nn.Module, x: Tensor) -> Tensor:
    with context():
        return net(x)


def halfway(context: Context, net: nn.Module, x: Tensor) -> Tensor:
    """The second half of the trunk alone."""
    y = net[:3](x)
    with context():
        return net[3:](y)


def detached(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).detach()


def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


CUTS = {
    "no_grad": partial(inside, torch.no_grad),
    "inference_mode": partial(inside, torch.inference_mode),
    "set_grad_enabled": partial(inside, lambda: torch.set_grad_enabled(False)),
    "half no_grad": partial(halfway, torch.no_grad),
    "half inference_mode": partial(halfway, torch.inference_mode),
    "detach": detached,
}
CHECKPOINTS = {
    "reentrant": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "not reentrant": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "in parts": lambda net, x: checkpoint_sequential(net, 3, x, use_reentrant=False),
    "in the middle": lambda net, x: net[5](checkpoint(net[3:5], net[:3](x), use_reentrant=True)),
}


def made(way: Callable[[nn.Module, Tensor], Tensor], training: bool = False) -> Net:
    torch.manual_seed(1)
    net = Net(way)
    for _ in range(3):
        net.trunk(images(4, seed=9))  # statistics of their own
    return net.train(training)


METHODS = ("gradcam", "saliency", "integrated-gradients:steps=4", "hirescam:layer=trunk.2")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", CUTS)
def test_the_maps_are_those_of_the_network_without_the_cut(cut: str, method: str) -> None:
    x = images(2)
    expected = xattn.explain(made(plain), x, method, target=2)
    explanation = xattn.explain(made(CUTS[cut]), x, method, target=2)
    torch.testing.assert_close(explanation.maps, expected.maps, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ["gradcam", "input-x-gradient", "gradcam:layer=trunk.2", "rise:samples=8"])
@pytest.mark.parametrize("way", CHECKPOINTS)
def test_a_checkpointed_network_is_explained_as_it_is_without(way: str, method: str, training: bool) -> None:
    x = images(2)
    net = made(CHECKPOINTS[way], training)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    expected = xattn.explain(made(plain), x, method, target=2).maps
    torch.testing.assert_close(xattn.explain(net, x, method, target=2).maps, expected, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training == training for module in net.modules())


def test_checkpointing_works_again_afterwards_and_after_an_error() -> None:
    function = torch.utils.checkpoint.CheckpointFunction.__dict__.get("apply")
    net = made(CHECKPOINTS["reentrant"], training=True)
    broken = images(2)
    handle = net.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        xattn.explain(net, broken, "gradcam", spec=xattn.ModelSpec(feature_layer="trunk"))
    handle.remove()
    assert torch.utils.checkpoint.CheckpointFunction.__dict__.get("apply") is function
    runs = []
    net.trunk[0].register_forward_hook(lambda *_: runs.append(1))
    net(images(1).expand(2, -1, -1, -1).clone().requires_grad_()).sum().backward()
    assert len(runs) == 2  # once more in the backward pass


def test_a_layer_beside_a_cut_keeps_what_the_model_says() -> None:
    """Where the score still depends on the layer, the model's own detach() stands."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = trunk(), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.trunk(x)
            return self.head((y * y.detach().sigmoid()).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Gated().eval(), images(2)
    spec = xattn.ModelSpec(feature_layer="trunk", input_size=(32, 32))
    trace = record(net, x, 1, spec=spec, layers=["trunk"])
    y = net.trunk(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net.head((y * y.detach().sigmoid()).mean((2, 3)))[:, 1].sum(), y)
    torch.testing.assert_close(trace.gradient("trunk"), expected)
    assert not trace.uncut
    assert trace.forwards == 1


def test_a_pass_costs_one_forward_where_nothing_is_cut_and_one_more_where_it_is() -> None:
    spec = xattn.ModelSpec(feature_layer="trunk", input_size=(32, 32))
    for way, forwards in ((plain, 1), (CUTS["no_grad"], 2)):
        trace = record(made(way), images(2), spec=spec, layers=["trunk", INPUT])
        trace.gradient("trunk")
        trace.gradient(INPUT)
        assert trace.forwards == forwards


def test_a_layer_that_the_score_does_not_depend_on_is_still_refused() -> None:
    class Beside(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.trunk(x)
            return self.head(x.mean((2, 3)).repeat(1, 4))

    spec = xattn.ModelSpec(feature_layer="trunk", input_size=(32, 32))
    with pytest.raises(NotApplicableError, match="does not depend on layer 'trunk'"):
        record(Beside(plain), images(2), spec=spec, layers=["trunk"]).gradient("trunk")
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
