"""What a person says about a model's images and classes, in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from typer.testing import CliRunner

import xattn
from xattn.cli import app
from xattn.data.preprocessing import preprocess
from xattn.errors import ParameterError, UnknownNameError, XattnWarning
from xattn.inspection.processors import transformed
from xattn.spec import ModelSpec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NAMES = ["cat", "dog", "fox", "owl"]
FACTORY = "tests.test_given:grey"


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


def grey() -> nn.Module:
    return network(1)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((200, 150), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def steps(size: int, resize: int) -> Callable[[Image.Image], Tensor]:
    made: Callable[[Image.Image], Tensor] = transforms.Compose(
        [transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    return made


def test_given_facts_are_used(photo: Path) -> None:
    explanation = xattn.explain(
        network(), photo, "hirescam", "fox", mean=MEAN, std=STD, classes=NAMES, size=(64, 96), fit="squash"
    )
    assert explanation.class_name() == "fox"
    assert explanation.maps.shape[-2:] == (16, 24)
    spec = ModelSpec(feature_layer="", input_size=(64, 96), mean=MEAN, std=STD)
    torch.testing.assert_close(explanation.inputs, preprocess(photo, spec, fit="squash")[None])


def test_facts_given_to_infer_spec() -> None:
    spec = xattn.infer_spec(network(), input_size=(64, 64), mean=0.5, std=STD, classes=dict(enumerate(NAMES)))
    assert (spec.mean, spec.std, spec.classes) == ((0.5,) * 3, STD, tuple(NAMES))
    assert spec.evidence["normalization"].how == spec.evidence["classes"].how == "given"
    with pytest.raises(ParameterError, match="3 names, but the model returns 4 values"):
        xattn.infer_spec(network(), input_size=(64, 64), classes=NAMES[:3])


def test_a_transform_prepares_the_images(photo: Path) -> None:
    transform = steps(64, 80)
    explanation = xattn.explain(network(), [photo, Image.open(photo)], "hirescam", transform=transform)
    expected = transform(Image.open(photo).convert("RGB"))
    for seen in explanation.inputs:
        assert torch.equal(seen, expected)
    assert explanation.spec.mean == pytest.approx(MEAN, abs=1e-4)  # so that pictures have the right colours
    spec = xattn.infer_spec(network(), transform=transform)
    assert (spec.input_size, spec.crop, spec.fit) == ((64, 64), 0.8, "crop")
    assert float((preprocess(photo, spec) - expected).abs().mean()) < 0.02


def test_transforms_of_other_kinds() -> None:
    class Albumentations:
        def __call__(self, *, image: np.ndarray[Any, Any]) -> dict[str, Any]:
            return {"image": (image[:64, :64].astype(np.float32) / 255 - 0.5) / 0.5}

    Albumentations.__module__ = "albumentations.core"
    assert transformed(Albumentations()).mean == pytest.approx((0.5,) * 3)
    grey_one = transforms.Compose([transforms.Grayscale(), transforms.Resize((32, 48)), transforms.ToTensor()])
    found = transformed(grey_one)
    assert (found.size, found.fit, found.mean, found.std) == ((32, 48), "squash", (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (transforms.Compose([transforms.RandomCrop(64), transforms.ToTensor()]), "gives another input each time"),
        (transforms.Resize(64), "expected a float tensor .* but it gave Image"),
        (transforms.PILToTensor(), r"but it gave torch.uint8 \(3, 300, 400\)"),
    ],
)
def test_transforms_that_are_none(photo: Path, transform: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        xattn.explain(network(), photo, "hirescam", transform=transform)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mean": 0.5}, "mean and std go together"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean has 2 values; expected 3, one a channel"),
        ({"mean": (123.7, 116.3, 103.5), "std": 58.0}, r"mean is of images scaled to \[0, 1\]; divide"),
        ({"mean": "imagenet", "std": 1.0}, "mean"),
        ({"mean": 0.0, "std": 0.0}, "std"),
        ({"classes": {1: "cat", 2: "dog"}}, "a name for each index from 0 to 1"),
        ({"classes": NAMES[:2]}, "2 names, but Sequential has 4 classes"),
        ({"size": 0}, "size"),
        ({"size": (64, 64, 3)}, "size"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not say how its images")
def test_what_cannot_be_given(photo: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ParameterError, match=reason):
        xattn.explain(network(), photo, "hirescam", **{"size": 64, **given})


def test_an_unknown_name_is_still_one(photo: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fox'"):
        xattn.explain(network(), photo, "hirescam", "fax", mean=0.5, std=0.5, size=64, classes=NAMES)


# ------------------------------------------------------------------------------------------------------ command line


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("given", [{}, {"mean": "0.3", "std": "0.2"}])
def test_python_and_the_command_line_give_the_same(photo: Path, tmp_path: Path, given: dict[str, str]) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    options += ["--size", "64x96", "--classes", tmp_path / "names.txt", "-m", "hirescam", "--save-maps", "--json"]
    result = run("explain", photo, "--model", FACTORY, *options, "--target", "owl", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["images"]
    read = xattn.load_explanation(entry["maps"][0]["maps"])
    facts: dict[str, Any] = {name: float(value) for name, value in given.items()}

    def by_hand() -> xattn.Explanation:
        return xattn.explain(grey(), photo, "hirescam", "owl", size=(64, 96), classes=NAMES, **facts)

    if given:
        expected = by_hand()
    else:
        with pytest.warns(XattnWarning, match="passed as they are, from 0 to 1"):
            expected = by_hand()
    assert ("passed as they are, from 0 to 1" in " ".join(result.stderr.split())) == (not given)
    torch.testing.assert_close(read.maps, expected.maps)
    assert entry["maps"][0]["target"]["class"] == "owl"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--mean", "0.5"], "mean and std go together"),
        (["--mean", "half", "--std", "1"], "--mean: expected numbers with commas between them"),
        (["--size", "1x2x3"], "--size: expected one side or HxW"),
        (["--classes", "no-such.txt"], "there is no file"),
        (["--classes", "cat,dog"], "2 names, but Sequential has 4 classes"),
        (["--window", "5"], "--window: expected LOW,HIGH"),
    ],
)
def test_what_is_wrong_on_the_command_line(photo: Path, options: list[str], reason: str) -> None:
    result = run("explain", photo, "-m", "hirescam", "--model", FACTORY, *options)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())


def test_given_facts_need_a_model(photo: Path) -> None:
    result = run("explain", photo, "--mean", "0.5", "--std", "0.5")
    assert result.exit_code == 2
    assert "--mean and --std needs --model" in " ".join(result.stderr.split())


def test_a_window_on_the_command_line(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(-1000, 1000, 80 * 80).reshape(80, 80).astype(np.int32)).save(tmp_path / "ct.tif")
    words = ["explain", tmp_path / "ct.tif", "-m", "hirescam", "--model", FACTORY, "--size", "64", "--mean", "0.5"]
    words += ["--std", "0.5", "--out", tmp_path / "out"]
    assert "which is a guess" in " ".join(run(*words).stderr.split())
    assert "which is a guess" not in " ".join(run(*words, "--window", "-1000,400").stderr.split())
