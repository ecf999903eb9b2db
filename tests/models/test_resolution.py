"""Strides removed, padding wrapped: map sizes of many families, and that the weights do not notice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from xattn.errors import NotApplicableError, ParameterError
from xattn.inspection import infer_spec
from xattn.models.resolution import _same_convolution, remove_strides, use_circular_padding
from xattn.models.trunk import cut, noise
from xattn.spec import TokenGrid

SIZE = (96, 64)
# Map of an image of 96 x 64 pixels before and after.
GRIDS = {
    "resnet18": ((3, 2), (12, 8)),
    "resnet34": ((3, 2), (12, 8)),
    "resnet50": ((3, 2), (12, 8)),
    "resnet101": ((3, 2), (12, 8)),
    "vgg11": ((3, 2), (12, 8)),
    "vgg16_bn": ((3, 2), (12, 8)),
    "alexnet": ((2, 1), (11, 7)),
    "squeezenet1_0": ((5, 3), (22, 14)),
    "squeezenet1_1": ((5, 3), (23, 15)),
    "densenet121": ((3, 2), (12, 8)),
    "mobilenet_v2": ((3, 2), (12, 8)),
    "mobilenet_v3_small": ((3, 2), (12, 8)),
    "efficientnet_b0": ((3, 2), (12, 8)),
    "convnext_tiny": ((3, 2), (12, 8)),
    "mnasnet0_5": ((3, 2), (12, 8)),
    "shufflenet_v2_x0_5": ((3, 2), (12, 8)),
    "regnet_y_400mf": ((3, 2), (12, 8)),
    "googlenet": ((3, 2), (12, 8)),
    "timm/resnet18d": ((3, 2), (12, 8)),
    "timm/convnext_atto": ((3, 2), (12, 8)),
    "timm/tf_efficientnet_b0": ((3, 2), (12, 8)),
    "timm/regnetx_002": ((3, 2), (12, 8)),
}
FEATURES = {"convnext_tiny": "features", "shufflenet_v2_x0_5": "conv5", "regnet_y_400mf": "trunk_output",
            "googlenet": "inception5b", "mnasnet0_5": "layers", "timm/convnext_atto": "stages",
            "timm/tf_efficientnet_b0": "bn2", "timm/regnetx_002": "s4"}  # fmt: skip


def layer_of(name):
    return FEATURES.get(name, "layer4" if "resnet" in name else "features")


def build(name, device="meta"):
    """A network without the seconds that initializing it takes."""
    with torch.device(device):
        if name.startswith("timm/"):
            return pytest.importorskip("timm").create_model(name.removeprefix("timm/")).eval()
        options = {"init_weights": False} if name == "googlenet" else {}
        return pytest.importorskip("torchvision").models.get_model(name, weights=None, **options).eval()


def grid(model, name):
    found = []
    handle = model.get_submodule(layer_of(name)).register_forward_hook(lambda m, i, o: found.append(o.shape[-2:]))
    with torch.no_grad():
        model(noise(model, SIZE))
    handle.remove()
    return tuple(found[0])


@pytest.mark.parametrize("name", GRIDS)
def test_grids_and_keys(name):
    model = build(name, "cpu" if "regnet" in name else "meta")  # torchvision's computes its widths with tensors
    before = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert grid(model, name) == GRIDS[name][0]
    assert remove_strides(model, feature_layer=layer_of(name), input_size=SIZE) is model
    assert grid(model, name) == GRIDS[name][1]
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == before
    assert all(max(m.dilation) == 1 for m in model.modules() if isinstance(m, nn.Conv2d))


def test_one_and_three_stages():
    for stages, expected in ((1, (6, 4)), (3, (24, 16))):
        model = remove_strides(build("resnet18"), stages, feature_layer="layer4", input_size=SIZE)
        assert grid(model, "resnet18") == expected


def test_resnet50_costs_what_the_paper_says():
    model = build("resnet50")
    cost = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 448, 448, device="meta"))
        cost.append(counter.get_total_flops() / 2e9)
        remove_strides(model, feature_layer="layer4", input_size=(224, 224))
    assert cost[0] == pytest.approx(16.4, abs=0.05)
    assert cost[1] == pytest.approx(76.3, abs=0.3)
    assert cost[1] / cost[0] == pytest.approx(4.7, abs=0.1)


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_old_samples_are_among_the_new_ones(kernel, padding, mode):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, kernel, 2, padding, padding_mode=mode, bias=False)
    x = torch.randn(1, 2, 12, 16)
    old = conv(x)
    _same_convolution(conv)
    new = conv(x)
    assert new.shape[2:] == x.shape[2:]
    torch.testing.assert_close(new[..., ::2, ::2][..., : old.shape[2], : old.shape[3]], old)


class Pooled(nn.Module):
    """Two pools of any kind between two convolutions."""

    def __init__(self, pool):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = pool
        self.last = nn.Conv2d(4, 4, 1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.last(self.pool(self.first(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("pool", "first"),
    [
        (nn.MaxPool2d(2), 0),
        (nn.MaxPool2d(3, 2, 1), 0),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 1),
        (nn.MaxPool2d(3, 2), 1),
        (nn.AvgPool2d(2), 0),
        (nn.AvgPool2d(3, 2), 1),
    ],
)
def test_pools_keep_their_samples(pool, first):
    torch.manual_seed(0)
    model = Pooled(pool).eval()
    x = model.first(noise(model, (16, 12))).detach()
    old = pool(x)
    remove_strides(model, 1, feature_layer="last", input_size=(16, 12))
    new = model.pool(x)
    assert new.shape[2:] == (16, 12)
    h, w = (16 - 3) // 2 + 1, (12 - 3) // 2 + 1  # windows that lie inside the image
    torch.testing.assert_close(new[..., first::2, first::2][..., :h, :w], old[..., :h, :w])


def test_constant_images_stay_constant_at_the_border():
    model = remove_strides(Pooled(nn.AvgPool2d(4)), 1, feature_layer="last", input_size=(16, 16))
    assert torch.equal(model.pool(torch.full((1, 4, 8, 8), 3.0)), torch.full((1, 4, 8, 8), 3.0))


class Odd(nn.Module):
    """Lowers the resolution in its forward function as well, beside a strided shortcut."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.down(x) + nn.functional.avg_pool2d(x, 2).mean(1, keepdim=True)
        return self.last(self.pool(y)).mean((2, 3))


