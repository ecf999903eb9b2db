"""`xattn train` and `xattn evaluate` as a user types them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from xattn.cli import app
from xattn.training import loop


def xattn(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


COMMON = (
    *("--backbone", "tiny-cnn", "--image-size", 32, "--batch-size", 8, "--accelerator", "cpu", "--devices", 1),
    *("--set", "tensorboard=false", "--set", "held_out=0.2"),
)


@pytest.fixture(scope="module")
def run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, made by the command."""
    out = tmp_path_factory.mktemp("command") / "run"
    result = xattn("train", "--data", colours, *COMMON, "--epochs", 1, "--lr", 0.01, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"{out}/best.safetensors" in result.stdout
    assert "xattn explain photo.jpg --model" in result.stdout
    assert "epoch 1/1" in result.stderr
    return out


def test_evaluate_gives_a_table_and_json(run: Path, colours: Path) -> None:
    table = xattn("evaluate", run / "best.safetensors", "--data", colours, "--device", "cpu")
    assert table.exit_code == 0, table.output
    assert all(word in table.stdout for word in ("top-1", "sparsity 1/x", "parts 1+2", "images per second"))
    assert "top-5" not in table.stdout  # of three classes
    assert "the data have no test part, so all of them are scored" in table.stderr
    printed = xattn("evaluate", run / "best.safetensors", "--data", colours, "--device", "cpu", "--json")
    values = json.loads(printed.stdout)
    assert values["images"] == 42
    assert values["split"] == "all"  # the folder has no test part
    assert 0 <= values["top1"] <= 1
    assert values["top5"] is None
    assert set(values["ranks"]) == {"1+2+3", "1+2", "2+3", "1", "2", "3"}
    assert values["sparsity"] >= 1


def test_evaluate_tells_classes_apart(run: Path, colours: Path, tmp_path: Path) -> None:
    """The tables agree with an evaluation of one image after the other."""
    from xattn.cli.loading import load
    from xattn.data.preprocessing import preprocess

    out = tmp_path / "tables"
    common = ("evaluate", run / "best.safetensors", "--data", colours, "--device", "cpu")
    printed = xattn(*common, "--json", "--out", out)
    assert printed.exit_code == 0, printed.output
    network = load(str(run / "best.safetensors"))
    names = list(network.spec.classes)
    counts = {name: dict.fromkeys(names, 0) for name in names}
    with torch.no_grad():
        for path in sorted(colours.rglob("*.png")):
            k = int(network.model(preprocess(path, network.spec)[None]).argmax())
            counts[path.parent.name][names[k]] += 1
    with (out / "confusion.csv").open() as file:
        matrix = list(csv.reader(file))
    assert matrix == [["true class", *names], *([n, *map(str, counts[n].values())] for n in names)]
    for row in json.loads(printed.stdout)["per_class"]:
        mine = counts[row["name"]]
        assert row["images"] == sum(mine.values())
        assert row["top1"] == pytest.approx(mine[row["name"]] / row["images"])
        assert row["taken_for"] == {n: c for n, c in mine.items() if c and n != row["name"]}
    with (out / "classes.csv").open() as file:
        assert [r["class"] for r in csv.DictReader(file)] == names
    table = xattn(*common)
    assert all(f"class {name}" in table.stdout for name in names)


def test_what_was_trained_can_be_loaded_like_any_model(run: Path) -> None:
    from xattn.cli.loading import load

    loaded = load(str(run / "best.safetensors"))
    assert loaded.spec.classes == ("blue", "green", "red")
    assert not loaded.random


def test_a_scorer_is_a_copy_fine_tuned_to_images_that_lack_cells(run: Path, colours: Path, tmp_path: Path) -> None:
    """The network is that of the file: no option names its backbone, head or size."""
    out, small = tmp_path / "scorer", ("--batch-size", 8, "--set", "tensorboard=false", "--set", "held_out=0.2")
    result = xattn(
        "train", "--data", colours, "--augment", "removal", "--start", run / "best.safetensors", *small, "--epochs", 1,
        "--accelerator", "cpu", "--devices", 1, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe = (out / "recipe.toml").read_text()
    lines = ('removal = "mixed"', 'backbone = "tiny-cnn"', 'head = "brnpa"', "image_size = 32", "lr = 0.01")
    assert all(line in recipe for line in lines), recipe
    assert load_file(out / "best.safetensors").keys() == load_file(run / "best.safetensors").keys()


def test_a_recipe_and_its_overrides(run: Path, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    result = xattn("train", run / "recipe.toml", "-q", "--out", out, "--head", "bcnn", "--set", "optimizer.lr=0.005")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    recipe = (out / "recipe.toml").read_text()
    assert 'head = "bcnn"' in recipe
    assert "lr = 0.005" in recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "pass a recipe, or the folder of your images"),
        (("train", "--data", "nowhere", "--out", "x"), "nowhere"),
        (("train", "missing.toml"), "no recipe at 'missing.toml'"),
        (("train", "--data", ".", "--set", "ephocs=3"), "Did you mean 'epochs'"),
        (("train", "--data", ".", "--head", "brmpa"), "model.head"),
        (("train", "--data", ".", "--augment", "removal"), "name its weights with --start"),
        (("train", "--data", ".", "--augment", "flips"), "--augment must be removal but is 'flips'"),
        (("evaluate", "missing.safetensors", "--data", "."), "missing.safetensors"),
        (("evaluate", "missing.safetensors"), "pass the folder of the images"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = xattn(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def linked(colours: Path, folder: Path, names: dict[str, str]) -> Path:
    """Some classes of images, by these names."""
    folder.mkdir()
    for name, colour in names.items():
        (folder / name).symlink_to(colours / colour)
    return folder


def test_images_of_some_classes_are_those_that_the_network_names(run: Path, colours: Path, tmp_path: Path) -> None:
    best = run / "best.safetensors"
    whole = json.loads(xattn("evaluate", best, "--data", colours, "--json").stdout)
    some = linked(colours, tmp_path / "some", {"Blue": "blue", "red": "red"})
    result = xattn("evaluate", best, "--data", some, "--json", "--out", tmp_path / "tables")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    of = {row["name"]: row for row in whole["per_class"]}
    assert found["per_class"] == [of["blue"], of["red"]]
    assert (tmp_path / "tables" / "classes.csv").read_text().count("\n") == 3
    assert "of 2 of the 3 classes that the network knows" in xattn("evaluate", best, "--data", some).stdout


def test_classes_that_do_not_fit_are_refused(run: Path, colours: Path, tmp_path: Path) -> None:
    data = linked(colours, tmp_path / "data", {"blue": "blue", "purple": "green"})
    result = xattn("evaluate", run / "best.safetensors", "--data", data)
    assert result.exit_code == 2
    assert "knows 3 classes and the images have 2, but none of its classes is called 'purple'" in result.output


def test_a_network_without_a_head_is_sent_to_explain(colours: Path) -> None:
    result = xattn("evaluate", "efficientnet_lite0", "--data", colours)
    assert result.exit_code == 2
    assert "none of tiny-bcnn, tiny-brnpa, tiny-cnn, tiny-vit" in result.output
    assert f"`xattn explain {colours} --model efficientnet_lite0`" in result.output


def test_a_damaged_test_part_is_an_error_and_not_all_images(run: Path, colours: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(colours, tmp_path / "data" / part)
    for file in (tmp_path / "data" / "test").rglob("*.png"):
        file.unlink()
    result = xattn("evaluate", run / "best.safetensors", "--data", tmp_path / "data")
    assert result.exit_code == 2
    assert "its part 'test' holds no folders of images" in result.output


def test_ctrl_c_says_how_to_go_on(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop._Run._step

    def interrupted(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop._Run, "_step", interrupted)
    result = xattn("train", "--data", colours, *COMMON, "--epochs", 2, "--out", tmp_path / "run", "-q")
    assert result.exit_code == 130
    assert "stopped in epoch 1 of 2" in result.output
    assert "same command goes on" in result.output
    assert (tmp_path / "run" / "last.safetensors").is_file()
