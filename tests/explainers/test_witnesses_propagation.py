"""zennit with its own hooks and canonizers, and captum, where they are right and where they are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.explainers.propagation import ExcitationBackprop
from xattn.explaining import explain
from xattn.inspection import infer_spec
from xattn.spec import ModelSpec

zennit = pytest.importorskip("zennit")
captum = pytest.importorskip("captum.attr")
resnet = pytest.importorskip("torchvision.models.resnet")

from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule  # noqa: E402
from zennit.canonizers import SequentialMergeBatchNorm  # noqa: E402
from zennit.composites import COMPOSITES  # noqa: E402
from zennit.torchvision import ResNetCanonizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # captum warns on every call
TARGET = torch.tensor([2, 1])
COMPOSITE_NAMES = [
    "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat",
]  # fmt: skip


class VGG(nn.Module):
    """Three convolutions in a row, three pools, two linear layers; ReLU modules as hooks need them."""

    def __init__(self, norm: bool, bias: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12), (12, 12)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)]
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(inplace=True), nn.Linear(16, 5))
        self.spec = ModelSpec(
            feature_layer="features", classifier="classifier.2", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def vgg(norm: bool = True, bias: bool = True) -> nn.Module:
    return tiny.seeded(lambda: VGG(norm, bias))


def residual(block: type[nn.Module]) -> nn.Module:
    model = tiny.seeded(lambda: resnet.ResNet(block, [1, 1, 1, 1], num_classes=5))
    model.spec = infer_spec(model, input_size=(32, 32))
    return model


def image(model: nn.Module, size: int = 32) -> Tensor:
    """Inside the range of the pixels, where the box of the first layer is that of all images."""
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.spec.mean, model.spec.std))
    return (pixels - mean) / std


def by_zennit(model: nn.Module, x: Tensor, name: str, canonizers: list[object]) -> Tensor:
    """Relevance (N, 1, H, W) by hooks on a copy, since the canonizers leave residue."""
    model, x = copy.deepcopy(model).eval(), x.clone().requires_grad_()
    options = {}
    if name == "epsilon-gamma-box":
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.spec.mean, model.spec.std))
        options = {"low": -mean / std, "high": (1 - mean) / std}
    composite = COMPOSITES[name.replace("-", "_")](**options, canonizers=canonizers)
    with composite.context(model) as hooked:
        logits = hooked(x)
        seed = torch.zeros_like(logits).scatter(1, TARGET[:, None], logits.detach().gather(1, TARGET[:, None]))
        (relevance,) = torch.autograd.grad(logits, x, seed)
    return relevance.sum(1, keepdim=True)


def close(found: Tensor, expected: Tensor) -> None:
    """zennit leaves the eps of a merged batch norm, 5e-6 of each; a rounding error tips a maximum or a sign."""
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", COMPOSITE_NAMES)
@pytest.mark.parametrize("norm", [True, False])
def test_vgg(name: str, norm: bool) -> None:
    model = vgg(norm)
    x = image(model)
    found = explain(model, x, f"lrp:composite={name}", TARGET, spec=model.spec)
    assert found.status == ("ok", "ok")
    close(found.maps, by_zennit(model, x, name, [SequentialMergeBatchNorm()]))


@pytest.mark.parametrize("name", COMPOSITE_NAMES)
@pytest.mark.parametrize("block", [resnet.BasicBlock, resnet.Bottleneck])
def test_resnet(name: str, block: type[nn.Module]) -> None:
    model = residual(block)
    x = image(model)
    found = explain(model, x, f"lrp:composite={name}", TARGET, spec=model.spec)
    close(found.maps, by_zennit(model, x, name, [ResNetCanonizer()]))


def test_without_canonizers_zennit_does_not_conserve() -> None:
    """A residual `+` hands all of the relevance to both sides, and a batch norm beside a convolution scales it."""
    model = residual(resnet.BasicBlock)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("bias", "running_mean")):  # nothing that could absorb relevance
            tensor.data.zero_()
    x = image(model)
    logits = model(x).detach().gather(1, TARGET[:, None])[:, 0]
    bare = by_zennit(model, x, "epsilon-plus-flat", []).sum((1, 2, 3))
    assert (bare / logits).abs().min() > 3
    found = explain(model, x, "lrp:composite=epsilon-plus-flat", TARGET, spec=model.spec).maps.sum((1, 2, 3))
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=0)


def test_captum_on_vgg() -> None:
    """Alpha-1-beta-0 in convolutions without bias is z+ where no input is negative; captum hands out the logit too."""
    model = vgg(norm=False, bias=False)
    x = image(model).abs()
    hooked = copy.deepcopy(model)
    for layer in hooked.modules():
        if isinstance(layer, nn.Conv2d):
            layer.rule = Alpha1_Beta0_Rule()
        elif isinstance(layer, nn.Linear):
            layer.rule = EpsilonRule(1e-6)
    expected = captum.LRP(hooked).attribute(x, TARGET).sum(1, keepdim=True)
    close(explain(model, x, "lrp:composite=epsilon-plus", TARGET, spec=model.spec).maps, expected)


def test_captum_without_biases_is_excitation_backprop() -> None:
    """Its z+ rule with the bias set to zero everywhere, from 1 at the class, is excitation backprop to the image."""
    model = vgg(norm=False)
    x = image(model).abs()
    hooked = copy.deepcopy(model)
    for layer in hooked.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.rule = Alpha1_Beta0_Rule(set_bias_to_zero=True)
    expected = captum.LRP(hooked).attribute(x, TARGET).sum(1, keepdim=True)
    expected = expected / model(x).detach().gather(1, TARGET[:, None])[..., None, None]
    close(explain(model, x, ExcitationBackprop(layer=""), TARGET, spec=model.spec).maps, expected)


def test_deconvolution() -> None:
    """captum is exact where each ReLU has a module of its own."""
    model = vgg()
    x = image(model)
    expected = captum.Deconvolution(copy.deepcopy(model)).attribute(x, TARGET)
    found = explain(model, x, "deconvolution:reduce=sum", TARGET, spec=model.spec)
    torch.testing.assert_close(found.maps, expected.sum(1, keepdim=True))
