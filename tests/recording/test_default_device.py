"""A default device that a person has set: what xattn makes is where the images are, the model runs as it is set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from xattn.device import as_set, on_cpu_by_default
from xattn.storage import load_explanation, save_explanation
from xattn.trace import record


class _Net(nn.Module):
    """A small network that notes which device is the default while it runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 4)
        self.seen: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(torch.empty(0).device.type)
        return self.fc(self.net(x).mean((2, 3)))


METHODS = ["gradcam", "smoothgrad:samples=2", "lime:samples=10,count=4", "lrp", "rise:samples=4", "random",
           "deeplift", "integrated-gradients:steps=4", "occlusion", "blur-ig:steps=3"]  # fmt: skip


@pytest.fixture
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")
def test_maps_are_the_same_under_another_default_device(meta: None) -> None:
    with torch.device("cpu"):
        model, x = _Net().eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        wanted = xattn.explain(model, x, METHODS, 1)
    got = xattn.explain(_copy(model), x, METHODS, 1)
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a.maps, b.maps, msg=repr(a.method))
        assert a.status == b.status


def _copy(model: nn.Module) -> nn.Module:
    with torch.device("cpu"):
        other = _Net().eval()
        other.load_state_dict(model.state_dict())
    return other


def test_the_model_runs_under_the_device_that_a_person_set(meta: None) -> None:
    with torch.device("cpu"):
        model, x = _Net().eval(), torch.ones(1, 3, 32, 32)
    xattn.infer_spec(model, input_size=(32, 32))
    trace = record(model, x, 1, spec=xattn.ModelSpec(feature_layer="net"), layers=["net"])
    trace.gradient("net")
    trace.score(x, trace.target)
    assert model.seen == {"meta"}
    assert torch.empty(0).device.type == "meta"


def test_the_device_is_set_aside_and_put_back_also_after_an_error() -> None:
    def fails() -> None:
        with on_cpu_by_default():
            assert torch.empty(0).device.type == "cpu"
            with as_set():
                assert torch.empty(0).device.type == "meta"
            raise ZeroDivisionError

    with torch.device("meta"):
        with pytest.raises(ZeroDivisionError):
            fails()
        assert torch.empty(0).device.type == "meta"
    with on_cpu_by_default(), as_set():
        assert torch.empty(0).device.type == "cpu"


def test_pictures_and_files_do_not_mind(meta: None, tmp_path: Path) -> None:
    with torch.device("cpu"):
        model, x = _Net().eval(), torch.ones(1, 3, 32, 32).cumsum(2)
    explanation = xattn.explain(model, x, "hirescam", 1)
    assert explanation.overlay().size == (448, 448)
    save_explanation(explanation, tmp_path / "e.safetensors")
    assert torch.equal(load_explanation(tmp_path / "e.safetensors").maps, explanation.maps)
