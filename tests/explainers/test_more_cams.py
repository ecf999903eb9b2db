"""Identities between class activation maps, completeness of FullGrad, and maps on the tokens of a transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.explainers import resolve
from xattn.explainers.full_gradient import bias_of, full_gradient
from xattn.explaining import explain
from xattn.functional.cam import eigen_cam, grad_cam_plus_plus, smooth_grad_cam_plus_plus
from xattn.functional.components import eigen_grad_cam, factor_maps, kernel_cam, strong_cells
from xattn.inspection import infer_spec
from xattn.trace import Trace, record


def maps(model: nn.Module, x: Tensor, method: str, target: Any = 1, **options: Any) -> Tensor:
    return explain(model, x, method, target, spec=model.spec, **options).maps


def alike(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.fixture
def model() -> nn.Module:
    return tiny.tiny_cnn()


@pytest.fixture
def x() -> Tensor:
    return tiny.images(2, 16, 24, seed=3)


# --- what a method becomes in a special case -------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
@pytest.mark.parametrize(
    ("method", "same"),
    [
        ("finercam:strength=0", "gradcam"),
        ("shapleycam:utility=score", "gradcam"),  # a logit is piecewise linear in the features
        ("smoothgradcam++:noise=0,samples=2", "gradcam++"),
    ],
)
def test_special_cases(model: nn.Module, x: Tensor, method: str, same: str, layer: str) -> None:
    joint = "," if ":" in method else ":"
    found = maps(model, x, f"{method}{joint}layer={layer}", [2, 1])
    torch.testing.assert_close(found, maps(model, x, f"{same}:layer={layer}", [2, 1]))


def test_element_wise_behind_a_relu_is_layer_cam(model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(maps(model, x, "gradcam-elementwise"), maps(model, x, "layercam"))
    signed = maps(model, x, "gradcam-elementwise:layer=conv3")
    assert alike(signed, maps(model, x, "layercam:layer=conv3")) < 0.99


def test_finer_cam_against_the_runner_up_is_grad_cam_of_the_margin(model: nn.Module, x: Tensor) -> None:
    found = maps(model, x, "finercam:strength=1,classes=1", None)
    torch.testing.assert_close(found, maps(model, x, "gradcam", None, score="margin"))


def test_finer_cam_compares_with_the_nearest_classes(model: nn.Module, x: Tensor) -> None:
    (method,) = resolve("finercam:classes=2")
    trace = record(model, x, [2, 1], spec=model.spec, layers=("trunk",))
    for row, target, others in zip(trace.logits.tolist(), [2, 1], method.similar(trace).tolist(), strict=True):
        nearest = sorted((k for k in range(5) if k != target), key=lambda k: abs(row[k] - row[target]))[:2]
        assert others == nearest


def test_smooth_grad_cam_does_not_underflow() -> None:
    """alpha is a ratio: with gradients of 1e-25, whose squares float32 cannot hold, it is what float64 says."""
    generator = torch.Generator().manual_seed(0)
    features, gradients = torch.rand(2, 3, 4, 5, generator=generator), torch.randn(3, 2, 3, 4, 5, generator=generator)
    gradients = [gradient * 1e-25 for gradient in gradients]
    expected = smooth_grad_cam_plus_plus(features.double(), [gradient.double() for gradient in gradients])
    torch.testing.assert_close(smooth_grad_cam_plus_plus(features, gradients).double() * 1e25, expected * 1e25)
    one = smooth_grad_cam_plus_plus(features, gradients[:1])
    torch.testing.assert_close(one * 1e25, grad_cam_plus_plus(features, gradients[0]) * 1e25)


def test_noise_is_of_the_image_alone(model: nn.Module, x: Tensor) -> None:
    first = maps(model, x, "smoothgradcam++:layer=conv3,samples=2", seeds=[1, 2])
    assert not torch.allclose(first, maps(model, x, "smoothgradcam++:layer=conv3,samples=2", seeds=[3, 4]))
    swapped = maps(model, x.flip(0), "smoothgradcam++:layer=conv3,samples=2", seeds=[2, 1])
    torch.testing.assert_close(swapped.flip(0), first)


def test_a_small_kernel_is_the_principal_component(model: nn.Module, x: Tensor) -> None:
    """tanh(g a.b + 1) and exp(-g |a - b|^2) are linear in a.b where g is small, once centred."""
    features = record(model, x.double(), spec=model.double().spec, layers=("trunk",)).activation("trunk")
    expected = eigen_cam(features, center=True)
    for kernel in ("sigmoid", "rbf"):
        found = kernel_cam(features, kernel, 1e-6)
        for i in range(2):
            assert abs(alike(found[i], expected[i])) > 0.9999


def test_eigen_grad_cam_points_to_the_class() -> None:
    """The sign is that of the evidence, also where the strongest cells speak against the class."""
    features, gradient = torch.ones(1, 2, 1, 3), torch.tensor([[[[-1.0, -9.0, 2.0]], [[-1.0, -9.0, 2.0]]]])
    found = eigen_grad_cam(features, gradient)[0, 0, 0]
    torch.testing.assert_close(found, torch.tensor([-1.0, -9.0, 2.0]) * 2**0.5)


# --- deep feature factorization --------------------------------------------------------------------------------------


def test_factors_are_found_in_order_of_activity() -> None:
    """Two patterns of channels on regions of their own: the factors are the regions, the more active one first."""
    features = torch.zeros(2, 6, 4, 4)
    features[0, :3, :, :1] = torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    features[0, 3:, :, 1:] = torch.tensor([3.0, 1.0, 1.0])[:, None, None]
    features[1, :3] = 9 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    first, second = factor_maps(features, 2)[0]
    torch.testing.assert_close(first, features[0, 3:].norm(dim=0))
    torch.testing.assert_close(second, features[0, :3].norm(dim=0))
    first, second = factor_maps(features, 2)[1]  # one pattern: nothing is left for another factor
    torch.testing.assert_close(first + second, features[1].norm(dim=0))


def test_parts_of_dff(model: nn.Module, x: Tensor) -> None:
    found = explain(model, x, "dff:parts=4", 1)
    assert found.parts is not None
    assert found.parts.shape == (2, 4, 4, 6)
    assert found.parts.min() >= 0
    activity = found.parts.sum((2, 3))
    assert (activity[:, :-1] >= activity[:, 1:]).all()
    torch.testing.assert_close(found.maps, found.parts.mean(1, keepdim=True))
    signed = explain(model, x, "dff:layer=conv3", 1).parts
    assert signed is not None
    assert signed.min() >= 0  # negative features are cut


def test_one_factor_is_the_first_singular_vector() -> None:
    """Of a positive matrix it is the best non-negative one; with more updates the map comes closer to it."""
    features = torch.rand(1, 5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, _ = torch.linalg.svd(features.flatten(2)[0].T, full_matrices=False)
    best = (u[:, 0].abs() * s[0]).reshape(3, 4)
    errors = [(factor_maps(features, 1, n)[0, 0] - best).norm().item() for n in (1, 2, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


# --- FullGrad --------------------------------------------------------------------------------------------------------


def sums(model: nn.Module, x: Tensor, target: int = 1, **options: Any) -> tuple[Trace, Tensor, Tensor]:
    terms: list[Tensor] = []
    trace = record(model, x, target, spec=infer_spec(model, input_size=x.shape[-2:]), **options)
    error = full_gradient(trace, terms.append)
    return trace, torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0), error


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "squeezenet1_1", "googlenet"])
def test_all_terms_add_up_to_the_logit(name: str) -> None:
    """In-place and reused ReLUs, max pooling, dropout, concatenation; GoogLeNet has heads that do not run."""
    torchvision = pytest.importorskip("torchvision")
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.bias, -0.1, 0.1)
    trace, total, error = sums(model.double().eval(), tiny.images(1, 64, 64).double())
    torch.testing.assert_close(total, trace.logits[:, 1], rtol=1e-9, atol=1e-9)
    assert error.max() < 1e-9
    assert (trace.forwards, trace.backwards) == (2, 1)


@pytest.mark.parametrize("score", ["margin", "prob"])
def test_terms_of_other_scores(model: nn.Module, x: Tensor, score: str) -> None:
    """A score that is linear in the logits is split as they are; of another its slope is."""
    model, x = model.double(), x.double()
    trace, total, error = sums(model, x, score=score)
    logits = trace.logits.clone().requires_grad_()
    values = trace.score_fn(logits, trace.target)
    slope = torch.autograd.grad(values.sum(), logits)[0]
    torch.testing.assert_close(total, (slope * trace.logits).sum(1))
    if score == "margin":
        torch.testing.assert_close(total, values.detach())
    assert error.max() < 1e-9


class Twice(nn.Module):
    """A convolution that runs twice, and a norm without running means beside the ones with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, 1, 1)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(F.relu(self.conv(x))))).mean((2, 3)))


