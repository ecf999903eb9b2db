"""captum as a second witness of the methods that run the model many times, and the places where it goes another way.

Its random numbers come from global generators, so that what it draws cannot be given to it; there both are run with
many draws, and the maps compared by correlation.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from tests.laws.test_explainer_laws import alike
from xattn.explainers.integrated import drawn_baselines
from xattn.explaining import explain
from xattn.functional.sampling import grid_segments, lime_weights
from xattn.spec import ModelSpec
from xattn.trace import record

captum = pytest.importorskip("captum.attr")

pytestmark = pytest.mark.filterwarnings("ignore")
TARGET = torch.tensor([2, 1])
LABELS = grid_segments((16, 24), 6)[None, None]


class Separate(nn.Module):
    """A module for each activation, and a linear layer between any two: what captum's DeepLIFT can treat.

    Args:
        between: what is between the ReLU and the pooling.
    """

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), between, nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip
        self.spec = ModelSpec(feature_layer="net.4", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture
def model() -> nn.Module:
    return tiny.tiny_cnn()


@pytest.fixture
def x() -> Tensor:
    return tiny.images(2, 16, 24, seed=3)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def maps(model: nn.Module, x: Tensor, method: str, **options: Any) -> Tensor:
    return explain(model, x, method, TARGET, spec=model.spec, **options).maps


def black(model: nn.Module, x: Tensor) -> Tensor:
    mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (model.spec.mean, model.spec.std))
    return (-mean / std).expand_as(x)


def summed(attribution: Tensor) -> Tensor:
    return attribution.sum(1, keepdim=True).detach()


# --- paths and noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "theirs"), [("midpoint", "riemann_middle"), ("gauss-legendre", "gausslegendre")])
def test_integrated_gradients(model: nn.Module, x: Tensor, rule: str, theirs: str) -> None:
    expected = captum.IntegratedGradients(model).attribute(x, black(model, x), TARGET, method=theirs, n_steps=20)
    torch.testing.assert_close(maps(model, x, f"ig:steps=20,rule={rule}"), summed(expected))


def test_convention_black_is_black(model: nn.Module, x: Tensor) -> None:
    """captum's default baseline is zero in the model's space: the mean colour, here `baseline=mean`."""
    expected = captum.IntegratedGradients(model).attribute(x, target=TARGET, method="riemann_middle", n_steps=20)
    torch.testing.assert_close(maps(model, x, "ig:steps=20,baseline=mean"), summed(expected))
    assert alike(maps(model, x, "ig:steps=20"), summed(expected)) < 0.9


@pytest.mark.parametrize(
    ("method", "kind"), [("smoothgrad", "smoothgrad"), ("smoothgrad-squared", "smoothgrad_sq"), ("vargrad", "vargrad")]
)
def test_noise_tunnel(model: nn.Module, x: Tensor, method: str, kind: str) -> None:
    """Of gradients with their signs; captum's deviation is a number, ours a share of the range of each image."""
    tunnel = captum.NoiseTunnel(captum.Saliency(model))
    found = maps(model, x, f"{method}:samples=600,noise=0.2")
    for i in range(2):
        sigma = 0.2 * float(x[i].max() - x[i].min())
        expected = tunnel.attribute(
            x[i : i + 1], nt_type=kind, nt_samples=600, stdevs=sigma, target=int(TARGET[i]), abs=False
        ).abs()
        assert alike(found[i : i + 1], expected.amax(1, keepdim=True)) > 0.9


def test_convention_signs_are_kept_until_the_mean(model: nn.Module, x: Tensor) -> None:
    """captum's `Saliency` takes absolute values by itself, so that its SmoothGrad is another one."""
    sigma = float(x[0].max() - x[0].min())
    theirs = captum.NoiseTunnel(captum.Saliency(model)).attribute(
        x[:1], nt_samples=600, stdevs=sigma, target=int(TARGET[0])
    )
    ours = maps(model, x, "smoothgrad:samples=600,noise=1")[:1]
    assert theirs.amax(1).mean() > 1.5 * ours.mean()


def test_gradient_shap(model: nn.Module, x: Tensor) -> None:
    """With one baseline both are integrated gradients at random places."""
    expected = captum.GradientShap(model).attribute(x, black(model, x)[:1], n_samples=400, target=TARGET)
    found = maps(model, x, "gradient-shap:baseline=black,samples=400")
    assert alike(found, summed(expected)) > 0.97


def test_deeplift() -> None:
    model, x = tiny.seeded(lambda: Separate(nn.Conv2d(6, 6, 1))), tiny.images(2, 16, 24, seed=3)
    expected = captum.DeepLift(model).attribute(x, black(model, x), TARGET)
    torch.testing.assert_close(maps(model, x, "deeplift"), summed(expected))


def test_deeplift_shap() -> None:
    model, x = tiny.seeded(lambda: Separate(nn.Conv2d(6, 6, 1))), tiny.images(2, 16, 24, seed=3)
    trace = record(model, x, TARGET, spec=model.spec)
    own = torch.tensor([0, 0, 0, 1, 1, 1])
    baselines = drawn_baselines(trace, "deeplift-shap", "noise")(own)
    found = maps(model, x, "deeplift-shap:samples=3")
    for i in range(2):
        expected = captum.DeepLiftShap(model).attribute(x[i : i + 1], baselines[own == i], int(TARGET[i]))
        torch.testing.assert_close(found[i : i + 1], summed(expected))


