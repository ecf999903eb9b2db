"""captum and pytorch-grad-cam as second witnesses, and the places where they disagree with the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.explainers.guided import guided_gradient
from xattn.explaining import explain
from xattn.functional.cam import eigen_cam, grad_cam_plus_plus, xgrad_cam
from xattn.trace import INPUT, record

captum = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore")  # both libraries warn on every call
TARGET = torch.tensor([2, 1])


@pytest.fixture
def model() -> nn.Module:
    return tiny.tiny_cnn()


@pytest.fixture
def x() -> Tensor:
    return tiny.images(2, 16, 24, seed=3)


def maps(model: nn.Module, x: Tensor, method: str) -> Tensor:
    return explain(model, x, method, TARGET, spec=model.spec).maps


# --- captum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
def test_grad_cam(model: nn.Module, x: Tensor, layer: str) -> None:
    witness = captum.LayerGradCam(model, model.get_submodule(layer))
    expected = witness.attribute(x, TARGET, relu_attributions=True)
    torch.testing.assert_close(maps(model, x, f"gradcam:layer={layer}"), expected)


def test_convention_grad_cam_has_a_relu(model: nn.Module, x: Tensor) -> None:
    """Eq. 2 ends in a ReLU; captum leaves it out unless asked."""
    expected = captum.LayerGradCam(model, model.trunk).attribute(x, TARGET)
    torch.testing.assert_close(maps(model, x, "gradcam:relu=false"), expected)
    assert expected.min() < 0
    torch.testing.assert_close(maps(model, x, "gradcam"), expected.clamp(min=0))


def test_gradient(model: nn.Module, x: Tensor) -> None:
    expected = captum.Saliency(model).attribute(x, TARGET, abs=False)
    torch.testing.assert_close(record(model, x, TARGET, spec=model.spec, layers=(INPUT,)).gradient(INPUT), expected)
    torch.testing.assert_close(maps(model, x, "saliency:reduce=sum"), expected.sum(1, keepdim=True))


def test_convention_saliency_is_the_largest_absolute_value(model: nn.Module, x: Tensor) -> None:
    """Simonyan 2013, sec. 3.1; captum takes absolute values by default and leaves the channels apart."""
    expected = captum.Saliency(model).attribute(x, TARGET)
    torch.testing.assert_close(maps(model, x, "saliency"), expected.amax(1, keepdim=True))


def test_input_x_gradient(model: nn.Module, x: Tensor) -> None:
    expected = captum.InputXGradient(model).attribute(x, TARGET).sum(1, keepdim=True)
    torch.testing.assert_close(maps(model, x, "input-x-gradient"), expected)


def test_guided_backprop_on_resnet18() -> None:
    """In-place ReLUs, each module used twice: captum is exact there."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(weights=None).eval(), tiny.images(2, 48, 32)
    expected = captum.GuidedBackprop(model).attribute(x, TARGET)
    from xattn.inspection import infer_spec

    spec = infer_spec(model, input_size=(48, 32))
    torch.testing.assert_close(guided_gradient(record(model, x, TARGET, spec=spec)), expected, rtol=1e-5, atol=1e-7)
    found = explain(model, x, "guided-backprop", TARGET, spec=spec).maps
    torch.testing.assert_close(found, expected.abs().amax(1, keepdim=True), rtol=1e-5, atol=1e-7)


def test_convention_functional_relu_is_guided(x: Tensor) -> None:
    """captum hooks modules: with functional ReLUs it gives the plain gradient and says nothing."""
    functional, module = tiny.tiny_functional(), tiny.tiny_cnn()
    plain = captum.Saliency(functional).attribute(x, TARGET, abs=False)
    torch.testing.assert_close(captum.GuidedBackprop(functional).attribute(x, TARGET), plain)
    ours = guided_gradient(record(functional, x, TARGET, spec=functional.spec))
    torch.testing.assert_close(ours, captum.GuidedBackprop(module).attribute(x, TARGET))
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_guided_grad_cam(model: nn.Module, x: Tensor) -> None:
    expected = captum.GuidedGradCam(model, model.trunk).attribute(x, TARGET, interpolate_mode="bilinear")
    assert expected.abs().max() > 0
    torch.testing.assert_close(maps(model, x, "guided-gradcam"), expected.abs().amax(1, keepdim=True))
    torch.testing.assert_close(maps(model, x, "guided-gradcam:reduce=sum"), expected.sum(1, keepdim=True))


def test_convention_guided_grad_cam_is_upsampled_bilinearly(model: nn.Module, x: Tensor) -> None:
    """As in the paper, sec. 3.2; captum upsamples by the nearest cell unless asked."""
    nearest = captum.GuidedGradCam(model, model.trunk).attribute(x, TARGET).sum(1, keepdim=True)
    assert not torch.allclose(maps(model, x, "guided-gradcam:reduce=sum"), nearest, atol=1e-3)


# --- pytorch-grad-cam --------------------------------------------------------------------------------------------


def witness(name: str, model: nn.Module, x: Tensor, layer: str) -> np.ndarray:
    """What pytorch-grad-cam makes of a batch: rectified, min-max per image, resized, min-max again."""
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = tiny.tiny_cnn()  # a copy: it leaves gradients behind
    with getattr(library, name)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        return cam(input_tensor=x, targets=[ClassifierOutputTarget(int(t)) for t in TARGET])


