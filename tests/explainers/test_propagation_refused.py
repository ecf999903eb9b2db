"""Propagation: what is refused, in one line, and its parameters."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from tests.explainers.propagating import build, run, total, without_biases
from xattn.errors import NotApplicableError, ParameterError
from xattn.explainer import Explainer
from xattn.explainers import applicable, resolve
from xattn.explainers.propagation import LRP, DeepTaylor, ExcitationBackprop
from xattn.spec import ModelSpec, TokenGrid
from xattn.trace import record


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.ReLU(), torch.zeros(1, 4, 8, 8))


class Stochastic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.rand(()))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (tiny.tiny_normed_pool, r"calls layer_norm\(\)"),
    "product of maps": (lambda: build(join=lambda a, b: a * b), r"calls mul\(\) on two feature maps"),
    "division": (lambda: build(join=lambda a, b: 1 / (1 + F.relu(a)) + b), "calls (rdiv|rtruediv|reciprocal)"),
    "power": (lambda: build(act=lambda x: F.relu(x) ** 2), "pow"),
    "softmax at the end": (lambda: nn.Sequential(build(), nn.Softmax(1)), "ends in a softmax"),
    "a gate that is added": (lambda: build(join=lambda a, b: a + b.sigmoid()), r"calls add\(\) with a gate"),
    "a gate that is stacked": (lambda: build(pool=lambda x: torch.cat([x[:, :2], x[:, 2:].sigmoid()], 1).mean((2, 3))),
                               r"calls cat\(\) with a gate"),
    "a detached map that is added": (lambda: build(join=lambda a, b: a + b.detach()), r"calls add\(\) with a gate"),
    "an activation that moves zero": (lambda: build(act=F.softplus), r"calls softplus\(\)"),
    "a lower bound": (lambda: build(act=lambda x: x.clamp(min=0.1)), r"calls clamp\(\)"),
    "a maximum": (lambda: build(join=torch.maximum), r"calls maximum\(\)"),
    "padding": (lambda: build(act=lambda x: F.pad(F.relu(x), (1, 1, 1, 1), value=1.0)), "pads with 1"),
    "batch statistics": (lambda: build(act=lambda x: F.batch_norm(x, None, None, training=True)), "of the batch"),
    "group norm": (lambda: build(act=nn.GroupNorm(2, 4)), r"calls group_norm\(\)"),
    "weights made of the image": (lambda: build(act=lambda x: F.conv2d(x, x[:4, :, :3, :3])), "made of the image"),
    "TorchScript": (lambda: build(act=scripted()), "is TorchScript"),
    "chance": (lambda: nn.Sequential(build(), Stochastic()), "other logits when it runs again"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    make, reason = REFUSED[name]
    model = make()
    spec = ModelSpec(feature_layer="0.conv1" if isinstance(model, nn.Sequential) else "features")
    torch.manual_seed(0)
    with pytest.raises(NotApplicableError, match=reason) as refused:
        run(model, tiny.images(4, 8, 8), "lrp", spec=spec)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("lrp: ")


def test_attention_that_the_spec_does_not_name_is_refused() -> None:
    model = tiny.tiny_bcnn()
    spec = ModelSpec(**{**vars(model.spec), "attention_layer": None, "attention": None})
    with pytest.raises(NotApplicableError, match="multiplies feature maps"):
        run(model, tiny.images(2), "lrp", spec=spec)


@pytest.mark.parametrize("method", ["lrp", "deep-taylor", "excitation-backprop"])
def test_transformers_are_refused_before_they_run(method: str) -> None:
    spec = ModelSpec(feature_layer="encoder", tokens=TokenGrid(patch=(16, 16), prefix=1))
    (one,) = resolve([method])
    assert "use attnlrp, cp-lrp or libragrad" in (applicable(one, spec) or "")


@pytest.mark.parametrize("method", ["lrp", "deep-taylor", "excitation-backprop"])
def test_without_zennit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a witness of the tests and not a part of the package."""
    monkeypatch.setitem(sys.modules, "zennit", None)
    assert run(build(), tiny.images(2, 8, 8), method).maps.isfinite().all()


def test_unknown_range_of_the_pixels() -> None:
    model, x = build(), tiny.images(2, 8, 8)
    blind = ModelSpec(feature_layer="conv1")
    with pytest.raises(NotApplicableError, match="epsilon-plus-flat"):
        run(model, x, "lrp:composite=epsilon-gamma-box", spec=blind)
    chain = build(join=lambda a, b: a)
    assert torch.equal(run(chain, x, "lrp").maps, run(chain, x, "lrp:composite=epsilon-gamma-box").maps)
    assert torch.equal(run(chain, x, "lrp", spec=blind).maps, run(chain, x, "lrp:composite=epsilon-plus-flat").maps)
    found = run(without_biases(model), x, "deep-taylor", spec=blind)  # the w-square rule
    torch.testing.assert_close(total(found), model(x)[:, 1].detach().double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"composite": "gamma"}, {"epsilon": -1.0}, {"gamma": -0.1}, {"epsilon": 1e9}, {"gamma": float("nan")}]
)
def test_parameters_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="lrp"):
        LRP(**options)


def test_methods_of_one_trace_keep_their_own_books() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    trace = record(model, x, 1, spec=model.spec)
    methods: list[Explainer] = [LRP(), LRP("epsilon-plus"), DeepTaylor(), ExcitationBackprop()]
    maps = [method.attribute(trace) for method in methods]
    for method, found in zip(methods, maps, strict=True):
        assert method.conservation(trace, found).max() < 1e-4
    assert (trace.forwards, trace.backwards) == (5, 4)
