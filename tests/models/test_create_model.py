"""One door to all models: names, files, heads, weights that fit and weights that do not."""

from __future__ import annotations

import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.toys import Toy, toy
from xattn.errors import CheckpointError, NotApplicableError, ParameterError, UnknownNameError, XattnWarning
from xattn.models import Classifier, create_model, models, save_weights
from xattn.spec import ModelSpec

ROOT = Path(__file__).parents[2]
TOY = "tests.models.toys:toy"
FIXED = "tests.models.toys:fixed"


def tensors(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(t.shape, generator=generator) if t.is_floating_point() else t.clone()
        for key, t in model.state_dict().items()
    }


def saved(state, path):
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def test_own_factory():
    model = create_model(TOY)
    assert isinstance(model, Toy)
    assert not model.training
    assert isinstance(model.spec, ModelSpec)
    assert (model.spec.feature_layer, model.spec.classifier, model.spec.name) == ("features", "fc", TOY)
    assert create_model(TOY, num_classes=7).fc.out_features == 7
    assert create_model(FIXED, num_classes=7).fc.out_features == 7  # takes no number: the classifier is replaced


@pytest.mark.parametrize("head", ["linear", "bcnn", "brnpa"])
@pytest.mark.parametrize("resolution", ["low", "high"])
def test_heads_on_an_own_factory(head, resolution):
    model = create_model(TOY, head=head, parts=2, resolution=resolution, circular=True, num_classes=5)
    assert isinstance(model, Classifier)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert model.backbone(torch.rand(1, 3, 16, 16)).shape[2:] == ((16, 16) if resolution == "high" else (4, 4))
    assert model.backbone.features[0].padding_mode == "circular"
    assert model.architecture == {
        "backbone": TOY, "head": head, "parts": 2, "resolution": resolution, "circular": True, "classes": 5,
    }  # fmt: skip
    assert "backbone.features.0.weight" in model.state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.filterwarnings("ignore:.*prefix 'module.' was taken off")
def test_weights_from_a_file(tmp_path, suffix, prefix):
    state = tensors(toy())
    path = saved({prefix + key: tensor for key, tensor in state.items()}, tmp_path / f"w{suffix}")
    model = create_model(TOY, weights=path)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    headed = create_model(TOY, weights=path, head="brnpa", resolution="high")
    assert all(torch.equal(tensor, state[key]) for key, tensor in headed.backbone.state_dict().items())
    with pytest.warns(XattnWarning, match="is of another 'fc', which starts from random"):
        other = create_model(TOY, weights=path, num_classes=9)
    assert torch.equal(other.features[0].weight, state["features.0.weight"])
    assert other.fc.out_features == 9


def test_a_file_without_counters_of_batch_norm_fits(tmp_path):
    state = {key: tensor for key, tensor in tensors(toy()).items() if "num_batches" not in key}
    assert create_model(TOY, weights=saved(state, tmp_path / "w.pt")).fc.out_features == 4


def test_weights_that_do_not_fit_are_counted_and_named(tmp_path):
    state = tensors(toy())
    del state["features.0.weight"], state["features.0.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(
        CheckpointError, match=r"2 missing \(first 'features.0.weight'\); 1 unexpected \(first 'extra'\)"
    ):
        create_model(TOY, weights=saved(state, tmp_path / "w.safetensors"))
    with pytest.raises(CheckpointError, match=r"2 of another shape \(first 'fc.bias': \(7,\) instead of \(4,\)\)"):
        create_model(TOY, weights=saved(tensors(Toy(7)), tmp_path / "w.safetensors"))


class Harmful:
    def __reduce__(self):
        return (print, ("code in a checkpoint has run",))


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, capsys):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": Harmful()}, path)
    with pytest.raises(CheckpointError, match="could run code when loaded, and is refused"):
        create_model(TOY, weights=path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError):
        create_model(TOY, weights=path)
    assert "has run" not in capsys.readouterr().out


