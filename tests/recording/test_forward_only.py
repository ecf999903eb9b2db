"""Models whose layers or gradients cannot be had: functions, arrays, TorchScript, exported programs, quantized ones."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.tiny_models import TinyCNN, images
from xattn.errors import NotApplicableError, SpecError
from xattn.explainers import applicable, resolve
from xattn.inspection import facts_about, infer_spec

SCORES = ("occlusion:window=0.25", "rise:samples=12", "lime:samples=20", "kernel-shap:samples=20", "random")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:xattn.errors.XattnWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = TinyCNN().eval()
    del model.spec  # type: ignore[union-attr]
    return model


class Session:
    """As a session of ONNX Runtime: arrays in, a list of arrays out."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def run(self, outputs: list[str] | None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert feed["input"].dtype == np.float32
        with torch.no_grad():
            return [self.model(torch.from_numpy(feed["input"])).numpy()]


def session(model: nn.Module) -> Callable[[Tensor], Any]:
    """The adapter that the documentation shows."""
    onnx = Session(model)

    def scores(x: Tensor) -> np.ndarray:
        return onnx.run(None, {"input": x.numpy()})[0]

    return scores


class Adapter:
    """An object with facts of its own that is called."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.spec = xattn.ModelSpec(input_size=(32, 32), classes=("a", "b", "c", "d", "e"))

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


def exported(model: nn.Module) -> nn.Module:
    return torch.export.export(model, (images(3),)).module()


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "function": lambda model: lambda x: model(x),
    "method": lambda model: model.forward,
    "object": Adapter,
    "session": session,
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, images(2)),
    "frozen": lambda model: torch.jit.freeze(torch.jit.script(model)),
    "exported for three images": exported,
    "class scores of another library": lambda model: lambda x: {"logits": model(x).detach().tolist()} and [
        model(x.detach()).detach().numpy()
    ],
}  # fmt: skip
SCRIPTS = ("script", "frozen")


def form(name: str) -> Any:
    model = network()
    if name in SCRIPTS:  # TorchScript compiles no attribute that may be a module or a function
        model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), Mean()).eval()
    return model, FORMS[name](model)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, :5]


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("name", FORMS)
def test_methods_that_need_scores_alone_give_the_maps_of_the_module(name: str, method: str) -> None:
    model, other = form(name)
    x = images(2)
    if method == "random":
        assert xattn.explain(other, x, method, target=1).maps.shape == (2, 1, 8, 8)
        return
    expected = xattn.explain(model, x, method, target=1).maps
    torch.testing.assert_close(xattn.explain(other, x, method, target=1).maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["function", "method", "script", "trace", "frozen", "exported for three images"])
@pytest.mark.parametrize("method", ["input-x-gradient", "integrated-gradients:steps=4"])
def test_gradients_of_the_input_are_had_where_autograd_follows(name: str, method: str) -> None:
    model, other = form(name)
    x = images(2)
    expected = xattn.explain(model, x, method, target=1).maps
    torch.testing.assert_close(xattn.explain(other, x, method, target=1).maps, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_a_layer_is_refused_by_the_reason(name: str) -> None:
    _, other = form(name)
    kind = "torch.export" if "exported" in name else "TorchScript" if name in (*SCRIPTS, "trace") else "a function"
    for method in ("gradcam", "brnpa", "cam", "scorecam", "attention-x-gradient", "gradcam:layer=conv2"):
        with pytest.raises(NotApplicableError, match=f"{kind}, whose layers cannot be seen") as caught:
            xattn.explain(other, images(1), method)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["session", "class scores of another library"])
def test_a_gradient_is_refused_by_the_reason(name: str) -> None:
    _, other = form(name)
    for method in ("saliency", "integrated-gradients", "smoothgrad", "lrp", "deeplift", "guided-backprop", "fullgrad"):
        with pytest.raises(NotApplicableError, match=r"carry none back to the image.*occlusion, rise, lime"):
            xattn.explain(other, images(1), method)


@pytest.mark.parametrize("name", ["function", "session", "script", "exported for three images"])
def test_every_method_that_is_left_works(name: str) -> None:
    """What the refusals name is among them."""
    _, other = form(name)
    explanations = xattn.explain(other, images(2), "all")
    names = {explanation.method.name for explanation in explanations}
    assert {"occlusion", "rise", "lime", "kernel-shap"} <= names
    assert ("saliency" in names) == (name != "session")
    assert all(explanation.maps.isfinite().all() for explanation in explanations)


def test_what_a_program_returns_for_no_image_is_left_as_it_is() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"logits": logits, "loss": logits.square().mean()}

    program = torch.export.export(WithLoss().eval(), (images(3),)).module()
    maps = xattn.explain(program, images(4), "occlusion:window=0.5", 1).maps
    torch.testing.assert_close(maps, xattn.explain(network(), images(4), "occlusion:window=0.5", 1).maps)


def test_an_unflattened_program_has_layers() -> None:
    model, x = network(), images(2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    unflattened = torch.export.unflatten(program)
    with pytest.raises(NotApplicableError, match="unflatten"):
        xattn.explain(program.module(), x, "gradcam:layer=conv3")
    got = xattn.explain(unflattened, x, "gradcam:layer=conv3", target=1).maps
    torch.testing.assert_close(got, xattn.explain(model, x, "gradcam:layer=conv3", target=1).maps)


def test_quantized_layers_have_no_gradient_and_the_rest_works() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(network()), {nn.Linear})
    spec = facts_about(model, images(1))
    assert spec.evidence["gradient"].how == "contradicted"
    assert spec.feature_layer
    for method in ("occlusion:window=0.25", "scorecam", "eigencam", "brnpa"):
        assert applicable(resolve(method)[0], spec) is None
        assert xattn.explain(model, images(1), method).maps.isfinite().all()
    for method in ("gradcam", "saliency", "guided-backprop", "fullgrad"):
        with pytest.raises(NotApplicableError, match="carry none back to the image"):
            xattn.explain(model, images(1), method)


def test_facts_of_a_function_are_found_once() -> None:
    model, calls = network(), []

    def function(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x)

    facts_about(function, images(1))
    count = len(calls)
    assert count <= 4
    facts_about(function, images(1))
    assert len(calls) == count
    spec = infer_spec(function, images(1))
    assert (spec.feature_layer, spec.input_size, spec.name) == ("", (32, 32), "function")


def test_a_network_without_maps_still_has_its_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    x = images(2, 16, 16)
    assert xattn.explain(model, x, "saliency").maps.shape == (2, 1, 16, 16)
    assert xattn.explain(model, x, "occlusion:window=0.25").status == ("ok", "ok")
    with pytest.raises(NotApplicableError, match="gradcam: reads layers, but Sequential has no layer with a spatial"):
        xattn.explain(model, x, "gradcam")
    with pytest.raises(SpecError, match="no layer with a spatial output"):
        infer_spec(model, x)


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(NotApplicableError, match=r"Linear is a class and not a model; create it, Linear\(…\)"):
        xattn.explain(nn.Linear, images(1), "occlusion")
    with pytest.raises(NotApplicableError, match="function from images to class scores, but got str"):
        xattn.explain("resnet50", images(1), "occlusion")
