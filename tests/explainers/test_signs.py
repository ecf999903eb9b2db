"""Which methods tell what speaks for the class from what speaks against it: pictures draw their maps around zero."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.cheap import cheap
from tests.cli import models
from xattn.errors import NotApplicableError
from xattn.explainers import applicable, explainers, resolve
from xattn.explaining import explain
from xattn.models import create_model

# Their negative values are directions of a component or features before a norm, and no evidence against a class.
WITHOUT_SIDES = {"eigengradcam", "kpca-cam", "fem"}


@pytest.mark.parametrize("make", [models.cnn, models.brnpa, lambda: create_model("tiny-vit", num_classes=4)])
def test_methods_without_a_sign_have_no_negative_values(make):
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 3, *model.spec.input_size)
    seen = set()
    for name in explainers.names():
        (method,) = resolve([cheap(name)])
        if applicable(method, model.spec) is not None or name in WITHOUT_SIDES:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                maps = explain(model, x, method).maps
            except NotApplicableError:
                continue
        assert method.signed or bool((maps >= 0).all()), name
        seen |= {name} if method.signed else set()
    assert {"input-x-gradient", "integrated-gradients", "hirescam", "attnlrp", "occlusion"} <= seen


@pytest.mark.parametrize(
    ("method", "signed"),
    [
        ("saliency", False), ("saliency:reduce=sum", True), ("gradcam", False), ("gradcam:relu=no", True),
        ("hirescam", True), ("hirescam:relu=yes", False), ("guided-backprop", False), ("deeplift:reduce=norm", False),
        ("smoothgrad", False), ("smoothgrad:of=integrated-gradients", True), ("vargrad", False), ("lrp", True),
        ("random", False), ("brnpa", False), ("part-cam", True),
    ],
)  # fmt: skip
def test_parameters_decide(method, signed):
    assert resolve([method])[0].signed is signed
