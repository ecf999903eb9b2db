"""`--transform`: a preparation that a person names gives the inputs of the command line and of Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import xattn
from tests import images_zoo as zoo
from tests.cli import models
from tests.cli.conftest import Run
from tests.cli.test_folders import spotted
from xattn.data.preprocessing import view_of
from xattn.storage import load_explanation

CODE = """
from torchvision import transforms

usual = [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()]
square = transforms.Compose([*usual, transforms.Normalize((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))])
mirrored = transforms.Compose([transforms.RandomHorizontalFlip(1.0), square])
text = "no function"
"""
USUAL = [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()]
SQUARE = transforms.Compose([*USUAL, transforms.Normalize((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))])
MIRRORED = transforms.Compose([transforms.RandomHorizontalFlip(1.0), SQUARE])


@pytest.mark.parametrize("model", ["cnn", "unknown"])
@pytest.mark.parametrize(("name", "transform"), [("square", SQUARE), ("mirrored", MIRRORED)])
def test_python_and_the_command_line_agree(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str, transform: transforms.Compose
) -> None:
    module = f"prep_{model}_{name}"
    (tmp_path / f"{module}.py").write_text(CODE)
    photo = tmp_path / "wide.png"
    spotted(3).resize((90, 50)).save(photo)
    common = ("--model", f"tests.cli.models:{model}", "--transform", f"{module}:{name}")
    found = json.loads(run("explain", photo, "-m", "gradcam", *common, "--save-maps", "--json").stdout)
    maps = load_explanation(found["images"][0]["maps"][0]["maps"])
    expected = xattn.explain(getattr(models, model)(), photo, "gradcam", transform=transform)
    torch.testing.assert_close(maps.maps, expected.maps)
    assert int(maps.target[0]) == int(expected.target[0])
    x = transform(Image.open(photo).convert("RGB"))[None]
    alone = xattn.explain(getattr(models, model)(), x, "gradcam", spec=expected.spec)
    torch.testing.assert_close(maps.maps, alone.maps)
    assert run("compare", photo, "-m", "gradcam", "--no-curves", *common).exit_code == 0


def test_pictures_show_what_the_model_sees(tmp_path: Path) -> None:
    photo = tmp_path / "wide.png"
    spotted(3).resize((90, 50)).save(photo)
    plain = xattn.explain(models.cnn(), photo, "gradcam", transform=SQUARE)
    turned = xattn.explain(models.cnn(), photo, "gradcam", transform=MIRRORED)
    assert plain.photographs == (photo,)  # known to resize and crop alone, so that pictures are sharp
    assert plain.spec is not None
    assert (plain.spec.input_size, plain.spec.crop) == ((32, 32), 0.8)
    assert turned.photographs == ()
    seen = np.asarray(view_of(Image.open(photo), plain.spec).resize((32, 32)), np.float64)
    small = plain.images[0].numpy().astype(np.float64)
    assert np.abs(seen - small).mean() < 8
    mirrored = turned.images[0].numpy().astype(np.float64)
    assert np.abs(seen[:, ::-1] - mirrored).mean() < 8


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--transform", "prep_bad:text"), "prep_bad:text is str; expected a function of a Pillow image"),
        (("--transform", "prep_bad:squar"), "Did you mean 'square'"),
        (
            ("--transform", "prep_missing:square"),
            "--transform 'prep_missing:square': 'prep_missing' cannot be imported",
        ),
        (("--transform", "square"), "expected package.module:transform"),
        (("--transform", "prep_bad:square", "--fit", "crop", "--size", "32"), "leave --fit and --size out"),
    ],
)
def test_what_is_no_transform_is_said(run: Run, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    (tmp_path / "prep_bad.py").write_text(CODE)
    zoo.rgb().save(tmp_path / "a.png")
    result = run("explain", "a.png", "-m", "gradcam", "--model", "tests.cli.models:cnn", *words)
    assert result.exit_code == 2
    assert text in result.stderr


def test_a_transform_needs_a_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prep_alone.py").write_text(CODE)
    zoo.rgb().save(tmp_path / "a.png")
    assert "--transform needs --model" in run("explain", "a.png", "--transform", "prep_alone:square").stderr
