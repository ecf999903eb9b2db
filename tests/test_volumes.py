"""Volumes (N, C, D, H, W): maps against a float64 reference, boxes that hide, the middle slices, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import xattn
from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.explainers import explainers
from xattn.functional import volume
from xattn.storage import save_explanation

SIZE = (8, 16, 12)


def network(channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(channels, 6, 3, 2, 1), nn.ReLU(), nn.Conv3d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(3))


class Place(nn.Module):
    """The sum over one octant of the volume."""

    def forward(self, x: Tensor) -> Tensor:
        inside = x[:, :, : SIZE[0] // 2, SIZE[1] // 2 :, : SIZE[2] // 2].mean((1, 2, 3, 4))
        return torch.stack([inside, -inside], dim=1)


def test_gradients_and_cams_are_those_of_a_reference(x: Tensor) -> None:
    model = network()
    spec = xattn.infer_spec(model, x)
    assert spec.feature_layer == "3"
    assert spec.input_size == SIZE[1:]
    saliency, cam, ixg = xattn.explain(model, x, ["saliency", "gradcam:relu=false", "input-x-gradient"], 1, spec=spec)
    twin, wide = network().double(), x.double().requires_grad_()
    features = twin[:4](wide)
    features.retain_grad()
    twin[4:](features)[:, 1].sum().backward()
    gradient, map_gradient = wide.grad, features.grad
    assert gradient is not None
    assert map_gradient is not None
    torch.testing.assert_close(saliency.maps.double(), gradient.abs().amax(1, keepdim=True), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ixg.maps.double(), (gradient * x.double()).sum(1, keepdim=True), rtol=1e-4, atol=1e-7)
    weights = map_gradient.mean((2, 3, 4), keepdim=True)
    wanted = (weights * features).sum(1, keepdim=True).detach()
    assert cam.maps.shape == (2, 1, 2, 4, 3)
    torch.testing.assert_close(cam.maps.double(), wanted, rtol=1e-4, atol=1e-7)
    assert cam.input_size == SIZE[1:]
    assert cam.status == saliency.status == ("ok", "ok")
    assert cam.resized().shape == (2, 1, *SIZE)


@pytest.mark.parametrize("method", ["occlusion", "rise:samples=400,cells=4", "feature-ablation:count=27",
                                    "kernel-shap:samples=80,count=27", "lime:samples=80,count=27",
                                    "shapley-sampling:samples=2,count=27"])  # fmt: skip
def test_what_hides_boxes_finds_the_octant(method: str) -> None:
    x = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1)) + 1
    explanation = xattn.explain(Place(), x, f"{method}{',' if ':' in method else ':'}baseline=black", 0)
    assert explanation.maps.shape[2:] == SIZE
    octants = nn.functional.avg_pool3d(explanation.resized(), [n // 2 for n in SIZE]).flatten(1)
    assert octants.argmax(1).tolist() == [2, 2]  # front, lower, left
    assert explanation.status == ("ok", "ok")


@pytest.mark.parametrize("name", list(explainers))
def test_every_method_gives_maps_of_three_dimensions_or_refuses_in_one_line(name: str, x: Tensor) -> None:
    model = network()
    spec = xattn.infer_spec(model, x)
    quick = {"rise": ":samples=8", "lime": ":samples=8,count=4", "kernel-shap": ":samples=8,count=4",
             "shapley-sampling": ":samples=1,count=4", "feature-ablation": ":count=4", "guided-ig": ":steps=4",
             "integrated-gradients": ":steps=4", "gradient-shap": ":samples=2", "smoothgrad": ":samples=2",
             "smoothgrad-squared": ":samples=2", "vargrad": ":samples=2", "smoothgradcam++": ":samples=2",
             "occlusion": ":window=0.5"}  # fmt: skip
    method = explainers.parse(name + quick.get(name, ""))
    if not method.volumes:
        with pytest.raises(NotApplicableError) as told:
            xattn.explain(model, x, method, 1, spec=spec)
        assert "\n" not in str(told.value)
        return
    whole = xattn.explain(model, x, method, 1, spec=spec, seeds=[1, 2])
    assert whole.maps.shape[:2] == (2, 1)
    assert whole.maps.ndim == 5
    one = xattn.explain(model, x[1:], method, 1, spec=spec, seeds=[2])
    torch.testing.assert_close(one.maps, whole.maps[1:], rtol=1e-3, atol=1e-5)


def test_refusals_say_what_works_and_it_does(x: Tensor) -> None:
    model = network()
    with pytest.raises(NotApplicableError, match=r"scorecam: is not defined for volumes .* use gradcam, saliency, int"):
        xattn.explain(model, x, "scorecam")
    named = ["gradcam", "saliency", "integrated-gradients", "occlusion:window=0.5", "rise:samples=4"]
    assert [len(e.maps.shape) for e in xattn.explain(model, x, named)] == [5] * 5
    every = xattn.explain(model, x[:1], "all", 1)
    assert {e.method.name for e in every} >= {"gradcam", "saliency", "brnpa", "rise"}
    with pytest.raises(NotApplicableError, match=r"baseline 'blur' is not defined for volumes; use mean, black or noi"):
        xattn.explain(model, x, "occlusion:baseline=blur")
    with pytest.raises(NotApplicableError, match=r"x has 3 channels and its 3-D convolutions take 2, 6;"):
        xattn.explain(model, torch.cat([x, x[:, :1]], 1), "saliency")
    with pytest.raises(ShapeError, match=r"takes images of 2 channels but x has 6, shape \(1, 6, 8, 16, 12\)"):
        xattn.explain(model, torch.cat([x] * 3, 1)[:1], "saliency", spec=xattn.ModelSpec(feature_layer="3"))
    with pytest.raises(ParameterError, match=r"explanations of volumes have no file format; torch.save"):
        save_explanation(xattn.explain(model, x, "gradcam"), "e.npz")


def test_noise_on_volumes_follows_the_method_that_it_averages(x: Tensor) -> None:
    model = network()
    plain, mean = xattn.explain(model, x, ["gradcam", "smoothgrad:of=gradcam,samples=3,noise=1e-6"], 1)
    assert mean.maps.shape == plain.maps.shape
    torch.testing.assert_close(mean.maps, plain.maps, atol=1e-5, rtol=1e-3)
    with pytest.raises(NotApplicableError, match="blur-ig: is not defined for volumes"):
        xattn.explain(model, x, "smoothgrad:of=blur-ig,samples=2")


def test_videos_are_told_from_volumes_and_the_advice_works(x: Tensor) -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.transpose(1, 2))

    video = x.transpose(1, 2)
    with pytest.raises(NotApplicableError, match=r"for videos \(N, T, C, H, W\) pass the module that gets x.tr"):
        xattn.explain(Frames().eval(), video, "gradcam")
    assert xattn.explain(Frames().eval().net, video.transpose(1, 2), "gradcam", 1).maps.shape == (2, 1, 2, 4, 3)


def test_a_function_of_volumes_gets_the_methods_that_need_scores_alone(x: Tensor) -> None:
    model = network()
    explanation = xattn.explain(lambda v: model(v).softmax(1), x, "occlusion:window=0.5", 1)
    assert explanation.maps.shape == (2, 1, *SIZE)


def test_the_picture_shows_the_middle_slices(x: Tensor) -> None:
    explanation = xattn.explain(network(1), x[:, :1], "saliency", 1)
    depth, height, width = explanation.slices()
    assert torch.equal(depth.maps, explanation.maps[:, :, 4])
    assert torch.equal(height.maps, explanation.maps[:, :, :, 8])
    assert torch.equal(width.maps, explanation.maps[..., 6])
    assert depth.inputs is not None
    assert torch.equal(depth.inputs, x[:, :1, 4])
    parts = [e.overlay(1) for e in (depth, height, width)]
    picture = explanation.overlay(1)
    assert picture.width == sum(part.width for part in parts) + 16
    assert picture.crop((0, 0, parts[0].width, parts[0].height)).tobytes() == parts[0].tobytes()
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert "maps of 8x16x12" in repr(explanation)


def test_boxes_smooth_masks_and_means_against_loops() -> None:
    size, sides = (3, 4, 5), (2, 2, 3)
    corners = torch.tensor([[0, 0, 0], [1, 2, 2], [0, 2, 1]])
    mask = volume.box_masks(corners, sides, size).view(3, *size)
    for b, corner in enumerate(corners.tolist()):
        for z, y, w in torch.cartesian_prod(*map(torch.arange, size)).tolist():
            inside = all(c <= v < c + s for c, v, s in zip(corner, (z, y, w), sides, strict=True))
            assert bool(mask[b, z, y, w]) == inside
    starts = [torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([0, 2])]
    values = torch.rand(1, 8, dtype=torch.float64)
    means = volume.box_means(values, starts, sides, size).view(size)
    all_corners = torch.cartesian_prod(*starts).tolist()
    for z, y, w in torch.cartesian_prod(*map(torch.arange, size)).tolist():
        own = [
            float(values[0, i])
            for i, corner in enumerate(all_corners)
            if all(c <= v < c + s for c, v, s in zip(corner, (z, y, w), sides, strict=True))
        ]
        assert abs(float(means[z, y, w]) - sum(own) / len(own)) < 1e-12
    shown = volume.smooth_masks(torch.ones(2, 2, 2, 2), torch.tensor([[0.0, 0.5, 0.9], [0.3, 0.3, 0.3]]), size)
    assert torch.equal(shown, torch.ones(2, 1, 12, 5))
    labels = volume.box_segments((4, 4, 4), 8).view(4, 4, 4)
    assert labels.unique(return_counts=True)[1].tolist() == [8] * 8
    assert int(labels[0, 3, 3]) == 3
