"""CAM proves itself or refuses; the other methods that read one layer take the layer they are given."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests import tiny_models as tiny
from xattn.errors import NotApplicableError, SpecError, UnknownNameError
from xattn.explainers.cam import CAM, Activation
from xattn.explaining import explain
from xattn.trace import record

TARGET = [3, 0, 1]


def cam(model: nn.Module, x: Tensor, target: object = None) -> tuple[Tensor, Tensor]:
    """Maps and relative error."""
    trace = record(model, x, target, spec=model.spec, layers=(model.spec.feature_layer,), grad=False)
    maps = CAM().attribute(trace)
    return maps, CAM().conservation(trace, maps)


def test_pooling_and_linear() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(3)
    maps, error = cam(model, x, TARGET)
    logits = model(x).gather(1, torch.tensor(TARGET)[:, None])[:, 0]
    torch.testing.assert_close(maps.mean((1, 2, 3)) + model.fc.bias[TARGET], logits)
    assert float(error.max()) < 1e-5


def test_relu_before_the_pooling() -> None:
    """DenseNet: the layer gives signed features, the classifier sees them rectified."""
    model, x = tiny.tiny_relu_then_pool(), tiny.images(3)
    maps, error = cam(model, x, TARGET)
    features = model.features(x)
    assert features.min() < 0
    expected = torch.einsum("nchw,nc->nhw", features.relu(), model.classifier.weight[TARGET])
    torch.testing.assert_close(maps[:, 0], expected)
    assert float(error.max()) < 1e-5


def test_convolution_and_relu_before_the_pooling() -> None:
    """SqueezeNet: the map is the class's own score map, and its mean is the logit."""
    model, x = tiny.tiny_pooled_scores(), tiny.images(3)
    with torch.no_grad():
        model.classifier[1].bias[0] = -100  # a class whose score map is empty: its logit is zero
    maps, error = cam(model, x, [1, 2, 0])
    scores = model.classifier(model.features(x))
    torch.testing.assert_close(maps[:, 0], scores[torch.arange(3), [1, 2, 0]])
    torch.testing.assert_close(maps.mean((1, 2, 3)), model(x)[torch.arange(3), [1, 2, 0]])
    assert float(error.max()) < 1e-5
    assert maps[2].abs().max() == 0


@pytest.mark.parametrize("build", ["tiny_cnn", "tiny_relu_then_pool", "tiny_pooled_scores", "tiny_binary"])
@pytest.mark.parametrize("how", ["bfloat16", "autocast", "float64"])
def test_precision_of_the_model_is_no_error(build: str, how: str) -> None:
    model, x = getattr(tiny, build)(), tiny.images(3)
    if how != "autocast":
        model = model.to(getattr(torch, how))
    for target in (0, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            _, error = cam(model, x.double() if how == "float64" else x, target)
        assert float(error.max()) < CAM.tolerance


def test_rounding_of_terms_that_cancel_is_no_error() -> None:
    """Two channels that are almost the same, with large weights of opposite sign, in a model that rounds to 8 bits."""
    model, x = tiny.tiny_cnn(), tiny.images(3)
    with torch.no_grad():
        for tensor in (t for part in ("conv2", "bn2", "conv3", "bn3") for t in model.get_submodule(part).parameters()):
            tensor[1] = tensor[0]
        for tensor in (model.bn2.running_mean, model.bn2.running_var, model.bn3.running_mean, model.bn3.running_var):
            tensor[1] = tensor[0]
        model.bn3.bias[1] += 0.02
        model.fc.weight[1, :2] = torch.tensor([128.0, -128.0])
    for precise in (True, False):
        model = model.float() if precise else model.bfloat16()
        trace = record(model, x, 1, spec=model.spec, layers=("trunk",), grad=False)
        maps, error = cam(model, x, 1)
        assert float(error.max()) < CAM.tolerance
        missed = (maps.mean((1, 2, 3)) + model.fc.bias.detach()[1] - trace.logits[:, 1]).abs()
        share = missed / torch.maximum(trace.logits[:, 1].abs(), maps.abs().mean((1, 2, 3)))
        assert (float(share.max()) < 1e-3) == precise  # the rounding is real


def test_norm_before_the_classifier_is_refused() -> None:
    with pytest.raises(NotApplicableError, match=r"NormedPool are not a linear function.*misses.*%; use hirescam"):
        explain(tiny.tiny_normed_pool(), tiny.images(3), "cam")


def test_another_pooling_is_refused() -> None:
    model = tiny.tiny_cnn()
    model.forward = lambda x: model.fc(model.trunk(model.conv3(model.conv2(model.conv1(x)).relu())).amax((2, 3)))
    with pytest.raises(NotApplicableError, match="use hirescam"):
        explain(model, tiny.images(3), "cam", spec=model.spec)


def test_classifiers_that_do_not_fit() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(1)
    cases = {
        "conv3": (NotApplicableError, "Conv2d, expected a linear layer or a 1x1"),
        "fd": (SpecError, "no layer 'fd'"),
        None: (NotApplicableError, "no linear classifier that is known"),
    }
    for name, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            explain(model, x, "cam", spec=dataclasses.replace(model.spec, classifier=name))
    with pytest.raises(NotApplicableError, match="reads 8 values but 'conv1' has 6 channels"):
        explain(model, x, "cam:layer=conv1", spec=model.spec)
    model.fc = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 5))
    with pytest.raises(NotApplicableError, match="has 8 outputs but the model has 5 logits"):
        explain(model, x, "cam", spec=dataclasses.replace(model.spec, classifier="fc.0"))


def test_a_head_with_attention_is_sent_to_part_cam() -> None:
    with pytest.raises(NotApplicableError, match=r"brnpa head pools by attention maps.*part-cam"):
        explain(tiny.tiny_brnpa(), tiny.images(1), "cam")


def test_cam_explains_the_logit_whatever_the_score() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    by_logit, by_prob = (explain(model, x, "cam", 1, spec=model.spec, score=score) for score in ("logit", "prob"))
    assert torch.equal(by_logit.maps, by_prob.maps)
    assert by_prob.status == ("ok", "ok")


def test_layer_by_name() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    found = explain(model, x, "activation:layer=conv1,reduce=mean", spec=model.spec)
    torch.testing.assert_close(found.maps, model.conv1(x).mean(1, keepdim=True).detach())
    assert found.method == Activation("conv1", "mean")
    with pytest.raises(UnknownNameError, match="Did you mean 'conv3'"):
        explain(model, x, "gradcam:layer=conv33", spec=model.spec)


def test_two_layers_share_one_pass() -> None:
    model, x = tiny.tiny_cnn(), tiny.images(2)
    names = ["gradcam:layer=conv1", "gradcam:layer=conv3", "layercam"]
    together = explain(model, x, names, 1, spec=model.spec)
    for one, name in zip(together, names, strict=True):
        torch.testing.assert_close(one.maps, explain(model, x, name, 1, spec=model.spec).maps)
