"""The cheaper copy: folded norms give the same logits, bfloat16 nearly the same, and the model stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.inspection import infer_spec
from xattn.models import create_model
from xattn.models import fast as module
from xattn.models.fast import fast_copy
from xattn.spec import ModelSpec


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_computes_bfloat16", lambda device: False)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["tiny_cnn", "tiny_functional", "tiny_bcnn", "tiny_brnpa", "tiny_relu_then_pool"])
def test_folding_changes_rounding_alone(name: str) -> None:
    model, x = getattr(tiny, name)(), tiny.images(4)
    lean = fast_copy(model, model.spec)
    assert norms(model) > 0
    assert norms(lean) == 0
    torch.testing.assert_close(lean(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("exact")
def test_networks_of_torchvision() -> None:
    from torchvision.models import densenet121, resnet18

    for build, left in ((resnet18, 0), (densenet121, 62)):  # norms before a convolution stay
        model = tiny.seeded(lambda build=build: build(num_classes=5))
        spec = infer_spec(model, input_size=(64, 64))
        lean, x = fast_copy(model, spec), tiny.images(2, 64, 64)
        assert norms(lean) == left
        expected = model(x).detach()
        torch.testing.assert_close(lean(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


class Shared(nn.Module):
    """The output of a convolution is used beside its norm, so that folding would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.spec = ModelSpec(feature_layer="norm", classifier="fc", input_size=(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.fc((self.norm(y) * y.sigmoid()).mean((2, 3)))


@pytest.mark.usefixtures("exact")
def test_a_network_that_folding_would_change_is_not_folded() -> None:
    model, x = tiny.seeded(Shared), tiny.images(2)
    lean = fast_copy(model, model.spec)
    assert norms(lean) == 1
    torch.testing.assert_close(lean(x), model(x), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_and_the_classifier_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_computes_bfloat16", lambda device: True)
    model = create_model("tiny-cnn")
    before = copy.deepcopy(model.state_dict())
    lean = fast_copy(model, model.spec)
    x = tiny.images(8, 64, 64)
    with torch.no_grad():
        logits, expected = lean(x.bfloat16()), model(x)
    assert logits.dtype == torch.float32
    assert {p.dtype for p in lean.parameters()} == {torch.bfloat16, torch.float32}
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
