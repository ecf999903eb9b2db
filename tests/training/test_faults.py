"""What a run survives: kills at each file operation, SIGTERM, lost and damaged files, exchanged images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.colours import environment, tiny_recipe, write_images
from xattn.cli import app
from xattn.errors import CheckpointError, ParameterError
from xattn.models.checkpoint import read_state
from xattn.training import loop
from xattn.training.checkpoint import load_run
from xattn.training.recipe import Recipe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 6, 16, seed=0)


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one epoch."""
    out = tmp_path_factory.mktemp("done") / "run"
    loop.train(small(images, out, run__epochs=1))
    return out


def small(images: Path, out: Path, **changes: object) -> Recipe:
    return tiny_recipe(images, out, **{"run__image_size": 16, "run__batch_size": 6, "run__epochs": 2, **changes})


@pytest.mark.slow
def test_a_run_killed_at_any_file_operation_ends_with_the_same_weights(images: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(small(images, tmp_path / "any").to_toml())
    # Every fifth operation here; "1", "1" tries all of them.
    command = [sys.executable, "-m", "tests.training.kill_everywhere", "recipe.toml", str(tmp_path / "runs"), "2", "5"]
    (tmp_path / "runs").mkdir()
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["operations"] > 20
    assert summary["killed"] == len(range(2, summary["operations"] + 1, 5))
    assert (summary["failed"], summary["different"]) == ([], []), result.stderr[-2000:]


def test_sigterm_saves_as_ctrl_c_does(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = small(images, out, run__epochs=2000)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    command = [sys.executable, "-m", "xattn", "train", "-q", "recipe.toml"]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped in epoch" in printed
    assert "same command goes on" in printed
    assert load_run(out / "last.safetensors").progress.step > 0


def test_a_lost_state_is_not_trained_over(images: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = small(images, out, run__epochs=1)
    for name in ("last.safetensors", "best.safetensors"):
        shutil.copytree(done, out)
        (out / name).unlink()
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(CheckpointError, match=rf"lacks {name}.*--fresh"):
            loop.train(recipe)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        shutil.rmtree(out)
    shutil.copytree(done, out)
    (out / "last.safetensors").unlink()
    assert len(loop.train(recipe, fresh=True).history) == 1


def test_one_flipped_bit_is_noticed(images: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    for name in ("last.safetensors", "best.safetensors"):
        path = out / name
        data = path.read_bytes()
        for place in (4, 200, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(CheckpointError):
                read_state(path)
        path.write_bytes(data)
        assert read_state(path)
    (out / "last.safetensors").write_bytes(data[:1000])
    with pytest.raises(CheckpointError):
        loop.train(small(images, out, run__epochs=1))


def test_exchanged_images_are_noticed(images: Path, done: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(images, copy)
    loop.train(small(copy, out, run__epochs=1))
    first, second = sorted((copy / "red").iterdir())[:2]
    content = first.read_bytes()
    assert loop.train(small(copy, out, run__epochs=1)).history
    first.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="holds a run on other images"):
        loop.train(small(copy, out, run__epochs=1))
    assert content != first.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("--devices", "0"), ("--devices", "-1"), ("--devices", "1000000000"), ("--devices", "9" * 20),
        ("--devices", "²"),
        ("--devices", "65"), ("-s", "strategy=nothing"), ("-s", "accelerator=abacus"), ("--accelerator", "tpu"),
        ("--image-size", "1000000000"), ("--image-size", "30000"), ("--image-size", "9" * 20), ("--image-size", "0"),
        ("-s", "randaugment=1000000000"), ("--seed", "9" * 20), ("--seed", "-1"), ("-s", f"seed={2**70}"),
        ("--epochs", "9" * 20), ("--parts", "9" * 20), ("--parts", "0"), ("-s", "workers=-1"), ("-s", "workers=100000"),
        ("-s", "lr=inf"), ("-s", "lr=nan"), ("-s", "step_factor=1e300"), ("-s", "sizes=[[0, 1000000]]"),
        ("-s", "resize=20"), ("-s", "brightness=1e308"), ("-s", "attention_width=1000000000"),
        ("-s", "classes=1000000000"), ("-s", "epochs=" + "9" * 5000), ("-s", "epochs=" + "[" * 5000),
        ("--head", "__class__"), ("--batch-size", "1000000000"),
    ],
)  # fmt: skip
def test_extreme_recipes_are_one_line(images: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    common = ("train", "--data", images, "--backbone", "tiny-cnn", "--image-size", 32, "--batch-size", 6, "-q",
              "--accelerator", "cpu", "-s", "tensorboard=false", "--epochs", 1, "--out", tmp_path / "r")  # fmt: skip
    result = CliRunner().invoke(app, [str(w) for w in (*common, *words)])
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("words", [("--batch-size", "0"), ("--batch-size", "-1"), ("--workers", "-1")])
def test_extreme_evaluations_are_one_line(images: Path, words: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["evaluate", "tiny-cnn", "--data", str(images), *words])
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(result.stderr.strip().splitlines()) == 1
    assert words[0] in result.stderr


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "\ufeff= 1", "run = 1", "[run]\nepochs = 1e9"]
)
def test_damaged_recipes_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ParameterError) as caught:
        Recipe.read(path)
    assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ParameterError, match="no recipe at"):
        Recipe.read(path)