def test_a_layer_that_runs_twice_counts_twice(x: Tensor) -> None:
    model = tiny.seeded(Twice).double()
    trace, total, error = sums(model, x.double())
    torch.testing.assert_close(total, trace.logits[:, 1])
    assert error.max() < 1e-9


def test_full_grad_refuses_what_it_cannot_split(x: Tensor) -> None:
    with pytest.raises(NotApplicableError, match=r"TinyCNN by \d+%: it has activations other than ReLU"):
        maps(tiny.tiny_gelu(), x, "fullgrad")
    with pytest.raises(NotApplicableError, match="attention"):
        maps(tiny.tiny_bcnn(), x, "fullgrad")


def test_full_grad_takes_a_layer_without_gradient_as_nothing() -> None:
    """A dead network has nothing to divide by; it adds zero and no NaN."""
    model = tiny.tiny_cnn()
    with torch.no_grad():
        model.fc.weight.zero_()
    with pytest.warns(UserWarning, match="all-zero"):
        found = maps(model, tiny.images(1), "fullgrad")
    assert (found == 0).all()


def test_bias_of_a_norm_without_weights() -> None:
    norm = nn.BatchNorm2d(2, affine=False).eval()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    torch.testing.assert_close(bias_of(norm), norm(torch.zeros(1, 2, 1, 1)).flatten())
    assert bias_of(nn.BatchNorm2d(2, track_running_stats=False)) is None
    assert bias_of(nn.Conv2d(2, 2, 1, bias=False)) is None


