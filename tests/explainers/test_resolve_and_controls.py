"""Names become methods; the controls know nothing of the model."""

from __future__ import annotations

import pytest
import torch

from tests import tiny_models as tiny
from xattn.errors import ParameterError, UnknownNameError
from xattn.explainers import applicable, explainers, resolve
from xattn.explainers.attention import BRNPA
from xattn.explainers.cam import GradCAM, GradCAMPlusPlus
from xattn.explainers.control import Center, Edges, Random
from xattn.explaining import explain

EXPECTED = [
    "activation", "bcnn", "brnpa", "cam", "center", "edges", "eigencam", "gradcam", "gradcam++", "guided-backprop",
    "guided-gradcam", "guided-gradcam++", "hirescam", "input-x-gradient", "layercam", "part-cam", "pooled-gradient",
    "random", "saliency", "xgradcam",
]  # fmt: skip


def test_names() -> None:
    assert set(EXPECTED) <= set(explainers.names())


@pytest.mark.parametrize("name", ["gradcam++", "grad-cam++", "GradCAMpp", "Grad_CAM_pp"])
def test_forgiving_names(name: str) -> None:
    assert resolve(name) == [GradCAMPlusPlus()]


def test_resolve() -> None:
    own = GradCAM("conv1")
    assert resolve([own, "brnpa:parts=4,saliency=mean", " Grad-CAM:relu=no "]) == [
        own, BRNPA(parts=4, saliency="mean"), GradCAM(relu=False),
    ]  # fmt: skip
    assert resolve(own) == [own]
    assert [method.name for method in resolve("all")] == explainers.names()
    assert resolve(["gradcam", "ALL"])[0] == GradCAM()
    assert resolve([]) == []


def test_resolve_refuses() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'gradcam'"):
        resolve("gradkam")
    with pytest.raises(UnknownNameError, match="Did you mean 'parts'"):
        resolve("brnpa:part=4")
    with pytest.raises(ParameterError, match=r"expected a name or an Explainer object.*GradCAM\(\)"):
        resolve([GradCAM])  # type: ignore[list-item]


def test_applicable() -> None:
    plain, attentive = tiny.tiny_cnn().spec, tiny.tiny_brnpa().spec
    refused = {name for name in EXPECTED if applicable(explainers.create(name), plain) is not None}
    assert refused == {"bcnn", "part-cam"}
    refused = {name for name in EXPECTED if applicable(explainers.create(name), attentive) is not None}
    assert refused == {"bcnn", "cam"}


@pytest.mark.parametrize("method", ["random", "center", "edges"])
def test_controls_do_not_know_the_model(method: str) -> None:
    x, other = tiny.images(2), tiny.seeded(tiny.TinyCNN, seed=9)
    maps = [explain(model, x, method, target).maps for model in (tiny.tiny_cnn(), other) for target in (0, 1)]
    assert all(torch.equal(maps[0], m) for m in maps)


def test_random_depends_on_the_image_and_its_seed_alone() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(3)
    drawn = explain(model, x, "random").maps
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(explain(model, x.flip(0), "random").maps.flip(0), drawn, rtol=0, atol=0)
    seeded = explain(model, x, "random", seeds=[5, 5, 6]).maps
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[1], seeded[2])
    assert not torch.equal(seeded, drawn)


def test_random_is_uniform() -> None:
    values = explain(tiny.tiny_cnn(), tiny.images(1, 100, 100), Random(grid=100)).maps
    assert values.shape == (1, 1, 100, 100)
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    assert abs(float(values.mean()) - 0.5) < 0.02


def test_center_is_highest_in_the_middle_and_edges_at_the_edge() -> None:
    x = torch.zeros(1, 3, 32, 32)
    x[..., 20:] = 1
    center, edges = explain(tiny.tiny_cnn(), x, [Center(), Edges()])
    assert divmod(int(center.maps.argmax()), 32) == (15, 15)
    assert edges.maps[0, 0].sum(0).topk(2).indices.sort().values.tolist() == [19, 20]


def test_edges_do_not_change_with_the_normalization() -> None:
    """The same picture, normalized for two models."""
    import dataclasses

    model, pixels = tiny.tiny_cnn(), tiny.images(1).sigmoid()
    found = []
    for mean, std in (((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), ((0.0, 0.1, 0.2), (1.0, 0.5, 2.0))):
        spec = dataclasses.replace(model.spec, mean=mean, std=std)
        x = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        found.append(explain(model, x, "edges", spec=spec).maps)
    torch.testing.assert_close(found[0], found[1])


def test_controls_exist_on_every_grid() -> None:
    """By default where metrics rank maps, or as fine as they are made; on another grid they are averaged copies."""
    model, x = tiny.tiny_cnn(), tiny.images(2, 32, 64)
    names = ("random", "center", "edges", "pooled-gradient")
    sizes = {name: tuple(explain(model, x, name).maps.shape[-2:]) for name in names}
    assert sizes == {"random": (8, 16), "center": (32, 64), "edges": (32, 64), "pooled-gradient": (8, 16)}
    for name in names:
        for grid, cells in (("common", (8, 16)), ("4", (4, 8)), ("pixels", (32, 64))):
            assert tuple(explain(model, x, f"{name}:grid={grid}").maps.shape[-2:]) == cells
        if name != "random":
            fine, coarse = (explain(model, x, f"{name}:grid={grid}").maps for grid in ("pixels", "4"))
            torch.testing.assert_close(coarse, torch.nn.functional.avg_pool2d(fine, 8))


def test_the_pooled_gradient_is_that_of_the_input() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2, 32, 32)
    fine, pooled = explain(model, x, ["input-x-gradient", "pooled-gradient"])
    torch.testing.assert_close(pooled.maps, torch.nn.functional.avg_pool2d(fine.maps, 4))


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(ParameterError, match="grid must be one of common, pixels or a whole number at least 1 and at"):
        Random(grid=0)
    with pytest.raises(ParameterError, match="center: sigma must be more than 0"):
        Center(sigma=-1)
