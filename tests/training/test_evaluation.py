"""What `xattn evaluate` counts, against loops over images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.training.colours import tiny_recipe
from xattn.errors import NotApplicableError
from xattn.functional.sparsity import attention_density
from xattn.models.checkpoint import save_weights
from xattn.training import evaluation
from xattn.training.data import MemorySource
from xattn.training.network import RANK_SUBSETS, RankHeads, Trainee, build

CLASSES = tuple("abcdefg")


@pytest.fixture(scope="module")
def source() -> MemorySource:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (7, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return MemorySource(pixels, torch.arange(7), CLASSES)


def built(tmp_path: Path, head: str) -> Trainee:
    torch.manual_seed(1)
    return build(tiny_recipe(tmp_path, tmp_path, model__head=head), CLASSES)


def normalized(trainee: Trainee, source: MemorySource, i: int) -> torch.Tensor:
    spec = trainee.model.spec
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    return ((source.pixels[i].float() / 255 - mean) / std)[None]


@pytest.mark.parametrize("batch_size", [3, 7])
def test_counts_are_those_of_single_images(tmp_path: Path, source: MemorySource, batch_size: int) -> None:
    trainee = built(tmp_path, "brnpa")
    model = trainee.model.eval()
    torch.manual_seed(2)
    ranks = RankHeads(256, 7).eval()
    result = evaluation.evaluate(model, source, ranks=ranks, batch_size=batch_size)
    hits: dict[str, float] = dict.fromkeys(("top1", "top5", "density", "sparsity", *RANK_SUBSETS), 0.0)
    with torch.no_grad():
        for i in range(7):
            features = model.backbone(normalized(trainee, source, i))
            maps = model.head.attention(features)
            order = model.head(features)[0].argsort(descending=True).tolist()
            hits["top1"] += order[0] == i
            hits["top5"] += i in order[:5]
            density = attention_density(maps, features).item()
            hits["density"] += density
            hits["sparsity"] += 1 / density
            vectors = torch.einsum("nphw,nchw->npc", maps, features)[0]
            for name, chosen in RANK_SUBSETS.items():
                linear = ranks.heads[name]
                z = F.linear(torch.cat([vectors[p] for p in chosen]), linear.weight, linear.bias)
                hits[name] += int(z.argmax()) == i
    assert result.images == 7
    assert result.top1 == pytest.approx(hits["top1"] / 7)
    assert result.top5 == pytest.approx(hits["top5"] / 7)
    assert result.density == pytest.approx(hits["density"] / 7, rel=1e-4)
    assert result.sparsity == pytest.approx(hits["sparsity"] / 7, rel=1e-4)
    assert result.ranks == pytest.approx({"1+2+3": result.top1, **{k: hits[k] / 7 for k in RANK_SUBSETS}})
    assert result.rank_heads == "trained"
    assert result.images_per_second > 0


def test_without_rank_heads_the_other_parts_are_masked(tmp_path: Path, source: MemorySource) -> None:
    trainee = built(tmp_path, "bcnn")
    model = trainee.model.eval()
    columns, _ = evaluation.measure(model, source)
    weight = model.head.classifier.weight.clone()
    for name, chosen in RANK_SUBSETS.items():
        with torch.no_grad():
            model.head.classifier.weight.copy_(weight)
            for part in set(range(3)) - set(chosen):
                model.head.classifier.weight[:, part * 256 : (part + 1) * 256] = 0
        masked, _ = evaluation.measure(model, source)
        assert torch.equal(masked["top1"], columns[name]), name


def test_a_plain_network_has_no_ranks_and_the_density_of_its_cam(tmp_path: Path, source: MemorySource) -> None:
    trainee = built(tmp_path, "linear")
    model = trainee.model.eval()
    result = evaluation.evaluate(model, source)
    assert (result.maps, result.ranks, result.rank_heads) == ("cam", {}, "")
    densities = []
    with torch.no_grad():
        for i in range(7):
            features = model.backbone(normalized(trainee, source, i))
            weight = model.head.classifier.weight[model.head(features)[0].argmax()]
            cam = sum(weight[c] * features[0, c] for c in range(256))
            densities.append(((cam - cam.min()) / (cam.max() - cam.min())).mean().item())
    assert result.density == pytest.approx(sum(densities) / 7, rel=1e-4)


def test_rank_heads_come_back_with_their_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainee = build(tiny_recipe(tmp_path, tmp_path, model__ranks=True), CLASSES)
    path = save_weights(trainee.model, tmp_path / "w.safetensors", state=trainee.weights())
    model, ranks = evaluation.load_trained(path)
    assert ranks is not None
    assert trainee.ranks is not None
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = trainee.eval()(x)[1]
        got = ranks(model.head.embed(model.backbone(x)))
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_a_network_without_a_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_model", lambda path, factory: torch.nn.Identity())
    with pytest.raises(NotApplicableError, match="Identity; expected a backbone with a head"):
        evaluation.load_trained(tmp_path / "w.safetensors")
