"""Weights that try to run code, or to set what is not theirs: each would write a file if it succeeded."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.images_zoo import rgb
from tests.training.colours import write_images
from xattn.cli import app
from xattn.errors import CheckpointError, ParameterError
from xattn.models import create_model, load_model, save_weights
from xattn.models.checkpoint import read_state, write_tensors
from xattn.models.factory import FactoryError
from xattn.models.header import read_header, read_metadata
from xattn.training.recipe import Recipe

TRAP = """
from pathlib import Path
Path("trap").write_text("imported")

def make(num_classes=4):
    Path("trap").write_text("called")
    import torch
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, num_classes),
    )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module that writes `trap` when it is imported or called."""
    (tmp_path / "hostile_net.py").write_text(TRAP)
    rgb().save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("hostile_net", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of a small network with BR-NPA."""
    torch.manual_seed(0)
    model = create_model("tiny-cnn", head="brnpa", parts=2, num_classes=3)
    return save_weights(model, tmp_path_factory.mktemp("good") / "good.safetensors")


@pytest.fixture
def altered(weights: Path, tmp_path: Path) -> Callable[..., Path]:
    """The good file with something else in its header."""

    def write(**architecture: Any) -> Path:
        header = json.loads(read_metadata(weights)["xattn"])
        header["architecture"].update(architecture)
        return write_tensors(read_state(weights), tmp_path / "w.safetensors", {"xattn": json.dumps(header)})

    return write


def xattn(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def refused(result: Result) -> str:
    """The one line of a command that did not do it."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr.strip()


COMMANDS: dict[str, tuple[str, ...]] = {
    "explain": ("explain", "cat.png", "-m", "gradcam", "--out", "out", "--model"),
    "compare": ("compare", "cat.png", "-m", "gradcam", "--no-curves", "--model"),
    "doctor": ("doctor", "--model"),
    "evaluate": ("evaluate", "--data", "images"),
    "train": ("train", "--data", "images", "--backbone", "tiny-cnn", "--image-size", "32", "--batch-size", "4",
              "--epochs", "1", "--accelerator", "cpu", "-s", "tensorboard=false", "-s", "held_out=0.2", "--out", "r",
              "-q", "--teacher"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("backbone", ["hostile_net:make", "os:abort", "sys:exit"])
def test_a_file_does_not_choose_what_code_is_run(
    folder: Path, altered: Callable[..., Path], command: str, backbone: str
) -> None:
    write_images(folder / "images", 6, 32, seed=0)
    path = altered(backbone=backbone)
    line = refused(xattn(*COMMANDS[command], path))
    assert "does not choose what code is run" in line
    assert backbone in line
    assert not (folder / "trap").exists()


def test_following_the_message_works(folder: Path) -> None:
    trained = create_model("hostile_net:make", head="brnpa", parts=2, num_classes=3)
    path = save_weights(trained, folder / "best.safetensors")
    (folder / "trap").unlink()
    line = refused(xattn("explain", "cat.png", "-m", "brnpa", "--out", "out", "--model", path))
    assert not (folder / "trap").exists()
    words = shlex.split(re.search(r"--model .*", line)[0])  # type: ignore[index]
    result = xattn("explain", "cat.png", "-m", "brnpa", "--out", "out", *words)
    assert result.exit_code == 0, result.output
    assert (folder / "trap").exists()  # the trap works: whoever names the factory runs it
    again = load_model(path, "hostile_net:make")
    assert again.architecture == trained.architecture
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    with pytest.raises(FactoryError):
        load_model(path, "hostile_net:other")


def test_following_the_message_of_evaluate_and_train_works(folder: Path) -> None:
    write_images(folder / "images", 6, 32, seed=0)
    trained = create_model("hostile_net:make", head="linear", num_classes=3)
    path = save_weights(trained, folder / "best.safetensors")
    line = refused(xattn(*COMMANDS["evaluate"], path))
    command = shlex.split(re.search(r"xattn evaluate .*", line)[0])  # type: ignore[index]
    result = xattn(*command[1:], "--device", "cpu")
    assert result.exit_code == 0, result.output
    line = refused(xattn(*COMMANDS["train"], path))
    words = shlex.split(re.search(r"--set distill.*", line)[0])  # type: ignore[index]
    result = xattn(*COMMANDS["train"], path, *words)
    assert result.exit_code == 0, result.output


def test_a_recipe_does_not_choose_what_code_is_run(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    for text in ('[model]\nbackbone = "hostile_net:make"\n', '[distill]\nfactory = "hostile_net:make"\n'):
        recipe.write_text(text)
        line = refused(xattn("train", recipe, "--data", "images"))
        assert "does not choose what code is run" in line
        assert not (folder / "trap").exists()
        with pytest.raises(ParameterError, match="name it yourself"):
            Recipe.read(recipe)
    recipe.write_text('[model]\nbackbone = "hostile_net:make"\n')
    assert Recipe.read(recipe, ["model.backbone=hostile_net:make"]).model.backbone == "hostile_net:make"


@pytest.mark.parametrize(
    "backbone",
    [
        "timm/hf-hub:someone/net", "timm/local-dir:.", "timm/resnet18.local-dir:.", "timm/../resnet18", "hf-hub:a/b",
        "w.safetensors", "good.pt", "", "resnet", "a" * 201, 5, ["tiny-cnn"], {"a": 1}, None, ".:make", "hostile_net:",
        "hostile_net.make:__class__.mro",
    ],
)  # fmt: skip
def test_no_other_name_is_followed(folder: Path, altered: Callable[..., Path], backbone: object) -> None:
    with pytest.raises(CheckpointError):
        create_model(altered(backbone=backbone))
    assert not (folder / "trap").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"__class__": "x"}, {"forward": "x"}, {"_forward_hooks": {}}, {"training": True}, {"parts": 10**9},
        {"refine": 1}, {"refine": "yes"}, {"seed": "wrong"}, {"width": 8}, {"activation": ["norm"]}, [1], "refine",
        {str(i): 1 for i in range(21)},
    ],
)  # fmt: skip
def test_only_documented_ablations_are_set(altered: Callable[..., Path], options: object) -> None:
    with pytest.raises((CheckpointError, ParameterError)):
        create_model(altered(options=options))


def test_documented_ablations_are_set(altered: Callable[..., Path]) -> None:
    path = altered(options={"refine": False, "seed": "random"})
    attention = create_model(path).get_submodule("head.attention")
    assert (attention.refine, attention.seed, attention.suppress) == (False, "random", "similarity")
    assert read_header(path).architecture.options == {"refine": False, "seed": "random"}  # type: ignore[union-attr]


def test_names_of_libraries_are_built_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def connect(*arguments: object) -> None:
        raise AssertionError("the network was asked")

    path = save_weights(create_model("timm/resnet10t", head="linear", num_classes=3), tmp_path / "w.safetensors")
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert create_model(path).architecture["backbone"] == "timm/resnet10t"