# --- tokens ----------------------------------------------------------------------------------------------------------

OF_ONE_LAYER = [
    "scorecam", "ablationcam", "eigengradcam", "kpca-cam", "fem", "dff", "finercam", "shapleycam", "smoothgradcam++",
    "gradcam-elementwise",
]  # fmt: skip


def transformer(library: str) -> nn.Module:
    size = {"num_classes": 5, "depth": 2, "num_heads": 2, "embed_dim": 24, "patch_size": 8}
    if library == "timm":
        timm = pytest.importorskip("timm")
        model = timm.models.vision_transformer.VisionTransformer(img_size=(16, 32), reg_tokens=2, **size)
    elif library == "swin":
        timm = pytest.importorskip("timm")
        model = timm.models.swin_transformer.SwinTransformer(
            img_size=(32, 64), patch_size=4, depths=(1, 1), num_heads=(2, 2), embed_dim=12, window_size=4, num_classes=5
        )
    else:
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)
        nn.init.normal_(model.heads.head.weight)  # zero at first
    return model.eval()


@pytest.mark.parametrize("library", ["timm", "torchvision", "swin"])
def test_token_grids(library: str) -> None:
    """Grids that are not square, register tokens, tokens in the last dimension, and fused attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformer(library)
    size, grid = {"timm": ((16, 32), (2, 4)), "torchvision": ((32, 32), (4, 4)), "swin": ((32, 64), (4, 8))}[library]
    model.spec = infer_spec(model, input_size=size)
    x = tiny.images(2, *size)
    for found in explain(model, x, OF_ONE_LAYER, 1):
        assert found.maps.shape == (2, 1, *grid), found
        alone = explain(model, x[:1], found.method, 1).maps
        torch.testing.assert_close(found.maps[:1], alone, rtol=1e-3, atol=1e-5)
    with pytest.raises(NotApplicableError, match="attention"):
        maps(model, x, "fullgrad")


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "dff:parts=0", "dff:iterations=0", "finercam:classes=0", "kpca-cam:gamma=-1", "smoothgradcam++:samples=0",
        "smoothgradcam++:noise=-1",
    ],
)  # fmt: skip
def test_parameters_that_cannot_be(method: str) -> None:
    with pytest.raises(ParameterError, match="must"):
        resolve(method)


def test_formulas_refuse_what_does_not_fit() -> None:
    features = torch.rand(1, 3, 2, 2)
    with pytest.raises(ShapeError, match="same layer"):
        eigen_grad_cam(features, features[:, :2])
    with pytest.raises(ParameterError, match="sigmoid, rbf"):
        kernel_cam(features, "linear")
    assert strong_cells(features.half(), 0.0).dtype == torch.float32
