"""The trunk of a classifier gives exactly its features, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xattn.errors import NotApplicableError, UnknownNameError
from xattn.models.trunk import cut, noise

SIZE = (64, 64)
LAYERS = {
    "resnet18": ("layer4", ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]),
    "squeezenet1_1": ("features", ["features"]),
    "densenet121": ("features", ["features"]),
    "shufflenet_v2_x0_5": ("conv5", ["conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"]),
    "mobilenet_v2": ("features.10", ["features"]),
    "timm/resnet18": ("layer4", ["conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4"]),
    "timm/convnext_atto": ("stages", ["stem", "stages"]),
}


def build(name):
    torch.manual_seed(0)
    if name.startswith("timm/"):
        return pytest.importorskip("timm").create_model(name.removeprefix("timm/"))
    return pytest.importorskip("torchvision").models.get_model(name, weights=None)


@pytest.mark.parametrize("name", LAYERS)
def test_the_trunk_is_the_network_up_to_its_features(name):
    layer, children = LAYERS[name]
    model = build(name).eval()
    trunk, channels = cut(model, layer, SIZE)
    assert [child for child, _ in trunk.named_children()] == children
    own = model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in trunk.state_dict().items())
    tapped = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: tapped.append(o.clone()))
    x = noise(model, (96, 64))
    with torch.no_grad():
        model(x)
        assert torch.equal(trunk(x), tapped[0])
    handle.remove()
    assert tapped[0].shape[1] == channels
    assert tapped[0].std() > 0  # dead features would prove nothing
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(4, 4, 3)  # defined before it is called
        self.first = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.last(self.first(x)).mean((2, 3)))


class Functional(Base):
    def forward(self, x):
        return self.fc(self.last(self.first(x).relu()).mean((2, 3)))


class Twice(Base):
    def forward(self, x):
        return self.fc(self.last(self.last(self.first(x))).mean((2, 3)))


class Reused(Base):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.middle = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.fc(self.last(self.act(self.middle(self.act(self.first(x))))).mean((2, 3)))


def test_children_are_taken_in_the_order_of_their_calls():
    trunk, channels = cut(Base(), "last", (16, 16))
    assert [name for name, _ in trunk.named_children()] == ["first", "last"]
    assert channels == 4


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Functional, "calling its layers one after the other does not give the features of 'last'"),
        (Twice, "does not give one feature map"),
        (Reused, "layer 'act' runs twice before the features"),
    ],
)
def test_what_is_no_sequence_is_refused(kind, message):
    torch.manual_seed(0)
    model = kind()
    with pytest.raises(NotApplicableError, match=message):
        cut(model, "last", (16, 16))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_unknown_layer_is_named():
    with pytest.raises(UnknownNameError, match=r"layer of Base 'lats'. Did you mean 'last'"):
        cut(Base(), "lats", (16, 16))