def test_a_run_is_loaded_by_its_file_and_can_be_changed(tmp_path):
    teacher = create_model(TOY, head="brnpa", parts=2, num_classes=5)
    teacher.load_state_dict(tensors(teacher))
    path = str(save_weights(teacher, tmp_path / "best.safetensors"))
    x = torch.rand(2, 3, 16, 16)
    same = create_model(TOY, weights=path)
    torch.testing.assert_close(same(x), teacher(x))
    assert same.spec == teacher.spec
    student = create_model(TOY, weights=path, resolution="high")
    assert student.backbone(x).shape[2:] == (16, 16)
    assert student.architecture == {**teacher.architecture, "resolution": "high"}
    assert all(torch.equal(tensor, teacher.state_dict()[key]) for key, tensor in student.state_dict().items())
    named = create_model(TOY, weights=path, head="brnpa", parts=2, num_classes=5, resolution="high")
    torch.testing.assert_close(named(x), student(x))
    with pytest.warns(XattnWarning, match="another 'head'"):
        other = create_model(TOY, weights=path, head="bcnn", num_classes=5)
    assert torch.equal(other.backbone.features[0].weight, teacher.backbone.features[0].weight)
    with pytest.raises(CheckpointError, match="is of a network with a head"):
        create_model(FIXED, weights=path)
    with pytest.raises(ParameterError, match="has weights of its own"):
        create_model(path, weights="DEFAULT")


def test_an_ablation_stays_one(tmp_path):
    model = create_model(TOY, head="brnpa", num_classes=5)
    model.head.attention.refine = False
    model.architecture["options"] = {"refine": False, "seed": "activation"}
    path = save_weights(model, tmp_path / "best.safetensors")
    high = create_model(TOY, weights=path, resolution="high")
    assert high.head.attention.refine is False
    assert high.architecture["options"] == model.architecture["options"]


def test_files_that_are_no_network(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights at 'absent.safetensors'"):
        create_model("absent.safetensors")
    with pytest.raises(CheckpointError, match=r"no weights at .*absent.pth"):
        create_model(TOY, weights=tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="name the network and pass the file as its weights"):
        create_model(saved(tensors(toy()), tmp_path / "w.pth"))
    with pytest.raises(CheckpointError, match="does not say which network it belongs to"):
        create_model(saved(tensors(toy()), tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "unknown model 'resnet81'. Did you mean 'resnet18'"),
        ("tiny-cmm", "Did you mean 'tiny-cnn'"),
        ("tests.models.toys:tyo", "Did you mean 'toy'"),
        ("no_such_package.models:toy", "cannot be imported"),
        ("timm/resnet81", "unknown timm model 'resnet81'"),
        ("convnext_atto", "Did you mean 'timm/convnext_atto'"),
        ("google/vit-base", "As a network of Hugging Face it is hf/google/vit-base"),
        ("tests/models/toys.py:toy", "name the module, not its file: tests.models.toys:toy"),
        ("someone/nets:v1:big", r"return torch.hub.load\('someone/nets:v1', 'big'\) in a function of your own"),
        ("pytorch/vision:resnet81", "unknown model 'resnet81'. Did you mean 'resnet18'"),
    ],
)
def test_unknown_models_suggest_the_nearest(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "timm/" in name + message:
        pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(UnknownNameError, match=message):
        create_model(name)


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "pytorch/vision:v0.21.0:squeezenet1_1"])
def test_names_of_torch_hub_are_those_of_the_installed_library(name):
    pytest.importorskip("torchvision")
    assert create_model(name, num_classes=3).spec.name == "squeezenet1_1"


def test_options_that_do_not_exist():
    with pytest.raises(UnknownNameError, match=r"unknown head 'brnap'. Did you mean 'brnpa'"):
        create_model(TOY, head="brnap")
    with pytest.raises(ParameterError, match="resolution must be one of low, high, x2, x4, x8 but is 'higher'"):
        create_model(TOY, resolution="higher")
    with pytest.raises(ParameterError, match=r"returned str; expected a torch.nn.Module"):
        create_model("tests.models.toys:nothing")
    with pytest.raises(ParameterError, match="is int; expected a function"):
        create_model("tests.models.toys:NUMBER")
    with pytest.raises(CheckpointError, match="weights must be a file but is 'DEFAULT'"):
        create_model(TOY, weights="DEFAULT")


