"""Heads: what they pool, what they cost, what they tell about themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xattn.errors import ParameterError, UnknownNameError
from xattn.functional.br_npa import br_npa_maps
from xattn.models import (
    BCNNHead,
    BRNPAHead,
    Classifier,
    LinearHead,
    create_head,
    create_model,
    load_model,
    save_weights,
)
from xattn.spec import ModelSpec

C, K, P = 6, 5, 3


@pytest.fixture
def features():
    return torch.randn(2, C, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()


def made(head):
    generator = torch.Generator().manual_seed(1)
    for tensor in head.parameters():
        nn.init.normal_(tensor, std=0.3, generator=generator)
    return head.double().eval()


def test_linear_head_is_the_mean_and_a_linear_layer(features):
    head = made(LinearHead(C, K)).requires_grad_(False)
    for n in range(2):
        for k in range(K):
            expected = sum(
                float(head.classifier.weight[k, c]) * float(sum(features[n, c].flatten())) / 12 for c in range(C)
            ) + float(head.classifier.bias[k])
            assert float(head(features)[n, k]) == pytest.approx(expected)


def test_brnpa_head_is_linear_in_the_weighted_means(features):
    head = made(BRNPAHead(C, K, P))
    maps = br_npa_maps(features, P)
    expected = torch.zeros(2, K, dtype=torch.float64)
    for n in range(2):
        for m in range(P):
            for i in range(4):
                for j in range(3):
                    row = head.classifier.weight[:, m * C : (m + 1) * C]
                    expected[n] += maps[n, m, i, j] * (row @ features[n, :, i, j])
    torch.testing.assert_close(head(features), expected)
    assert head.classifier.bias is None
    assert not list(head.attention.parameters())
    assert not list(head.attention.buffers())


def test_brnpa_ablations(features):
    seeds = made(BRNPAHead(C, K, P, refine=False)).embed(features).view(2, P, C)
    strongest = features.flatten(2).norm(dim=1).argmax(1)
    torch.testing.assert_close(seeds[:, 0], features.flatten(2)[torch.arange(2), :, strongest])
    torch.manual_seed(0)
    random = BRNPAHead(C, K, P, seed="random").double()
    assert not torch.equal(random(features), random(features))
    printed = BRNPAHead(C, K, P, suppress="weight", activation="squared_norm")
    assert "suppress='weight'" in repr(printed)
    assert "squared_norm" in repr(printed)


def test_bcnn_head_pools_by_the_mean_of_weighted_cells(features):
    head = made(BCNNHead(C, K, P))
    attention = head.attention
    with torch.no_grad():
        x = torch.relu(attention.block.bn1(attention.block.conv1(features)))
        x = torch.relu(features + attention.block.bn2(attention.block.conv2(x)))
        maps = torch.relu(attention.conv(x))
    assert maps.shape[1] == P + 1
    torch.testing.assert_close(attention(features), maps[:, :P])
    expected = torch.cat([(maps[:, m, None] * features).mean((2, 3)) for m in range(P)], 1)
    torch.testing.assert_close(head.embed(features), expected)
    assert head.classifier.bias is None


def test_bcnn_module_costs_what_the_paper_says():
    with torch.device("meta"):
        attention = BCNNHead(2048, 200, 3).attention
        convolutions = sum(p.numel() for p in attention.parameters() if p.ndim == 4 and p.shape[-1] == 3)
    assert convolutions == 75_497_472


def test_dropout_acts_in_training_only(features):
    head = made(BRNPAHead(C, K, P, dropout=0.5))
    assert torch.equal(head(features), head(features))
    torch.manual_seed(0)
    head.train()
    assert not torch.equal(head(features), head(features))


@pytest.mark.parametrize(("name", "kind"), [("linear", LinearHead), ("bcnn", BCNNHead), ("brnpa", BRNPAHead)])
def test_classifier_tells_its_layers(name, kind):
    torch.manual_seed(0)
    facts = ModelSpec(feature_layer="layer4", classifier="fc", input_size=(9, 8), classes=("a",) * K, name="mine")
    model = Classifier(nn.Sequential(nn.Conv2d(3, C, 3), nn.ReLU()), create_head(name, C, K, parts=P), facts)
    assert isinstance(model.head, kind)
    assert model(torch.rand(2, 3, 9, 8)).shape == (2, K)
    assert (model.spec.feature_layer, model.spec.classifier) == ("backbone", "head.classifier")
    assert model.spec.attention_layer == (None if name == "linear" else "head.attention")
    assert model.spec.attention == (None if name == "linear" else name)
    assert (model.spec.input_size, model.spec.classes, model.spec.name) == ((9, 8), ("a",) * K, "mine")
    assert model.state_dict()["head.classifier.weight"].shape == (K, C * (1 if name == "linear" else P))
    maps = model.get_submodule(model.spec.attention_layer)(torch.rand(2, C, 7, 6)) if name != "linear" else None
    assert maps is None or maps.shape == (2, P, 7, 6)
    model.bfloat16()(torch.rand(2, 3, 9, 8).bfloat16()).sum().backward()
    assert model.backbone[0].weight.grad.isfinite().all()


def test_wrong_heads_are_named():
    with pytest.raises(UnknownNameError, match=r"unknown head 'br'. Did you mean 'brnpa'. Known: bcnn, brnpa, linear"):
        create_head("br", 4, 2)
    with pytest.raises(ParameterError, match="BCNNHead: expected at least one part but got parts=0"):
        BCNNHead(4, 2, 0)


def test_a_narrow_attention_block_survives_a_file(tmp_path):
    wide, narrow = (
        create_model("tiny-cnn", head="bcnn", parts=2, num_classes=4, options=options) for options in ({}, {"width": 8})
    )
    count = [sum(p.numel() for p in m.head.attention.block.parameters()) for m in (wide, narrow)]
    assert count[0] - count[1] == 2 * 9 * 256 * (256 - 8) + 2 * (256 - 8)
    save_weights(narrow, tmp_path / "narrow.safetensors")
    loaded = load_model(tmp_path / "narrow.safetensors")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(x), narrow(x))
    with pytest.raises(ParameterError, match="width must be at least 1"):
        create_head("bcnn", 4, 2, options={"width": 0})
