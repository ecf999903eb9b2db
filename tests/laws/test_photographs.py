"""On photographs and trained networks too, a map does not depend on what else is in the batch."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.cheap import cheap
from xattn.data.preprocessing import to_batch
from xattn.errors import NotApplicableError
from xattn.explainers import explainers
from xattn.explaining import explain

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = ("tiny-brnpa", "tiny-cnn", "tiny-vit", "tiny-bcnn")
LONGER = {"guided-ig": "guided-ig:steps=30"}  # enough choices for rounding to lead elsewhere
SLOW = {"scorecam": "tiny-cnn", "ablationcam": "tiny-cnn"}  # a pass for each of fewer channels
# Of the norm of the map. Rounding alone is 1e-6 for nearly all; XGrad-CAM divides by sums that cancel.
SHARE = 1e-3


@cache
def photographs(name: str) -> tuple[nn.Module, Tensor]:
    model = xattn.create_model(name)
    return model, to_batch([EXAMPLES / "chelsea.jpg", EXAMPLES / "coffee.jpg"], model.spec)


@pytest.mark.parametrize("method", explainers.names())
def test_batch_equals_one_by_one(method: str) -> None:
    chosen = LONGER.get(method, cheap(method))
    for name in [SLOW[method]] if method in SLOW else MODELS:
        model, x = photographs(name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Explanation.status")
            try:
                together = explain(model, x, chosen).maps
            except NotApplicableError:
                continue
            for i in range(len(x)):
                alone = explain(model, x[i : i + 1], chosen).maps[0]
                apart = torch.linalg.vector_norm(together[i] - alone) / torch.linalg.vector_norm(alone)
                assert apart < SHARE, f"{name}, image {i}: {float(apart):.2g} of its norm"
        return
    pytest.fail("no model that it is defined for")