def test_a_factory_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_network.py").write_text("from tests.models.toys import toy\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(create_model("my_own_network:toy"), Toy)


def test_torchvision_by_name():
    pytest.importorskip("torchvision")
    model = create_model("squeezenet1_1", head="brnpa", resolution="high", num_classes=3)
    assert model.backbone(torch.rand(1, 3, 64, 64)).shape == (1, 512, 15, 15)
    assert (model.spec.input_size, model.spec.crop, model.spec.mean) == ((224, 224), 224 / 256, (0.485, 0.456, 0.406))
    assert model.spec.classes == ()
    plain = create_model("squeezenet1_1")
    assert plain.spec.classes[281] == "tabby"
    assert plain.architecture["head"] is None


def test_published_weights(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    enum = type(torchvision.models.SqueezeNet1_1_Weights.DEFAULT)
    monkeypatch.setattr(enum, "get_state_dict", lambda self, *args, **kwargs: state)
    model = create_model("squeezenet1_1", weights="DEFAULT", num_classes=6)
    assert torch.equal(model.features[0].weight, state["features.0.weight"])
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 6)
    headed = create_model("squeezenet1_1", weights="IMAGENET1K_V1", head="bcnn")
    assert torch.equal(headed.backbone.features[0].weight, state["features.0.weight"])
    assert len(headed.spec.classes) == 1000

    def offline(self, *args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(enum, "get_state_dict", offline)
    with pytest.raises(
        CheckpointError, match=r"cannot be downloaded .*; where there is a network, fetch https://.*\.pth"
    ):
        create_model("squeezenet1_1", weights="DEFAULT")
    with pytest.raises(CheckpointError, match="Did you mean 'IMAGENET1K_V1'"):
        create_model("squeezenet1_1", weights="IMAGENET1K_V7")


def test_timm_by_name(monkeypatch):
    timm = pytest.importorskip("timm")
    model = create_model("timm/mobilenetv3_small_050", head="brnpa", num_classes=3)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    assert model.spec.interpolation == "bicubic"

    def offline(*args, **kwargs):
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"timm/resnet18 cannot be downloaded \(no route to the hub\)"):
        create_model("timm/resnet18", weights="DEFAULT")


def test_a_transformer_takes_no_head():
    timm = pytest.importorskip("timm")
    small = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    models.register("test-vit")(lambda: small)
    try:
        with pytest.raises(NotApplicableError, match="is a transformer"):
            create_model("test-vit", head="brnpa")
        assert create_model("test-vit").spec.tokens.prefix == 1
    finally:
        models._factories.pop("testvit")
        models._display.pop("testvit")


class Attentive(nn.Module):
    """A map whose cells are mixed by self-attention, and a map again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x):
        cells = x.flatten(2).transpose(1, 2)
        return x + self.mix(cells, cells, cells)[0].transpose(1, 2).unflatten(2, x.shape[2:])


class Hybrid(nn.Module):
    """A CNN with self-attention at its end, and the mean of its map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), Attentive(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


def test_attention_between_the_cells_of_a_map_takes_a_head():
    torch.manual_seed(0)
    made = create_model(f"{__name__}:Hybrid", head="brnpa", num_classes=3, input_size=(32, 32))
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    assert made.backbone(x).shape == (2, 8, 8, 8)
    assert made(x).shape == (2, 3)


def test_a_registered_factory_of_another_package_may_take_all_options():
    seen = {}

    def factory(weights=None, head=None, parts=3, resolution="low", circular=False, num_classes=None):
        seen.update(weights=weights, head=head, parts=parts, resolution=resolution, num_classes=num_classes)
        return nn.Identity()

    models.register("test-all")(factory)
    try:
        create_model("test-all", head="bcnn", parts=4, resolution="high")
    finally:
        models._factories.pop("testall")
        models._display.pop("testall")
    assert seen == {"weights": None, "head": "bcnn", "parts": 4, "resolution": "high", "num_classes": None}
