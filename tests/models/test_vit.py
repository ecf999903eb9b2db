"""The small vision transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.colours import tiny_recipe, write_images
from xattn.errors import NotApplicableError, ParameterError, ShapeError
from xattn.explaining import explain
from xattn.inspection import infer_spec
from xattn.models import create_model, load_model, save_weights
from xattn.models.header import read_header
from xattn.models.vit import TokenClassifier, VisionTransformer
from xattn.spec import TokenGrid
from xattn.training.loop import train
from xattn.training.network import build
from xattn.training.recipe import Recipe


def small(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{"width": 8, "depth": 2, "heads": 2, "stem": (4, 6), "image_size": 16} | options).eval()


def test_the_embedded_network_is_small() -> None:
    model = create_model("tiny-vit", num_classes=200)
    assert isinstance(model, TokenClassifier)
    assert 2 * sum(t.numel() for t in model.state_dict().values()) < 5.5e6  # bytes in half precision
    assert model.spec.tokens == TokenGrid(patch=(8, 8), prefix=1)
    assert model.spec.feature_layer == "backbone.blocks.6.norm1"
    assert model.spec.probability_layers[0] == "backbone.blocks.0.attn"
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 200)


def test_its_facts_can_be_inferred() -> None:
    model = create_model("tiny-vit", num_classes=4)
    found = infer_spec(model, input_size=(48, 64))
    for fact in ("feature_layer", "classifier", "probability_layers", "tokens"):
        assert getattr(found, fact) == getattr(model.spec, fact)


@pytest.mark.parametrize("change", [{"head": "bcnn"}, {"resolution": "high"}, {"circular": True}])
def test_what_a_transformer_does_not_have(change: dict[str, object]) -> None:
    with pytest.raises(NotApplicableError, match="tiny-vit is a transformer: it has its own linear head"):
        create_model("tiny-vit", num_classes=3, **change)


@pytest.mark.parametrize(("pool", "prefix"), [("class", 1), ("mean", 0)])
def test_tokens_of_images_of_other_sizes(pool: str, prefix: int) -> None:
    net = small(pool=pool)
    for height, width in ((16, 16), (8, 24), (24, 40)):
        assert net(torch.zeros(2, 3, height, width)).shape == (2, prefix + height * width // 16, 8)
    with pytest.raises(ShapeError, match="a height and width that 4 divides but got images of 16x18"):
        net(torch.zeros(1, 3, 16, 18))


def test_positions_tell_the_cells_apart_at_any_size() -> None:
    net = small(pool="mean", depth=1)
    with torch.no_grad():
        net.positions.normal_()
        same, other = net(torch.zeros(1, 3, 16, 16)), net(torch.zeros(1, 3, 32, 32))
    assert same[0, 5].sub(same[0, 6]).abs().max() > 1e-3
    assert other[0, 9].sub(other[0, 10]).abs().max() > 1e-3


def test_probabilities_are_what_a_submodule_gives() -> None:
    net, seen = small(), []
    net.blocks[0].attn.softmax.register_forward_hook(lambda _, inputs, output: seen.append(output))
    net(torch.randn(2, 3, 16, 16))
    assert seen[0].shape == (2, 2, 17, 17)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 2, 17))


@pytest.mark.parametrize(("options", "message"), [({"heads": 3}, "over 3 heads"), ({"pool": "max"}, "pool must be")])
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        small(**options)


def test_it_comes_back_from_its_file_and_explains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("tiny-vit", num_classes=4)
    path = save_weights(model, tmp_path / "vit.safetensors")
    again = load_model(path)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.spec == model.spec
    found = explain(again, x, ["agcam", "hirescam"])
    assert [one.maps.shape for one in found] == [(2, 1, 8, 12)] * 2
    with pytest.warns(UserWarning, match="another 'head', which starts from random"):
        other = create_model(path, num_classes=7)
    assert other.spec.probability_layers == model.spec.probability_layers
    assert torch.equal(other.backbone.positions, model.backbone.positions)


def test_it_learns_from_a_teacher_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XATTN_CACHE", str(tmp_path / "cache"))
    colours = write_images(tmp_path / "colours", 14, 32, seed=0)
    torch.manual_seed(0)
    teacher = save_weights(create_model("tiny-cnn", head="linear", num_classes=3), tmp_path / "cnn.safetensors")
    changes = {
        "model__backbone": "tiny-vit",
        "model__head": "linear",
        "distill__teacher": str(teacher),
        "optimizer__name": "adamw",
        "optimizer__lr": 1e-3,
        "run__sizes": [[0, 16], [1, 32]],
    }
    recipe = tiny_recipe(colours, tmp_path / "run", **changes)
    assert isinstance(build(recipe, ("blue", "green", "red")).model, TokenClassifier)
    result = train(recipe)
    assert len(result.history) == 2
    assert read_header(result.best).architecture.backbone == "tiny-vit"
    assert load_model(result.best).spec.input_size == (32, 32)


def test_the_published_recipe() -> None:
    recipe = Recipe.read("benchmarks/configs/train/tiny-imagenet-vit.toml")
    assert recipe.model.backbone == "tiny-vit"
    assert {recipe.size_at(epoch) % 8 for epoch in range(recipe.run.epochs)} == {0}
