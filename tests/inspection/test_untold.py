"""Networks without a target whose outputs are no class scores: what is explained is said, and the remedy works."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import xattn
from xattn.errors import XattnWarning


class _Net(nn.Module):
    """A small network with a head of choice."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class _Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _told(model: nn.Module, target: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explanation = xattn.explain(model, X, "gradcam:relu=false", target)
    assert explanation.status == ("ok", "ok")
    return [str(w.message) for w in caught if issubclass(w.category, XattnWarning)]


def test_one_number_is_a_logit_or_a_regression_and_which_is_said() -> None:
    (said,) = _told(_Net(nn.Linear(8, 1)), None)
    assert "explained as the logit of class 1, and its negative as that of class 0" in said
    assert "target='scalar'" in said
    assert _told(_Net(nn.Linear(8, 1)), "scalar") == []
    assert _told(_Net(nn.Linear(8, 1)), 1) == []
    model = _Net(nn.Linear(8, 1))
    assert _told(model, None)
    assert _told(model, None) == []  # once for each model


@pytest.mark.parametrize(
    ("head", "why"), [(_Unit(), "vectors of length one"), (nn.Identity(), "means of 'features.3'")]
)
def test_an_embedding_is_told_from_class_scores(head: nn.Module, why: str) -> None:
    (said,) = _told(_Net(head), None)
    assert why in said
    assert "target=xattn.Similarity(image)" in said
    assert _told(_Net(head), xattn.Similarity(X[:1].flip(3))) == []


def test_class_scores_say_nothing() -> None:
    assert _told(_Net(nn.Linear(8, 5)), None) == []
    assert _told(_Net(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))), None) == []