def as_witnessed(found: Tensor, x: Tensor) -> np.ndarray:
    """The same steps on raw maps."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    height, width = x.shape[-2:]
    scaled = scale_cam_image(np.maximum(found[:, 0].numpy(), 0), (width, height))
    return scale_cam_image(scaled)


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
@pytest.mark.parametrize(
    ("name", "method"),
    [("GradCAM", "gradcam"), ("HiResCAM", "hirescam"), ("LayerCAM", "layercam"), ("XGradCAM", "xgradcam")],
)
def test_cams(model: nn.Module, x: Tensor, name: str, method: str, layer: str) -> None:
    expected = witness(name, model, x, layer)
    assert expected.max() > 0.5
    # 1e-4: it adds 1e-7 to the maximum and to the sum of the activations
    np.testing.assert_allclose(as_witnessed(maps(model, x, f"{method}:layer={layer}"), x), expected, atol=1e-4)


def test_convention_hires_cam_is_signed(model: nn.Module, x: Tensor) -> None:
    """The formula has no ReLU, and without it the map sums to logit - bias; pytorch-grad-cam rectifies every method."""
    found = maps(model, x, "hirescam")
    assert found.min() < 0
    logit = model(x).gather(1, TARGET[:, None])[:, 0] - model.fc.bias[TARGET]
    torch.testing.assert_close(found.sum((1, 2, 3)), logit.detach())
    torch.testing.assert_close(maps(model, x, "hirescam:relu=true"), found.clamp(min=0))


def test_convention_eigen_cam_is_not_centred(model: nn.Module, x: Tensor) -> None:
    """The paper takes the SVD of the features; pytorch-grad-cam subtracts their mean first and leaves the sign open."""
    expected = witness("EigenCAM", model, x, "trunk")
    centred = maps(model, x, "eigencam:center=true")
    for i in range(2):
        either = [as_witnessed(sign * centred[i : i + 1], x)[0] for sign in (1, -1)]
        assert min(np.abs(one - expected[i]).max() for one in either) < 1e-4
        assert np.abs(as_witnessed(maps(model, x, "eigencam"), x)[i] - expected[i]).max() > 0.05


def grad_cam_plus_plus_with(epsilon: float, features: Tensor, gradient: Tensor) -> Tensor:
    denominator = 2 * gradient**2 + features.sum((2, 3), keepdim=True) * gradient**3 + epsilon
    alpha = torch.where(gradient != 0, gradient**2 / denominator, torch.zeros(()))
    weights = (gradient.relu() * alpha).sum((2, 3), keepdim=True)
    return (weights * features).sum(1, keepdim=True).relu()


def test_convention_grad_cam_plus_plus_has_no_epsilon(model: nn.Module, x: Tensor) -> None:
    """pytorch-grad-cam adds 1e-6 to the denominator of eq. 19: with that it is reproduced, without it it is not.

    The larger the network, the smaller the gradients: at a hundredth of those of the tiny network it moves the map by
    more than 5 % of its maximum.
    """
    trace = record(model, x, TARGET, spec=model.spec, layers=("trunk",))
    features, gradient = trace.activation("trunk"), trace.gradient("trunk")
    expected = witness("GradCAMPlusPlus", model, x, "trunk")
    found = as_witnessed(grad_cam_plus_plus_with(1e-6, features, gradient), x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = as_witnessed(maps(model, x, "gradcam++"), x)
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert np.abs(found - expected).max() > 1e-3

    gradient = gradient * 1e-2
    library = pytest.importorskip("pytorch_grad_cam")
    cam: Any = library.GradCAMPlusPlus
    theirs = cam.get_cam_image(
        _Weights(cam), x, None, None, features.numpy().astype(np.float64), gradient.numpy().astype(np.float64), False
    )
    with_epsilon = grad_cam_plus_plus_with(1e-6, features.double(), gradient.double())
    np.testing.assert_allclose(np.maximum(theirs, 0), with_epsilon[:, 0].numpy(), rtol=1e-6, atol=1e-12)
    ours = grad_cam_plus_plus(features.double(), gradient.double())
    torch.testing.assert_close(ours, grad_cam_plus_plus_with(0, features.double(), gradient.double()))
    assert ((ours - with_epsilon).abs() / ours.amax()).max() > 0.05


class _Weights:
    """Just enough of the library's object for its formula."""

    def __init__(self, cam: Any) -> None:
        self.cam = cam

    def get_cam_weights(self, *args: Any) -> np.ndarray:
        return self.cam.get_cam_weights(self, *args)


def test_convention_xgrad_cam_masks_empty_channels() -> None:
    """pytorch-grad-cam adds 1e-7 to the sum, which blows a channel that sums to zero up; here it adds nothing."""
    features = torch.zeros(1, 2, 1, 2)
    features[0, 0] = torch.tensor([1.0, 3.0])
    features[0, 1] = torch.tensor([5.0, -5.0])
    gradient = torch.tensor([[[[1.0, 1.0]], [[1.0, -1.0]]]])
    torch.testing.assert_close(xgrad_cam(features, gradient), features[:, :1])
    library = pytest.importorskip("pytorch_grad_cam")
    weights = library.XGradCAM.get_cam_weights(None, None, None, None, features.numpy(), gradient.numpy())
    assert weights[0, 1] > 1e7


def test_eigen_cam_against_the_whole_svd() -> None:
    """Both Gram matrices: more channels than cells, and fewer."""
    for shape in ((2, 40, 3, 4), (2, 5, 6, 7)):
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for center in (False, True):
            rows = features.flatten(2).transpose(1, 2)
            rows = rows - rows.mean(1, keepdim=True) if center else rows
            u, s, _ = torch.linalg.svd(rows, full_matrices=False)
            expected = (u[..., 0] * s[:, :1]).reshape(shape[0], 1, *shape[2:])
            found = eigen_cam(features, center)
            torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-8, atol=1e-9)