def test_convention_deeplift_of_pooled_relus() -> None:
    """Where a pooling follows a ReLU directly, as in VGG, captum's sum is off."""
    model, x = tiny.seeded(lambda: Separate(nn.Identity())), tiny.images(2, 16, 24, seed=3)
    difference = (model(x) - model(black(model, x)))[[0, 1], TARGET].detach()
    theirs = captum.DeepLift(model).attribute(x, black(model, x), TARGET).sum((1, 2, 3))
    assert ((theirs - difference).abs() > 0.03 * difference.abs()).all()
    torch.testing.assert_close(maps(model, x, "deeplift").sum((1, 2, 3)), difference)


def test_convention_deeplift_of_reused_and_of_functional_relus(model: nn.Module, x: Tensor) -> None:
    """captum refuses the one, and for the other gives the gradient times the difference without a word."""
    with pytest.raises((RuntimeError, AssertionError)):
        captum.DeepLift(model).attribute(x, black(model, x), TARGET)
    functional = tiny.tiny_functional()
    theirs = captum.DeepLift(functional).attribute(x, black(functional, x), TARGET)
    plain = captum.InputXGradient(functional).attribute(x, TARGET) / x * (x - black(functional, x))
    torch.testing.assert_close(theirs, plain, rtol=1e-3, atol=1e-5)
    ours = maps(functional, x, "deeplift")
    torch.testing.assert_close(ours, maps(model, x, "deeplift"))
    difference = (functional(x) - functional(black(functional, x)))[[0, 1], TARGET].detach()
    torch.testing.assert_close(ours.sum((1, 2, 3)), difference)
    assert ((theirs.sum((1, 2, 3)) - difference).abs() > 0.1 * difference.abs()).any()


def test_convention_deeplift_of_networks_with_layer_norm() -> None:
    """As ConvNeXt: captum has no rule for GELU and layer norm, and its sum is wrong without a word."""
    model, x = tiny.tiny_normed_pool(), tiny.images(2)
    difference = (model(x) - model(black(model, x)))[[0, 1], TARGET].detach()
    theirs = captum.DeepLift(model).attribute(x, black(model, x), TARGET).sum((1, 2, 3))
    assert ((theirs - difference).abs() > 0.1 * difference.abs()).all()
    torch.testing.assert_close(maps(model, x, "deeplift").sum((1, 2, 3)), difference)


# --- hiding ------------------------------------------------------------------------------------------------------


def test_occlusion(model: nn.Module, x: Tensor) -> None:
    """With windows that end at the border, so that there is none that captum cuts off."""
    expected = captum.Occlusion(model).attribute(x, (3, 4, 4), (3, 2, 2), target=TARGET, baselines=black(model, x))
    torch.testing.assert_close(maps(model, x, "occlusion:window=0.25,baseline=black"), expected[:, :1])


def test_convention_windows_at_the_border_are_whole(model: nn.Module, x: Tensor) -> None:
    """captum cuts the last window off: a strip of one pixel is hidden there, and shown as if it were a window."""
    expected = captum.Occlusion(model).attribute(x, (3, 5, 5), (3, 5, 5), target=TARGET)[:, :1]
    found = maps(model, x, "occlusion:window=0.3125,stride=1")
    torch.testing.assert_close(found[:, :, :10, :15], expected[:, :, :10, :15])
    assert (found[:, :, -1] - expected[:, :, -1]).abs().max() > 1e-3


def test_feature_ablation(model: nn.Module, x: Tensor) -> None:
    expected = captum.FeatureAblation(model).attribute(x, target=TARGET, feature_mask=LABELS)
    found = maps(model, x, "feature-ablation:segments=grid,count=6")
    torch.testing.assert_close(found, expected[:, :1])


def test_shapley_values(model: nn.Module, x: Tensor) -> None:
    """All orders; and of six segments all coalitions, against captum's own two approximations."""
    labels = grid_segments((16, 24), 4)[None, None]
    exact = captum.ShapleyValues(model).attribute(x, target=TARGET, feature_mask=labels)[:, :1]
    for method in ("shapley-sampling:samples=24", "kernel-shap"):
        found = maps(
            model, x, f"{method},segments=grid,count=4" if ":" in method else f"{method}:segments=grid,count=4"
        )
        torch.testing.assert_close(found, exact)
    exact = maps(model, x, "kernel-shap:segments=grid,count=6")
    drawn = captum.ShapleyValueSampling(model).attribute(x, target=TARGET, feature_mask=LABELS, n_samples=150)
    assert alike(exact, drawn[:, :1]) > 0.99
    for i in range(2):
        fitted = captum.KernelShap(model).attribute(
            x[i : i + 1], target=int(TARGET[i]), feature_mask=LABELS, n_samples=600, perturbations_per_eval=100
        )
        assert alike(exact[i : i + 1], fitted[:, :1]) > 0.99


def test_lime(model: nn.Module, x: Tensor) -> None:
    """With the nearness of segments, not of pixels, which is captum's, and with its ridge regression."""
    from captum._utils.models.linear_model import SkLearnRidge

    def nearness(original: Tensor, changed: Tensor, kept: Tensor, **_: Any) -> Tensor:
        return lime_weights(kept.bool(), 0.25)

    found = maps(model, x, "lime:samples=2000,segments=grid,count=6")
    for i in range(2):
        expected = captum.Lime(model, SkLearnRidge(alpha=1.0), nearness).attribute(
            x[i : i + 1], target=int(TARGET[i]), feature_mask=LABELS, n_samples=2000, perturbations_per_eval=100
        )
        assert alike(found[i : i + 1], expected[:, :1]) > 0.99
        assert math.isclose(float(found[i].std()), float(expected[:, :1].std()), rel_tol=0.15)
