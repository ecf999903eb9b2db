"""Edges of the formulas: what is undefined, tiny or huge, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from xattn.errors import ParameterError, ShapeError
from xattn.functional import cam

FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": cam.grad_cam,
    "grad_cam_plus_plus": cam.grad_cam_plus_plus,
    "hires_cam": cam.hires_cam,
    "xgrad_cam": cam.xgrad_cam,
    "layer_cam": cam.layer_cam,
    "activation_map": lambda f, g: cam.activation_map(f),
    "cam": lambda f, g: cam.cam(f, g.double().mean((2, 3))),
    "eigen_cam": lambda f, g: cam.eigen_cam(f),
    "eigen_cam centred": lambda f, g: cam.eigen_cam(f, True),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("what", ["zero features", "zero gradient", "one empty channel", "both zero"])
def test_never_nan(name: str, what: str) -> None:
    features, gradient = draw(2, 4, 3, 5).relu(), draw(2, 4, 3, 5, seed=1)
    if what in ("zero features", "both zero"):
        features = torch.zeros_like(features)
    if what in ("zero gradient", "both zero"):
        gradient = torch.zeros_like(gradient)
    if what == "one empty channel":
        features[:, 2] = 0
    found = FORMULAS[name](features, gradient)
    assert found.shape == (2, 1, 3, 5)
    assert bool(found.isfinite().all())
    if "zero" in what and name not in ("activation_map", "eigen_cam", "eigen_cam centred"):
        assert bool((found == 0).all())


@pytest.mark.parametrize("name", FORMULAS)
def test_nan_stays_in_its_image(name: str) -> None:
    features, gradient = draw(3, 4, 3, 5).relu(), draw(3, 4, 3, 5, seed=1)
    clean = FORMULAS[name](features, gradient)
    features[1, 2, 0, 0] = torch.nan
    found = FORMULAS[name](features, gradient)
    assert bool(found[1].isnan().any())
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_inside_autocast(name: str, dtype: torch.dtype) -> None:
    features, gradient = draw(2, 8, 3, 5).relu(), draw(2, 8, 3, 5, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FORMULAS[name](features, gradient)
    assert torch.equal(inside, FORMULAS[name](features, gradient))
    halves = features.to(dtype), gradient.to(dtype)
    found = FORMULAS[name](*halves)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, FORMULAS[name](halves[0].float(), halves[1].float()), rtol=1e-6, atol=1e-6)
    assert FORMULAS[name](features.double(), gradient.double()).dtype == torch.float64


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12])
def test_grad_cam_plus_plus_at_any_scale(size: float) -> None:
    """g^2 and g^3 leave float32 at these sizes; the quotient of eq. 19 does not."""
    features, gradient = draw(2, 4, 3, 5).relu(), draw(2, 4, 3, 5, seed=1)
    found = cam.grad_cam_plus_plus(features, gradient * size)
    exact = cam.grad_cam_plus_plus(features.double(), gradient.double() * size)
    assert bool((found > 0).any())
    torch.testing.assert_close(found.double() / exact.amax(), exact / exact.amax(), rtol=1e-5, atol=1e-6)


def test_grad_cam_plus_plus_by_hand() -> None:
    """One channel, two cells: A = (1, 2), g = (1, -1). Sum 3, alpha = 1 / (2 + 3) at the first, w = 0.2."""
    features, gradient = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, -1.0]]]])
    torch.testing.assert_close(cam.grad_cam_plus_plus(features, gradient), torch.tensor([[[[0.2, 0.4]]]]))


def test_grad_cam_plus_plus_masks_a_zero_denominator() -> None:
    """Signed features that sum to -2 with g = 1: 2 + (-2) 1 = 0."""
    features, gradient = torch.tensor([[[[1.0, -3.0]]]]), torch.tensor([[[[1.0, 0.5]]]])
    # the second cell: alpha = 1 / (2 - 1) = 1, w = 0.5
    torch.testing.assert_close(cam.grad_cam_plus_plus(features, gradient), torch.tensor([[[[0.5, 0.0]]]]))


def test_eigen_cam_of_huge_and_tiny_features() -> None:
    features = draw(1, 6, 3, 5).relu()
    expected = cam.eigen_cam(features.double())
    for size in (1e-22, 1e22):  # their squares leave float32
        torch.testing.assert_close(cam.eigen_cam(features * size).double() / size, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_eigen_cam_makes_active_cells_high(center: bool) -> None:
    """Whatever sign the solver returns: features and their images under an orthogonal change of channels agree."""
    features = draw(4, 6, 5, 5).relu()
    turn = torch.linalg.qr(draw(6, 6, seed=2))[0]
    turned = torch.einsum("dc,nchw->ndhw", turn, features)
    found = cam.eigen_cam(features, center)
    torch.testing.assert_close(cam.eigen_cam(turned, center), found, rtol=1e-4, atol=1e-5)
    norm = cam.activation_map(features)
    assert bool(((found * norm).sum((1, 2, 3)) >= 0).all())
    if not center:
        assert bool((found >= -1e-5).all())  # non-negative features have a non-negative first vector


def test_one_linear_layer_makes_four_methods_one() -> None:
    """The gradient is constant over the cells there: CAM / cells = Grad-CAM = HiResCAM = XGrad-CAM, before ReLU."""
    features, weight = draw(2, 4, 3, 5).relu(), draw(2, 4, seed=1)
    gradient = (weight / 15)[:, :, None, None].expand_as(features)
    expected = cam.cam(features, weight) / 15
    torch.testing.assert_close(cam.grad_cam(features, gradient, relu=False), expected)
    torch.testing.assert_close(cam.hires_cam(features, gradient), expected)
    torch.testing.assert_close(cam.xgrad_cam(features, gradient, relu=False), expected)


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "hires_cam", "xgrad_cam", "layer_cam"])
def test_shapes_that_do_not_fit(name: str) -> None:
    with pytest.raises(ShapeError, match=f"{name}: features and gradient"):
        FORMULAS[name](draw(2, 4, 3, 5), draw(2, 4, 3, 6))
    with pytest.raises(ShapeError, match=rf"{name}: expected features \(N, C, h, w\)"):
        FORMULAS[name](draw(2, 4, 3), draw(2, 4, 3))


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="one classifier row per image"):
        cam.cam(draw(2, 4, 3, 5), draw(1, 4))
    with pytest.raises(ParameterError, match="norm, squared_norm, mean"):
        cam.activation_map(draw(2, 4, 3, 5), "sum")
