"""The contract of `explain`, with methods made for the test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import xattn
from xattn.errors import NotApplicableError, ShapeError, XattnWarning
from xattn.explainer import Explainer, Family, LayerExplainer
from xattn.explaining import explain
from xattn.spec import ModelSpec
from xattn.trace import Trace

SPEC = ModelSpec(
    feature_layer="0",
    classifier="4",
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    input_size=(8, 8),
    classes=("ant", "bee", "cow"),
)


@dataclass(frozen=True)
class Mean(LayerExplainer):
    """Mean over the channels."""

    name: ClassVar[str] = "mean"
    family: ClassVar[Family] = Family.ACTIVATION

    def attribute(self, trace: Trace) -> Tensor:
        return trace.activation(self.layers(trace.spec)[0]).mean(1, keepdim=True)


@dataclass(frozen=True)
class Weighted(Mean):
    """Sum of features times gradient: needs the backward pass."""

    name: ClassVar[str] = "weighted"
    grad: ClassVar[bool] = True

    def attribute(self, trace: Trace) -> Tensor:
        (layer,) = self.layers(trace.spec)
        return (trace.activation(layer) * trace.gradient(layer)).sum(1, keepdim=True)


@dataclass(frozen=True)
class TwoParts(Mean):
    """Two channels as parts; claims to sum to one."""

    name: ClassVar[str] = "two-parts"

    def attribute(self, trace: Trace) -> Tensor:
        return trace.activation("0")[:, :2]

    def conservation(self, trace: Trace, maps: Tensor) -> Tensor:
        return (maps.sum((1, 2, 3)) - 1).abs()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return nn.Sequential(*layers)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_one_forward_one_backward(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, backwards = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    explain(model, x, [Mean(), Weighted(), Weighted("1"), Weighted("2"), Mean("1")], spec=SPEC)
    assert (len(forwards), len(backwards)) == (1, 1)
    explain(model, x, [Mean(), Mean("1")], spec=SPEC)
    assert (len(forwards), len(backwards)) == (2, 1)


def test_single_and_sequence(model: nn.Module, x: Tensor) -> None:
    single = explain(model, x, Mean(), 1, spec=SPEC)
    (listed,) = explain(model, x, [Mean()], 1, spec=SPEC)
    called = Mean()(model, x, 1, spec=SPEC)
    assert single.maps.equal(listed.maps)
    assert single.maps.equal(called.maps)
    assert single.target.tolist() == [1] * 4
    torch.testing.assert_close(single.probability, model(x).softmax(1)[:, 1].detach())
    assert xattn.explain is explain


def test_parts_are_combined_and_sums_are_checked(model: nn.Module, x: Tensor) -> None:
    with pytest.warns(XattnWarning, match=r"two-parts: 4 non-conserving of 4 maps \(first: image 0, "):
        found = explain(model, x, TwoParts(), spec=SPEC)
    assert found.parts is not None
    assert found.maps.equal(found.parts.mean(1, keepdim=True))
    assert found.status == ("non-conserving",) * 4


def test_targets_by_name_and_shape(model: nn.Module, x: Tensor) -> None:
    assert explain(model, x, Mean(), "bee", spec=SPEC).target.tolist() == [1] * 4
    with pytest.raises(ShapeError, match="does not fit 4 images"):
        explain(model, x, Mean(), [1, 2], spec=SPEC)


@pytest.mark.parametrize("kind", ["array", "pil", "list", "path"])
def test_images_are_read_and_normalized(model: nn.Module, tmp_path: Any, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    given = {"array": pixels, "pil": image, "list": [image, pixels], "path": tmp_path / "image.png"}[kind]
    spec = ModelSpec(**{**SPEC.to_dict(), "crop": 1.0})
    found = explain(model, given, Mean(), spec=spec)
    expected = explain(model, (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25, Mean(), spec=spec)
    for maps in found.maps:
        torch.testing.assert_close(maps, expected.maps[0])
    assert np.array_equal(found.images[0].numpy(), pixels)


def test_unknown_normalization_is_told_and_the_remedy_works(model: nn.Module) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    with pytest.warns(XattnWarning, match=r"from 0 to 1. Pass mean= and std=, or transform="):
        plain = explain(model, image, Mean(layer="0"))
    assert plain.inputs.amax() == 1
    assert explain(model, image, Mean(layer="0"), mean=0.5, std=0.25).inputs.amax() == 2


def test_specs_are_inferred_or_taken_from_the_model(model: nn.Module, x: Tensor) -> None:
    assert explain(model, x, Mean()).spec.feature_layer == "1"
    model.spec = SPEC
    assert explain(model, x, Mean()).spec is SPEC


def test_wrong_shapes_of_a_method_are_told(model: nn.Module, x: Tensor) -> None:
    class Flat(Mean):
        def attribute(self, trace: Trace) -> Tensor:
            return trace.activation("0").mean((1, 2, 3))

    with pytest.raises(ShapeError, match=r"attribute\(\) gave \(4,\)"):
        explain(model, x, Flat(), spec=SPEC)


def test_no_method(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(NotApplicableError, match="no method given"):
        explain(model, x, [], spec=SPEC)


def test_all_leaves_out_what_is_not_defined(model: nn.Module, x: Tensor) -> None:
    found = {e.method.name for e in explain(model, x, "all", spec=SPEC)}
    assert {"gradcam", "cam", "brnpa", "guided-backprop", "random"} <= found
    assert not found & {"bcnn", "part-cam"}
    gelu = nn.Sequential(model[0], nn.GELU(), *model[2:])
    with pytest.warns(XattnWarning, match="left out") as seen:
        assert "guided-backprop" not in {e.method.name for e in explain(gelu, x, "all", spec=SPEC)}
    assert any("left out: guided-backprop" in str(w.message) for w in seen)
    with pytest.raises(NotApplicableError, match="guided-backprop"):
        explain(gelu, x, ["guided-backprop"], spec=SPEC)


def test_explainers_are_plain_values() -> None:
    assert Mean() == Mean(None)
    assert repr(Weighted("1")) == "Weighted(layer='1')"
    with pytest.raises(TypeError):
        Explainer()  # type: ignore[abstract]
