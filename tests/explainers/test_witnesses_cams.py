"""pytorch-grad-cam, torch-cam and scikit-learn beside the class activation maps, and where they differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.explainers.full_gradient import bias_of, full_gradient
from xattn.explaining import explain
from xattn.functional.components import factor_maps, strong_cells
from xattn.functional.resize import normalize
from xattn.spec import ModelSpec
from xattn.trace import record

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries warn on every call
TARGET = [2, 1]


class Fine(nn.Module):
    """No stride, so that the features have the size of the image and every way of upsampling leaves them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(8, tiny.CLASSES)
        self.spec = ModelSpec(feature_layer="features", classifier="fc", name="fine")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    return tiny.tiny_cnn()


@pytest.fixture
def x() -> Tensor:
    return tiny.images(2, 16, 24, seed=3)


def maps(model: nn.Module, x: Tensor, method: str) -> Tensor:
    return explain(model, x, method, TARGET, spec=model.spec).maps


def grad_cam_of(name: str, model: nn.Module, x: Tensor, layer: str, target: Callable[[int], Any] | None = None) -> Any:
    """What pytorch-grad-cam makes of a batch: rectified, min-max per image, resized, min-max again."""
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(library, name)(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        return cam(input_tensor=x, targets=[(target or ClassifierOutputTarget)(t) for t in TARGET])


def as_grad_cam(found: Tensor, x: Tensor) -> np.ndarray:
    """The same steps on raw maps."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    height, width = x.shape[-2:]
    return scale_cam_image(scale_cam_image(np.maximum(found[:, 0].numpy(), 0), (width, height)))


def torch_cam_of(name: str, model: nn.Module, x: Tensor, layer: str, **options: Any) -> Tensor:
    """What torch-cam makes of a batch: rectified, not scaled."""
    library = pytest.importorskip("torchcam.methods")
    with getattr(library, name)(model, layer, input_shape=tuple(x.shape[1:]), **options) as cam:
        scores = model(x)
        return cam(TARGET, scores, normalized=False)[0].detach()[:, None]


# --- Score-CAM -------------------------------------------------------------------------------------------------------


def test_score_cam_of_both() -> None:
    model, x = tiny.seeded(Fine), tiny.images(2, 8, 10)
    found = maps(model, x, "scorecam")
    torch.testing.assert_close(torch_cam_of("ScoreCAM", model, x, "features"), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_cam_of("ScoreCAM", model, x, "features"), as_grad_cam(found, x), atol=1e-4)


def test_convention_masks_are_scaled_after_upsampling(model: nn.Module, x: Tensor) -> None:
    """Eqs. 7 and 8: s(Up(A)).

    torch-cam scales before, so that bilinear masks end short of 0 and 1; pytorch-grad-cam upsamples with the corners
    aligned. On a coarse grid all three differ, if not by much.
    """
    found = maps(model, x, "scorecam")
    assert not torch.allclose(torch_cam_of("ScoreCAM", model, x, "trunk"), found, rtol=1e-3)
    theirs = grad_cam_of("ScoreCAM", tiny.tiny_cnn(), x, "trunk")
    assert 1e-4 < np.abs(theirs - as_grad_cam(found, x)).max() < 0.2


# --- Ablation-CAM ----------------------------------------------------------------------------------------------------


def test_ablation_cam(model: nn.Module, x: Tensor) -> None:
    expected = grad_cam_of("AblationCAM", tiny.tiny_cnn(), x, "trunk")
    for method in ("ablationcam", "ablationcam:relative=true"):  # both scores are positive
        np.testing.assert_allclose(as_grad_cam(maps(model, x, method), x), expected, atol=1e-4)


def test_convention_an_ablated_channel_is_zero(model: nn.Module, x: Tensor) -> None:
    """As in the paper; where features are negative somewhere pytorch-grad-cam sets them to the least of them - 1e7."""
    theirs = grad_cam_of("AblationCAM", tiny.tiny_cnn(), x, "conv3")
    ours = as_grad_cam(maps(model, x, "ablationcam:relative=true,layer=conv3"), x)
    assert np.abs(ours - theirs).max() > 0.3


# --- other gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
def test_element_wise(model: nn.Module, x: Tensor, layer: str) -> None:
    expected = grad_cam_of("GradCAMElementWise", tiny.tiny_cnn(), x, layer)
    np.testing.assert_allclose(
        as_grad_cam(maps(model, x, f"gradcam-elementwise:layer={layer}"), x), expected, atol=1e-4
    )


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
@pytest.mark.parametrize(("strength", "classes"), [(0.6, 3), (1.0, 1)])
def test_finer_cam(model: nn.Module, x: Tensor, layer: str, strength: float, classes: int) -> None:
    expected = torch_cam_of("FinerCAM", model, x, layer, gamma=strength, num_references=classes)
    found = maps(model, x, f"finercam:layer={layer},strength={strength},classes={classes}")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_convention_finer_cam_is_of_the_given_class_and_of_logits(model: nn.Module, x: Tensor) -> None:
    """pytorch-grad-cam weights the classes by their probability and differentiates through it too."""
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    def other(target: int) -> Any:
        distance = (logits[TARGET.index(target)] - logits[TARGET.index(target), target]).abs()
        return FinerWeightedTarget(target, distance.argsort()[1:4].tolist(), 0.6)

    logits = model(x).detach()
    theirs = grad_cam_of("GradCAM", tiny.tiny_cnn(), x, "trunk", other)
    assert np.abs(as_grad_cam(maps(model, x, "finercam"), x) - theirs).max() > 0.02


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
def test_shapley_cam(model: nn.Module, x: Tensor, layer: str) -> None:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST

    expected = grad_cam_of("ShapleyCAM", tiny.tiny_cnn(), x, layer, ClassifierOutputReST)
    np.testing.assert_allclose(as_grad_cam(maps(model, x, f"shapleycam:layer={layer}"), x), expected, atol=1e-4)


def test_smooth_grad_cam_plus_plus(model: nn.Module, x: Tensor) -> None:
    """Without noise, and where the gradient is the same in all cells; torch-cam adds 1e-8 to the denominator."""
    expected = torch_cam_of("SmoothGradCAMpp", model, x, "trunk", std=1e-9, num_samples=2)
    torch.testing.assert_close(maps(model, x, "smoothgradcam++:noise=0"), expected, rtol=1e-3, atol=1e-3)


def test_convention_smooth_grad_cam_sums_the_features_alone(model: nn.Module, x: Tensor) -> None:
    """(sum_ab A_ab) g_ij^3 as in eq. 19 of Grad-CAM++; torch-cam sums A g^3 over the cells, which is no eq. of it.

    It also takes ReLU(g) of the last noisy image alone, where the paper takes that of their mean.
    """
    expected = torch_cam_of("SmoothGradCAMpp", model, x, "conv3", std=1e-9, num_samples=1)
    found = maps(model, x, "smoothgradcam++:noise=0,layer=conv3")
    assert not torch.allclose(found, expected, rtol=0.05, atol=0.05)
    trace = record(model, x, TARGET, spec=model.spec, layers=("conv3",))
    features, g = trace.activation("conv3"), trace.gradient("conv3")
    alpha = g**2 / (2 * g**2 + (features * g**3).sum((2, 3), keepdim=True) + 1e-8)
    theirs = ((alpha * g.relu()).sum((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-4)


# --- components ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["trunk", "conv3"])
@pytest.mark.parametrize(("name", "method"), [("EigenGradCAM", "eigengradcam:center=true"), ("KPCA_CAM", "kpca-cam")])
def test_components_but_for_the_sign(model: nn.Module, x: Tensor, name: str, method: str, layer: str) -> None:
    """pytorch-grad-cam leaves the sign to the solver."""
    joint = "," if ":" in method else ":"
    expected = grad_cam_of(name, tiny.tiny_cnn(), x, layer)
    found = maps(model, x, f"{method}{joint}layer={layer}")
    for i in range(2):
        either = [as_grad_cam(sign * found[i : i + 1], x)[0] for sign in (1, -1)]
        assert min(np.abs(one - expected[i]).max() for one in either) < 1e-3


@pytest.mark.parametrize(("kernel", "gamma"), [("sigmoid", None), ("rbf", 0.3)])
def test_kernel_components_of_scikit_learn(model: nn.Module, x: Tensor, kernel: str, gamma: float | None) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    trace = record(model, x, TARGET, spec=model.spec, layers=("trunk",))
    found = maps(model, x, f"kpca-cam:kernel={kernel},gamma={gamma}").flatten(1).numpy()
    for i, features in enumerate(trace.activation("trunk").flatten(2).mT.double().numpy()):
        witness = decomposition.KernelPCA(1, kernel=kernel, gamma=gamma, eigen_solver="dense")
        expected = witness.fit_transform(features - features.mean(0))[:, 0]
        np.testing.assert_allclose(np.abs(found[i]), np.abs(expected), atol=1e-4)


def test_convention_fem_gives_the_mean_of_the_channel(model: nn.Module, x: Tensor) -> None:
    """pytorch-grad-cam weights the features by the share of cells that are strong, which is another map."""
    trace = record(model, x, TARGET, spec=model.spec, layers=("trunk",))
    features = trace.activation("trunk")
    mean, deviation = features.mean((2, 3), keepdim=True), features.std((2, 3), correction=0, keepdim=True)
    strong = (features > mean + 2 * deviation).float()
    torch.testing.assert_close(strong_cells(features), (strong * mean).sum(1, keepdim=True))
    expected = grad_cam_of("FEM", tiny.tiny_cnn(), x, "trunk")
    theirs = (strong.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True)
    np.testing.assert_allclose(as_grad_cam(theirs, x), expected, atol=1e-4)
    assert np.abs(as_grad_cam(maps(model, x, "fem"), x) - expected).max() > 0.1


def test_factors_of_scikit_learn() -> None:
    """The same minimum, found from another start: scikit-learn's best of some random ones."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = torch.rand(3, 6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = (features - 0.4).relu()
    found = factor_maps(features, 3, 500)
    for i in range(3):
        rows = features[i].flatten(1).T.numpy()
        best = None
        for seed in range(10):
            witness = decomposition.NMF(3, init="random", random_state=seed, max_iter=5000, tol=1e-12)
            u = witness.fit_transform(rows)
            if best is None or witness.reconstruction_err_ < best[0]:
                best = witness.reconstruction_err_, u * np.linalg.norm(witness.components_, axis=1)
        expected = best[1][:, np.argsort(-best[1].sum(0))].T
        np.testing.assert_allclose(found[i].flatten(1).numpy(), expected, atol=1e-3)


def test_convention_factors_are_of_one_image(x: Tensor) -> None:
    """pytorch-grad-cam, as the paper, factorizes the batch as a whole: a map depends on the images beside it."""
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.feature_factorization.deep_feature_factorization import dff

    features = record(tiny.tiny_cnn(), x, spec=tiny.tiny_cnn().spec, layers=("trunk",)).activation("trunk")
    together, alone = dff(features.numpy().copy(), 2)[1][0], dff(features[:1].numpy().copy(), 2)[1][0]
    assert np.abs(together / together.max() - alone / alone.max()).max() > 0.05
    torch.testing.assert_close(factor_maps(features)[:1], factor_maps(features[:1]))


# --- FullGrad --------------------------------------------------------------------------------------------------------


def test_convention_full_grad_scales_a_layer_as_a_whole(model: nn.Module, x: Tensor) -> None:
    """As in the code of the authors; pytorch-grad-cam stretches each channel to [0, 1], however little it adds.

    With that, the terms here give its map.
    """
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import scale_accross_batch_and_channels
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    witness = tiny.tiny_cnn()
    cam = library.FullGrad(model=witness, target_layers=[])
    expected = cam(input_tensor=x, targets=[ClassifierOutputTarget(t) for t in TARGET])
    biased = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) and m.bias is not None]
    for module, bias in zip(biased, cam.bias_data, strict=True):
        np.testing.assert_allclose(bias_of(module).detach().numpy(), bias, rtol=1e-5, atol=1e-6)

    terms: list[Tensor] = []
    full_gradient(record(model, x, TARGET, spec=model.spec), terms.append)
    size = (x.shape[-1], x.shape[-2])
    stretched = [scale_accross_batch_and_channels(t.abs().numpy(), size).sum(1) for t in terms if t.ndim == 4]
    np.testing.assert_allclose(normalize(torch.from_numpy(sum(stretched))).numpy(), expected, atol=1e-3)
    assert np.abs(normalize(maps(model, x, "fullgrad"))[:, 0].numpy() - expected).max() > 0.1
