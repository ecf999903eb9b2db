"""What a message advises is done here to the letter, and works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.tiny_models import images
from xattn.errors import NotApplicableError, ShapeError, SpecError
from xattn.inspection import infer_spec
from xattn.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")


def network(size: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1) if size is None else nn.AvgPool2d(size // 4)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), head, nn.Flatten(), nn.Linear(12, 5)
    ).eval()


class Pair(nn.Module):
    """Two images, one of which is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.body(image) - self.body(other)


def test_the_size_of_the_input_is_advised_and_can_be_given() -> None:
    model = network(72)
    with pytest.raises(SpecError, match=r"infer_spec\(model, input_size=\(height, width\)\), or images"):
        infer_spec(model)
    assert infer_spec(model, input_size=(72, 72)).input_size == (72, 72)
    x = images(2, 72, 72)
    assert infer_spec(model, x).input_size == (72, 72)
    explanation = xattn.explain(model, x, "gradcam", spec=ModelSpec(input_size=(72, 72)))
    assert explanation.maps.shape == (2, 1, 18, 18)


def test_a_spec_that_gives_some_facts_is_completed_by_those_that_are_found() -> None:
    spec = ModelSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=("a", "b", "c", "d", "e"))
    explanation = xattn.explain(network(), images(1), "gradcam", target="b", spec=spec)
    assert explanation.spec is not None
    assert (explanation.spec.mean, explanation.spec.feature_layer) == (spec.mean, "3")
    assert explanation.class_name() == "b"


@pytest.mark.parametrize("spec", [None, ModelSpec(feature_layer="3", input_size=(32, 32))])
@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_another_number_of_channels(spec: ModelSpec | None, method: str) -> None:
    x = images(2)
    with pytest.raises(ShapeError, match=r"takes images of 3 channels but x has 2, shape \(2, 2, 32, 32\)"):
        xattn.explain(network(), x[:, :2], method, spec=spec)
    assert xattn.explain(network(), x, method, spec=spec).maps.isfinite().all()


@pytest.mark.parametrize("spec", [None, ModelSpec(feature_layer="body.3", input_size=(32, 32))])
def test_an_argument_that_is_missing(spec: ModelSpec | None) -> None:
    model, x = Pair().eval(), images(2)
    with pytest.raises(NotApplicableError, match=r"pass all of them as x, \(image, other\), and inputs=0"):
        xattn.explain(model, x, "saliency", spec=spec)
    maps = xattn.explain(model, (x, images(2, seed=4)), "saliency", inputs=0, spec=spec).maps
    assert maps.shape == (2, 1, 32, 32)


def test_global_settings_raise_no_foreign_error() -> None:
    model, x = network(), images(2)
    methods = ["gradcam", "smoothgrad:samples=2", "lime:samples=10,count=4", "lrp", "random"]
    expected = [e.maps for e in xattn.explain(model, x, methods, target=1)]
    try:
        torch.set_default_dtype(torch.float64)
        doubled = xattn.explain(model, x, methods, target=1)
    finally:
        torch.set_default_dtype(torch.float32)
    try:
        torch.use_deterministic_algorithms(True)
        settled = xattn.explain(model, x, methods, target=1)
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.autograd.set_grad_enabled(False):
        without = xattn.explain(model, x, methods, target=1)
    for want, *got in zip(expected, doubled, settled, without, strict=True):
        for explanation in got:
            assert explanation.maps.dtype == torch.float32 or explanation.method.name in ("lime", "random")
            if explanation.method.name not in ("smoothgrad", "random", "lime"):
                torch.testing.assert_close(explanation.maps, want, check_dtype=False)
