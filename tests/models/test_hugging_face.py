"""Networks of Hugging Face from folders of `save_pretrained`: right images, names and maps, and no foreign code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import xattn
from tests.images_zoo import rgb
from xattn.cli import app
from xattn.data.preprocessing import preprocess
from xattn.errors import CheckpointError, ParameterError, XattnWarning
from xattn.inspection import infer_spec
from xattn.models import create_model, load_model, save_weights
from xattn.models.checkpoint import write_tensors
from xattn.models.factory import FactoryError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = {0: "cat", 1: "dog", 2: "fox"}
VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SIDE = {"height": 64, "width": 64}


def vit() -> nn.Module:
    named = {"id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, **named))


def clip() -> nn.Module:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=24))


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1] * 4, num_labels=3)
    return transformers.ResNetForImageClassification(config)


def dinov2() -> nn.Module:
    config = {**VIT, "image_size": 70, "patch_size": 14}
    del config["intermediate_size"]
    return transformers.Dinov2Model(transformers.Dinov2Config(**config))


KINDS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "vit": (vit, "ViTImageProcessor", {"size": SIDE}),
    "resnet": (resnet, "ConvNextImageProcessor", {"size": {"shortest_edge": 64}, "crop_pct": 0.8}),
    "dinov2": (dinov2, "BitImageProcessor", {"size": {"shortest_edge": 80}, "crop_size": {"height": 70, "width": 70}}),
    "clip": (clip, "CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": SIDE}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, as `save_pretrained` writes them."""
    root = tmp_path_factory.mktemp("hub")
    for name, (make, processor, options) in KINDS.items():
        torch.manual_seed(0)
        make().eval().save_pretrained(root / name)
        getattr(transformers, processor)(**options).save_pretrained(root / name)
    return root


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((200, 150), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_a_model(folders: Path, photo: Path, kind: str) -> None:
    model = create_model(f"hf/{folders / kind}")
    spec = model.spec
    assert isinstance(spec, xattn.ModelSpec)
    assert spec.evidence["normalization"].how == "proved"
    processor = transformers.AutoImageProcessor.from_pretrained(folders / kind)
    x = processor(images=Image.open(photo), return_tensors="pt")["pixel_values"]
    assert spec.input_size == tuple(x.shape[-2:])
    assert float((preprocess(photo, spec) - x[0]).abs().mean()) < 0.02
    assert spec.output == {"clip": ("image_embeds",), "dinov2": ("pooler_output",)}.get(kind, ("logits",))
    assert spec.classes == (tuple(NAMES.values()) if kind == "vit" else ())
    methods = ["hirescam", "activation"] if kind == "resnet" else ["hirescam", "rollout"]
    grids = {"vit": 4, "resnet": 2, "dinov2": 5, "clip": 4}
    for explanation in xattn.explain(model, photo, methods):
        assert explanation.maps.shape == (1, 1, grids[kind], grids[kind])


def test_the_weights_are_those_of_the_folder(folders: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = transformers.ViTForImageClassification.from_pretrained(folders / "vit").eval()(x).logits
        torch.testing.assert_close(create_model(f"hf/{folders / 'vit'}")(x).logits, expected)
        whole = transformers.CLIPModel.from_pretrained(folders / "clip").eval()
        embedding = whole.visual_projection(whole.vision_model(x).pooler_output)
        torch.testing.assert_close(create_model(f"hf/{folders / 'clip'}")(x).image_embeds, embedding)


def test_a_network_that_was_loaded_by_hand_finds_its_processor(folders: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(folders / "vit")
    spec = infer_spec(model)
    assert spec.mean == (0.5, 0.5, 0.5)
    assert spec.fit == "squash"
    assert infer_spec(vit()).mean is None  # and one that was not loaded has none


def test_without_a_processor_normalization_is_unknown(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "vit", tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    spec = create_model(f"hf/{tmp_path / 'bare'}").spec
    assert spec.mean is None
    assert spec.evidence["normalization"].how == "assumed"


def test_a_processor_that_does_more_is_told(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "resnet", tmp_path / "net")
    flipping = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size=SIDE)
    flipping.save_pretrained(tmp_path / "net")
    with pytest.warns(XattnWarning, match="does more to an image than to resize, crop and normalize"):
        spec = create_model(f"hf/{tmp_path / 'net'}").spec
    assert spec.evidence["normalization"].how == "contradicted"


def test_other_weights_and_another_number_of_classes(folders: Path, tmp_path: Path) -> None:
    name = f"hf/{folders / 'vit'}"
    assert create_model(name, num_classes=7)(torch.randn(1, 3, 64, 64)).logits.shape == (1, 7)
    torch.manual_seed(5)
    trained = vit()
    state = {f"net.{key}": t for key, t in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    with pytest.warns(XattnWarning, match=r"the prefix 'net\.' was taken off"):
        model = create_model(name, weights=tmp_path / "last.ckpt")
    assert torch.equal(model.classifier.weight, trained.classifier.weight)
    assert model.spec.mean == (0.5, 0.5, 0.5)


def test_a_norm_behind_the_attention_is_not_read_for_its_input() -> None:
    config = transformers.Swinv2Config(
        embed_dim=16, depths=[1, 1, 1], num_heads=[2, 4, 8], window_size=4, image_size=64, patch_size=4, num_labels=3
    )
    for seed in range(2):
        torch.manual_seed(seed)
        model = transformers.Swinv2ForImageClassification(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # at its start the branch of the attention is closed
                nn.init.normal_(parameter, 1, 0.1)
        spec = infer_spec(model)
        assert spec.tokens is not None
        assert (spec.tokens.patch, spec.tokens.prefix, spec.tokens.blocks) == ((16, 16), 0, ())


# ------------------------------------------------------------------------------------------- what is refused, and why


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "net.Net"}}, "needs code of its own"),
        ({"attn_implementation": "someone/kernel"}, "'attn_implementation' of its config.json is not supported"),
        ({"vision_config": {"_attn_implementation": "a/b:c"}}, "'_attn_implementation' of its config.json"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'quantization_config'"),
        (
            {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/net"},
            "timm has no network 'hf-hub:someone/net'",
        ),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel is no image classifier"),
        ({"architectures": ["NoSuchVisionModel"]}, "has no network 'NoSuchVisionModel'"),
    ],
)
def test_a_folder_chooses_no_code(folders: Path, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    shutil.copytree(folders / "vit", tmp_path / "net")
    (tmp_path / "net" / "net.py").write_text("raise SystemExit('imported')")
    path = tmp_path / "net" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=reason):
        create_model(f"hf/{tmp_path / 'net'}")


def test_pickled_weights_and_missing_ones_are_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "vit", tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").rename(tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no weights as safetensors but pytorch_model\.bin, which is not read"):
        create_model(f"hf/{tmp_path / 'net'}")
    state = {key: t for key, t in vit().state_dict().items() if not key.startswith("classifier")}
    write_tensors(state, tmp_path / "net" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"2 weights of ViTForImageClassification .* \(first 'classifier\.bias'\)"
    ):
        create_model(f"hf/{tmp_path / 'net'}")


def test_an_adapter_is_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "vit", tmp_path / "net")
    (tmp_path / "net" / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(CheckpointError, match="holds an adapter"):
        create_model(f"hf/{tmp_path / 'net'}")


def test_a_weights_file_does_not_name_a_network_of_the_hub(folders: Path, tmp_path: Path) -> None:
    name = f"hf/{folders / 'resnet'}"
    path = save_weights(create_model(name), tmp_path / "own.safetensors")
    with pytest.raises(FactoryError, match="a file does not choose what code is run"):
        load_model(path)
    assert create_model(name, weights=path).spec.feature_layer == create_model(name).spec.feature_layer


def test_names_that_are_nowhere(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a folder nor in the cache of Hugging Face"):
        create_model("hf/someone/no-such-net")
    with pytest.raises(CheckpointError, match="no such folder"):
        create_model("hf/no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        create_model(f"hf/{tmp_path / 'empty'}")
    with pytest.raises(ParameterError, match=f"its name as a model is hf/{folders / 'vit'}"):
        create_model(str(folders / "vit"))


# ------------------------------------------------------------------------------------------------------ command line


def test_from_the_command_line(folders: Path, tmp_path: Path) -> None:
    rgb().save(tmp_path / "cat.png")
    words = ["explain", "-m", "gradcam", str(tmp_path / "cat.png"), "--model", f"hf/{folders / 'vit'}"]
    result = CliRunner().invoke(app, [*words, "--target", "fox", "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)["images"]
    assert entry["maps"][0]["target"]["class"] == "fox"
    assert "random weights" not in result.stderr
    assert "normalized" not in result.stderr
