"""Facts inferred from torchvision, timm and plain models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from xattn.errors import SpecError, UnknownNameError
from xattn.inspection import infer_spec
from xattn.spec import ModelSpec, TokenGrid

TORCHVISION = {
    "resnet18": ("layer4", "fc"),
    "vgg11": ("features", "classifier.6"),
    "alexnet": ("features", "classifier.6"),
    "squeezenet1_1": ("features", "classifier.1"),
    "densenet121": ("features", "classifier"),
    "mobilenet_v2": ("features", "classifier.1"),
    "mobilenet_v3_small": ("features", "classifier.3"),
    "efficientnet_b0": ("features", "classifier.1"),
    "convnext_tiny": ("features", "classifier.2"),
    "mnasnet0_5": ("layers", "classifier.1"),
    "shufflenet_v2_x0_5": ("conv5", "fc"),
    "regnet_y_400mf": ("trunk_output", "fc"),
    "swin_t": ("permute", "head"),
}
TIMM = {
    "resnet18": ("layer4", "fc"),
    "mobilenetv3_small_050": ("blocks", "classifier"),
    "regnetx_002": ("s4", "head.fc"),
    "convnext_atto": ("stages", "head.fc"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    for slow in ("kaiming_uniform_", "kaiming_normal_", "trunc_normal_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, slow, lambda tensor, *args, **kwargs: tensor)
    model = models.get_model(name, weights=None)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).mul_(0.05))
    spec = infer_spec(model, input_size=(96, 64))
    assert (spec.feature_layer, spec.classifier) == TORCHVISION[name]
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.classes[281] == "tabby"


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    spec = infer_spec(timm.create_model(name, pretrained=False), input_size=(64, 64))
    assert (spec.feature_layer, spec.classifier) == TIMM[name]
    assert spec.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("name", "layer", "tokens"),
    [
        ("vit_tiny_patch16_224", "blocks.11.norm1", TokenGrid(patch=(16, 16), prefix=1)),
        ("deit_tiny_distilled_patch16_224", "blocks.11.norm1", TokenGrid(patch=(16, 16), prefix=2, class_tokens=2)),
        ("swin_tiny_patch4_window7_224", "norm", TokenGrid(patch=(32, 32), channels_last=True)),
    ],
)
def test_transformers(name: str, layer: str, tokens: TokenGrid) -> None:
    timm = pytest.importorskip("timm")
    size = {"img_size": 64} if "swin" not in name else {}
    spec = infer_spec(timm.create_model(name, pretrained=False, **size))
    assert (spec.feature_layer, spec.tokens) == (layer, tokens)


class Functional(nn.Module):
    """Everything but the layers with weights is a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.out = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(nnf.relu(self.second(nnf.relu(self.first(x)))).mean((2, 3)))


def test_plain_module() -> None:
    spec = infer_spec(Functional(), name="mine")
    assert (spec.feature_layer, spec.classifier, spec.mean, spec.name) == ("second", "out", None, "mine")


def test_modes_and_hooks_are_put_back() -> None:
    model = Functional().train()
    model.second.eval()
    infer_spec(model)
    assert model.training
    assert not model.second.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_spatial_layer_names_the_field() -> None:
    with pytest.raises(SpecError, match=r"no layer with a spatial output.*infer_spec\(model, feature_layer=…\)"):
        infer_spec(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), input_size=(32, 32))


def test_a_model_that_does_not_run_names_the_field() -> None:
    with pytest.raises(
        SpecError, match=r"does not run on an image of .*infer_spec\(model, input_size=\(height, width\)\)"
    ):
        infer_spec(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 2)))


def test_class_index() -> None:
    spec = ModelSpec(feature_layer="f", classes=("tabby, tabby cat", "tiger cat", "lynx"))
    assert [spec.class_index(t) for t in ("tabby", "Tiger Cat", "2")] == [0, 1, 2]
    with pytest.raises(UnknownNameError, match="Did you mean 'lynx'"):
        spec.class_index("linx")
    with pytest.raises(UnknownNameError, match="has no class names"):
        ModelSpec(feature_layer="f").class_index("lynx")


def test_spec_survives_json() -> None:
    import json

    spec = ModelSpec(feature_layer="f", tokens=TokenGrid(patch=(16, 16), prefix=1), mean=(0.5,), classes=("a", "b"))
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
