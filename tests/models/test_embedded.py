"""The networks that ship with the package."""

from __future__ import annotations

import pytest
import torch

from xattn.errors import CheckpointError
from xattn.models import create_model, embedded, models
from xattn.models.checkpoint import save_weights

NAMES = {"tiny-cnn": "linear", "tiny-bcnn": "bcnn", "tiny-brnpa": "brnpa"}


def test_they_are_registered():
    assert set(NAMES) <= set(models.names())


@pytest.mark.parametrize("name", NAMES)
def test_random_ones_have_the_size_that_is_asked(name):
    model = create_model(name, num_classes=7, parts=2)
    assert model.head.name == NAMES[name]
    assert model.backbone(torch.rand(1, 3, 64, 64)).shape == (1, 256, 4, 4)
    high = create_model(name, num_classes=7, parts=2, resolution="high", circular=True)
    assert high.backbone(torch.rand(1, 3, 64, 64)).shape == (1, 256, 16, 16)
    assert {k: t.shape for k, t in high.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}
    assert model.spec.input_size == (64, 64)
    assert model.architecture["backbone"] == "tiny-cnn"
    other = create_model(name, head="linear", num_classes=3)
    assert other.architecture["head"] == "linear"


def test_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"tiny-bcnn: its weights are missing at '.*tiny-bcnn.safetensors'"):
        create_model("tiny-bcnn")
    torch.manual_seed(0)
    model = create_model("tiny-cnn", head="brnpa", parts=2, num_classes=5, resolution="high")
    save_weights(model, tmp_path / "tiny-brnpa.safetensors", half=True)
    shipped = create_model("tiny-brnpa")
    assert shipped.spec.name == "tiny-brnpa"
    assert shipped.architecture == model.architecture
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(shipped(x), model(x), atol=1e-2, rtol=1e-2)
    assert next(shipped.parameters()).dtype == torch.float32
    started = create_model("tiny-brnpa", weights="DEFAULT", num_classes=9)
    assert torch.equal(started.backbone.conv1.weight, shipped.backbone.conv1.weight)
    assert started(x).shape == (2, 9)
    again = create_model("tiny-cnn", weights=tmp_path / "tiny-brnpa.safetensors", head="brnpa", parts=2)
    assert torch.equal(again.head.classifier.weight, shipped.head.classifier.weight)
    by_file = create_model(tmp_path / "tiny-brnpa.safetensors")
    assert torch.equal(by_file(x), shipped(x))


@pytest.mark.parametrize("name", [*NAMES, "tiny-vit"])
def test_the_files_are_small_and_complete(name):
    path = embedded.FOLDER / f"{name}.safetensors"
    assert path.stat().st_size <= 6e6
    model = create_model(name)
    assert model.spec.name == name
    assert model.head.name == NAMES.get(name, "linear")
    assert len(model.spec.classes) == 200
    assert name != "tiny-brnpa" or model.architecture["resolution"] == "high"
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()
