"""A map is not ok where a fact behind it was contradicted, or the pass ran otherwise than when it was proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xattn
from tests.tiny_models import images
from xattn import doubts
from xattn.inspection import facts_about, infer_spec
from xattn.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
GIVEN = ModelSpec(feature_layer="trunk", input_size=(32, 32))


class Net(nn.Module):
    """Two convolutions, and something between them and the classes."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, 5)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.change(self.trunk(x)).mean((2, 3)))


def noisy(y: Tensor) -> Tensor:
    return y + 0.5 * torch.rand_like(y)


def centred(y: Tensor) -> Tensor:
    return y / y.std(dim=0, keepdim=True, correction=0).add(0.1)


def status(model: nn.Module, method: str, n: int = 2, spec: ModelSpec | None = None) -> set[str]:
    return set(xattn.explain(model, images(n), method, spec=spec).status)


@pytest.mark.parametrize("method", ["hirescam", "saliency", "occlusion:window=0.5", "scorecam"])
def test_noise_in_the_forward_pass(method: str) -> None:
    assert status(Net(noisy), method) == {doubts.NOT_REPEATABLE}
    assert status(Net(), method) == {"ok"}
    # Following the advice.
    model = Net()
    model.change = lambda y: F.dropout(y, 0.5, training=model.training)
    assert status(model, method) == {"ok"}


@pytest.mark.parametrize(("method", "alone"), [("hirescam", "ok"), ("occlusion:window=0.5", doubts.COUPLED)])
def test_images_that_see_each_other(method: str, alone: str) -> None:
    assert status(Net(centred), method) == {doubts.COUPLED}
    model = Net(centred)
    spec = facts_about(model, images(2))
    assert set(xattn.explain(model, images(1), method, spec=spec).status) == {alone}


def test_controls_know_nothing_of_the_model_and_stay_ok() -> None:
    assert status(Net(noisy), "random") == {"ok"}


def test_a_part_that_stays_in_training_mode() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    model = Net()
    model.drop = Stubborn(0.0)
    assert status(model, "hirescam") == {doubts.TRAINING}
    assert status(model, "occlusion:window=0.5") == {doubts.TRAINING}
    model.drop = nn.Dropout(0.0)
    assert status(model, "hirescam") == {"ok"}


def test_another_shape_than_was_proved() -> None:
    model = Net().eval()
    spec = infer_spec(model, images(1))
    assert spec.ran["trunk"].calls == 1
    assert spec.ran["trunk"].shape == (12, 8, 8)
    assert status(model, "hirescam", spec=spec) == {"ok"}
    model.trunk.append(nn.MaxPool2d(2))
    assert status(model, "hirescam", spec=spec) == {doubts.OTHER_SHAPE}
    assert status(model, "saliency", spec=spec) == {"ok"}  # it reads no layer
    assert status(model, "hirescam", spec=infer_spec(model, images(1))) == {"ok"}
    # Another size of image gives another grid, which is no contradiction.
    assert set(xattn.explain(Net(), images(1, 48, 48), "hirescam", spec=spec).status) == {"ok"}


def test_another_number_of_calls_than_was_proved() -> None:
    class Repeated(Net):
        times = 2

        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Conv2d(12, 12, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.trunk(x)
            for _ in range(self.times):
                y = self.again(y) + y
            return self.fc(y.mean((2, 3)))

    model = Repeated().eval()
    spec = infer_spec(model, images(1), feature_layer="again[1]")
    assert status(model, "hirescam", spec=spec) == {"ok"}
    model.times = 3
    assert status(model, "hirescam", spec=spec) == {doubts.OTHER_CALLS}


def test_a_cut_that_nobody_knew_of() -> None:
    model = Net(lambda y: y.detach())
    assert status(model, "hirescam", spec=GIVEN) == {doubts.CUT}
    assert status(model, "hirescam") == {"ok"}  # found before, and said in the facts
    assert "detach" in facts_about(model, images(2)).evidence["gradient"].why


def test_a_layer_without_effect() -> None:
    spec = infer_spec(Net(), images(1))
    contradicted = {"alone": replace(spec.evidence["alone"], how="contradicted")}
    doubted = replace(spec, evidence=spec.evidence | contradicted)
    assert status(Net(), "hirescam", spec=doubted) == {doubts.NO_EFFECT}
    assert status(Net(), "saliency", spec=doubted) == {"ok"}
    assert status(Net(), "smoothgrad:of=hirescam,samples=2", spec=doubted) == {doubts.NO_EFFECT}


def test_what_was_proved_survives_json() -> None:
    spec = infer_spec(Net(), images(1))
    again = ModelSpec.from_dict(spec.to_dict())
    assert (again.ran, again.evidence) == (spec.ran, spec.evidence)


def test_every_status_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    words = (doubts.NOT_REPEATABLE, doubts.COUPLED, doubts.NO_EFFECT, doubts.OTHER_SHAPE, doubts.OTHER_CALLS)
    for word in (*words, doubts.CUT, doubts.TRAINING):
        assert f"| `{word}` |" in text, word
