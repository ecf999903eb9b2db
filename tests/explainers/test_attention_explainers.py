"""B-CNN and BR-NPA maps from a trained head, BR-NPA on any network, and the exact split of their logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError, ParameterError, ShapeError, SpecError
from xattn.explainers.attention import BRNPA, PartCAM
from xattn.explaining import explain
from xattn.functional.br_npa import br_npa_maps
from xattn.trace import record


def part_cam(model: nn.Module, x: Tensor, target: object = None) -> tuple[Tensor, Tensor]:
    """Maps and relative error."""
    trace = record(model, x, target, spec=model.spec, layers=PartCAM().layers(model.spec), grad=False)
    maps = PartCAM().attribute(trace)
    return maps, PartCAM().conservation(trace, maps)


@pytest.mark.parametrize("build", [tiny.tiny_bcnn, tiny.tiny_brnpa])
def test_part_cam_splits_the_logit_exactly(build: object) -> None:
    model, x = build().double(), tiny.images(3).double()
    for target in range(tiny.CLASSES):
        maps, error = part_cam(model, x, target)
        torch.testing.assert_close(maps.sum((1, 2, 3)), model(x)[:, target].detach(), rtol=1e-10, atol=1e-12)
        assert float(error.max()) < 1e-12
        assert explain(model, x, "part-cam", target).status == ("ok",) * 3


@pytest.mark.parametrize("build", [tiny.tiny_bcnn, tiny.tiny_brnpa])
def test_precision_of_the_model_is_no_error(build: object) -> None:
    x = tiny.images(3)
    assert float(part_cam(build(), x)[1].max()) < 1e-4
    assert float(part_cam(build().bfloat16(), x)[1].max()) < PartCAM.tolerance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(part_cam(build(), x)[1].max()) < PartCAM.tolerance


def test_a_head_that_pools_otherwise_is_non_conserving() -> None:
    """The maps say one thing and the pooling does another: the status shows it."""
    model, x = tiny.tiny_brnpa(), tiny.images(2)
    embed = model.head.embed
    model.head.embed = lambda features: 2 * embed(features)
    with pytest.warns(UserWarning, match="part-cam: 2 non-conserving"):
        assert explain(model, x, "part-cam", 1).status == ("non-conserving",) * 2


def test_part_cam_of_a_binary_head() -> None:
    model, x = tiny.tiny_brnpa(), tiny.images(3)
    model.head.classifier = nn.Linear(24, 1)
    maps, error = part_cam(model, x, [0, 1, 0])
    z = (model(x)[:, 0] - model.head.classifier.bias) * torch.tensor([-1, 1, -1])
    torch.testing.assert_close(maps.sum((1, 2, 3)), z.detach())
    assert float(error.max()) < 1e-4


def test_trained_maps_are_those_of_the_head() -> None:
    model, x = tiny.tiny_brnpa(), tiny.images(2)
    trained = explain(model, x, "brnpa")
    features = model.backbone(x).detach()
    expected = model.head.attention(features) * features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(trained.parts, expected)
    torch.testing.assert_close(trained.maps, expected[:, :1])
    model.head.attention.register_forward_hook(lambda *_: _[-1].flip(1))  # proves where they come from
    torch.testing.assert_close(explain(model, x, "brnpa").parts, expected.flip(1))


def test_more_parts_of_a_trained_head_begin_with_its_own() -> None:
    model, x = tiny.tiny_brnpa(), tiny.images(2)
    own, more = explain(model, x, ["brnpa", "brnpa:parts=5"])
    assert (own.parts.shape[1], more.parts.shape[1]) == (3, 5)
    torch.testing.assert_close(more.parts[:, :3], own.parts)


def test_post_hoc_on_any_network() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    features = record(model, x, spec=model.spec, layers=("trunk",)).activation("trunk")
    found = explain(model, x, "brnpa", spec=model.spec)
    torch.testing.assert_close(found.parts, br_npa_maps(features, 3) * features.norm(dim=1, keepdim=True))
    for saliency, expected in (("mean", found.parts.mean(1)), ("max", found.parts.amax(1))):
        other = explain(model, x, f"brnpa:saliency={saliency}", spec=model.spec)
        torch.testing.assert_close(other.maps[:, 0], expected)


def test_one_part_is_still_a_part() -> None:
    found = explain(tiny.tiny_cnn(), tiny.images(2), "brnpa:parts=1")
    assert found.parts is not None
    assert found.parts.shape == (2, 1, 8, 8)


def test_bcnn_maps_are_those_of_the_head_times_the_norm() -> None:
    model, x = tiny.tiny_bcnn(), tiny.images(2)
    found = explain(model, x, "bcnn")
    features = model.backbone(x).detach()
    expected = (model.head.attention(features) * features.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(found.parts, expected)
    torch.testing.assert_close(found.maps, expected.mean(1, keepdim=True))


@pytest.mark.parametrize("method", ["bcnn", "part-cam"])
def test_networks_without_the_head_are_refused(method: str) -> None:
    with pytest.raises(NotApplicableError, match=f"^{method}: the model has no"):
        explain(tiny.tiny_cnn(), tiny.images(1), method)


def test_bcnn_of_a_brnpa_network_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="no B-CNN head"):
        explain(tiny.tiny_brnpa(), tiny.images(1), "bcnn")


def test_specs_that_do_not_fit() -> None:
    model, x = tiny.tiny_brnpa(), tiny.images(1)
    with pytest.raises(SpecError, match=r"ModelSpec.attention_layer does not say where"):
        explain(model, x, "brnpa", spec=dataclasses.replace(model.spec, attention_layer=None))
    with pytest.raises(ShapeError, match="8x8 but the features 16x16"):
        explain(model, x, "brnpa", spec=dataclasses.replace(model.spec, feature_layer="backbone.0"))


def test_parameters_that_do_not_fit() -> None:
    with pytest.raises(ParameterError, match="parts must be none or at least 1 and at most 1,000 but is 0"):
        BRNPA(parts=0)
    with pytest.raises(ParameterError, match="saliency must be one of first, mean, max"):
        explain(tiny.tiny_cnn(), tiny.images(1), BRNPA(saliency="last"))  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="must be one of first, mean, max but got 'last'"):
        explain(tiny.tiny_cnn(), tiny.images(1), "brnpa:saliency=last")