class Sliced(Odd):
    """Takes every second cell by slicing."""

    def forward(self, x):
        return self.last(self.pool(self.down(x))[..., ::2, ::2]).mean((2, 3))


@pytest.mark.parametrize(
    ("kind", "message"), [(Odd, "does not run"), (Sliced, r"is 16x16 instead of 32x32 \(it was 4x4")]
)
def test_a_refused_model_is_as_before(kind, message):
    torch.manual_seed(0)
    model = kind().eval()
    x = noise(model, (32, 32))
    before, modules = model(x), copy.deepcopy(str(model))
    with pytest.raises(NotApplicableError, match=message):
        remove_strides(model, feature_layer="last", input_size=(32, 32))
    assert str(model) == modules
    assert torch.equal(model(x), before)


def test_transformers_and_shallow_networks_are_refused():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 8)
    tokens = TokenGrid(patch=(16, 16), prefix=1)
    with pytest.raises(NotApplicableError, match="is a transformer: its grid is that of its patches"):
        remove_strides(vit, feature_layer="encoder.ln", tokens=tokens)
    with pytest.raises(NotApplicableError, match="is a transformer: its features are tokens"):
        cut(vit, "encoder.ln", SIZE, tokens)
    with pytest.raises(ParameterError, match=r"lowers the resolution 1 times before 'last' \(grids 16x16\)"):
        remove_strides(Pooled(nn.MaxPool2d(2)), feature_layer="last", input_size=(16, 16))


class Fixed(nn.Module):
    """A layer that takes one grid alone, and says nothing where it does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (2, 2):
            raise AssertionError
        return x


def test_a_layer_with_a_grid_of_its_own_is_refused_with_a_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), Fixed()).eval()
    with pytest.raises(NotApplicableError, match=r"does not run \(AssertionError\); it needs its own grid"):
        remove_strides(model, feature_layer="2", input_size=(8, 8))
    assert [layer.stride for layer in model[:2]] == [(2, 2), (2, 2)]


def test_circular_padding_makes_the_features_move_with_the_image():
    torch.manual_seed(0)
    model = build("mobilenet_v2", "cpu")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_()
    remove_strides(model, feature_layer="features", input_size=(64, 64))
    x = noise(model, (64, 64))
    with torch.no_grad():
        plain = model.features(x.roll((32, 16), (2, 3))) - model.features(x).roll((4, 2), (2, 3))
        use_circular_padding(model)
        wrapped = model.features(x.roll((32, 16), (2, 3))) - model.features(x).roll((4, 2), (2, 3))
    assert plain.abs().max() > 1e-2
    assert wrapped.abs().max() < 1e-4


def test_circular_padding_needs_something_to_pad():
    with pytest.raises(NotApplicableError, match="no convolution that pads"):
        use_circular_padding(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(NotApplicableError, match="Conv2dSame, which pads by itself"):
        use_circular_padding(build("timm/tf_efficientnet_b0"))


def test_inference_finds_the_same_layers_at_high_resolution():
    model = build("squeezenet1_1", "cpu")
    low = infer_spec(model, input_size=(64, 64))
    remove_strides(model, feature_layer=low.feature_layer, input_size=(64, 64))
    assert infer_spec(model, input_size=(64, 64)) == low
