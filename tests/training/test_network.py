"""Building a network: starting weights, rank heads without influence, the moving average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.training.colours import tiny_recipe
from xattn.data.preprocessing import preprocess
from xattn.data.sample import Sample
from xattn.errors import CheckpointError
from xattn.models import load_model, save_weights
from xattn.training.data import LazySource
from xattn.training.evaluation import prepared
from xattn.training.network import RANK_SUBSETS, RankHeads, Trainee, average, build, freeze_batchnorm, parameter_groups

NAMES = ("blue", "green", "red")


def built(tmp_path: Path, seed: int = 0, **changes: object) -> Trainee:
    torch.manual_seed(seed)
    return build(tiny_recipe(tmp_path, tmp_path, **changes), NAMES)


def test_the_spec_says_what_the_recipe_decided(tmp_path: Path) -> None:
    spec = built(tmp_path, augment__resize=40).model.spec
    assert spec.classes == NAMES
    assert spec.input_size == (32, 32)
    assert spec.crop == pytest.approx(0.8)
    assert spec.attention_layer == "head.attention"
    assert spec.mean is not None


def test_a_network_that_learned_whole_images_is_shown_whole_images(tmp_path: Path) -> None:
    model = built(tmp_path, augment__crop="squash").model
    again = load_model(save_weights(model, tmp_path / "w.safetensors"))
    assert (again.spec.fit, again.spec.crop) == ("squash", 1.0)
    image = np.zeros((16, 128, 3), np.uint8)
    image[:, :32] = 255  # the middle of a crop would not see it
    source = LazySource([Sample("a", image, 0)], torch.zeros(1, dtype=torch.int64), ("a",))
    (x,) = prepared(again, source, [torch.tensor([0])], "cpu")
    torch.testing.assert_close(x[0], preprocess(image, again.spec), atol=0.05, rtol=0)
    assert built(tmp_path).model.spec.fit == "crop"


def test_ablations_come_back_from_the_file(tmp_path: Path) -> None:
    model = built(tmp_path, model__refine=False, model__seed="random").model
    again = load_model(save_weights(model, tmp_path / "w.safetensors"))
    attention = again.get_submodule("head.attention")
    assert (attention.refine, attention.seed) == (False, "random")


def test_a_narrower_attention_module_comes_back_from_the_file(tmp_path: Path) -> None:
    model = built(tmp_path, model__head="bcnn", model__attention_width=16).model
    again = load_model(save_weights(model, tmp_path / "w.safetensors"))
    assert again.get_submodule("head.attention.block.conv1").weight.shape == (16, 256, 3, 3)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))


def test_a_student_starts_from_its_teacher_with_other_strides(tmp_path: Path) -> None:
    low = built(tmp_path).model
    path = save_weights(low, tmp_path / "low.safetensors")
    high = built(tmp_path, 1, model__resolution="high", distill__teacher=str(path)).model
    assert all(torch.equal(a, b) for a, b in zip(low.state_dict().values(), high.state_dict().values(), strict=True))
    x = torch.zeros(1, 3, 64, 64)
    assert (low.backbone(x).shape[2], high.backbone(x).shape[2]) == (4, 16)


def test_a_plain_classifier_is_shared_out_over_the_parts(tmp_path: Path) -> None:
    plain = built(tmp_path, model__head="linear").model
    path = save_weights(plain, tmp_path / "cnn.safetensors")
    model = built(tmp_path, 1, model__start=str(path)).model
    features = torch.rand(2, 256, 1, 1)  # one cell: every part is the mean
    with torch.no_grad():
        expected = plain.head(features) - plain.head.classifier.bias
        torch.testing.assert_close(model.head(features), expected, atol=1e-5, rtol=1e-4)


def test_a_head_of_another_kind_stays_new(tmp_path: Path) -> None:
    path = save_weights(built(tmp_path).model, tmp_path / "w.safetensors")
    two = built(tmp_path, 1, model__parts=2, model__start=str(path)).model
    fresh = built(tmp_path, 1, model__parts=2).model
    assert torch.equal(two.head.classifier.weight, fresh.head.classifier.weight)
    assert not torch.equal(two.backbone.conv1.weight, fresh.backbone.conv1.weight)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    path = save_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit the backbone: 'backbone\.conv1\.weight' is missing"):
        built(tmp_path, model__start=str(path))


def test_rank_heads_read_their_parts_and_only_those() -> None:
    ranks = RankHeads(4, 5)
    embedding = torch.randn(2, 12)
    before = ranks(embedding)
    for part in range(3):
        changed = embedding.clone()
        changed[:, part * 4 : (part + 1) * 4] += 1
        after = ranks(changed)
        for name, chosen in RANK_SUBSETS.items():
            assert torch.equal(before[name], after[name]) == (part not in chosen), (name, part)
    linear = ranks.heads["2+3"]
    torch.testing.assert_close(before["2+3"], F.linear(embedding[:, 4:], linear.weight, linear.bias))


def test_rank_heads_send_no_gradient_into_the_network(tmp_path: Path) -> None:
    trainee = built(tmp_path, model__ranks=True)
    logits, ranks, _ = trainee(torch.randn(2, 3, 32, 32))
    assert list(ranks) == list(RANK_SUBSETS)
    sum(z.sum() for z in ranks.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in trainee.model.parameters())
    assert all(p.grad is not None for p in trainee.ranks.parameters())
    torch.testing.assert_close(logits, trainee.eval().model(torch.zeros(2, 3, 32, 32)) * 0 + logits)


def test_the_trainee_gives_what_its_network_gives(tmp_path: Path) -> None:
    with_ranks = built(tmp_path, model__ranks=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(with_ranks(x)[0], with_ranks.model(x))


def test_moving_average_is_the_formula() -> None:
    mean, current = nn.BatchNorm1d(2).double(), nn.BatchNorm1d(2).double()
    expected = 1.0
    for step in range(1, 40):
        nn.init.constant_(current.weight, float(step))
        current.num_batches_tracked.fill_(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        average(mean, current, 0.8, step)
    assert mean.weight[0].item() == pytest.approx(expected)
    assert mean.num_batches_tracked == 39


def test_decay_is_for_weights_alone(tmp_path: Path) -> None:
    trainee = built(tmp_path)
    weights, rest = parameter_groups(trainee, 0.1)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in weights["params"])
    assert len(weights["params"]) + len(rest["params"]) == len(list(trainee.parameters()))


def test_frozen_batchnorm_keeps_its_statistics(tmp_path: Path) -> None:
    trainee = built(tmp_path)
    trainee.train()
    freeze_batchnorm(trainee)
    before = {k: v.clone() for k, v in trainee.state_dict().items()}
    trainee(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in trainee.state_dict().items())
