"""Whole runs on 42 small images: learning, resuming bit by bit, stopping, two processes, distillation."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.colours import environment, same_tensors, tiny_recipe, write_recipe
from xattn.errors import CheckpointError, ParameterError
from xattn.models import load_model
from xattn.models.checkpoint import read_state
from xattn.training import loop
from xattn.training.checkpoint import Progress, load_run
from xattn.training.data import open_source
from xattn.training.evaluation import evaluate, load_trained
from xattn.training.recipe import Recipe
from xattn.training.stopping import RunStoppedError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums come in the same order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read_log(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "log.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of four epochs that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(tiny_recipe(colours, out, run__epochs=4, model__dropout=0.1))
    return out


def test_a_run_learns_and_leaves_what_is_needed(whole: Path, colours: Path) -> None:
    assert {p.name for p in whole.iterdir()} == {
        *("best.safetensors", "last.safetensors", "log.csv", "recipe.toml", "run.json")
    }
    rows = read_log(whole)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    facts = json.loads((whole / "run.json").read_text())
    assert facts["epochs_done"] == 4
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert facts["images"] == {"train": 33, "held_out": 9}
    best = max(float(row["held_out_accuracy"]) for row in rows)
    assert facts["best_held_out_accuracy"] == pytest.approx(best, abs=1e-5)
    model, ranks = load_trained(whole / "best.safetensors")
    assert ranks is None
    result = evaluate(model, open_source(Recipe.read(whole / "recipe.toml").data, "train"))
    assert result.top1 > 0.6  # chance is 1/3
    assert result.sparsity > 1
    assert set(result.ranks) == {"1+2+3", "1+2", "2+3", "1", "2", "3"}


def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    before = (whole / "last.safetensors").stat().st_mtime_ns
    result = loop.train(Recipe.read(whole / "recipe.toml"))
    assert len(result.history) == 4
    assert (whole / "last.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(whole: Path, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    recipe = tiny_recipe(colours, out, run__epochs=4, model__dropout=0.1)
    command = [sys.executable, "-m", "xattn", "train", "-q", str(write_recipe(recipe, tmp_path / "recipe.toml"))]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (out / "log.csv").is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = load_run(out / "last.safetensors").progress.epoch if (out / "last.safetensors").is_file() else 0
    assert done < 4
    loop.train(recipe)
    assert same_tensors(whole / "best.safetensors", out / "best.safetensors")
    assert same_tensors(whole / "last.safetensors", out / "last.safetensors")


class StopAt:
    """A monitor that sends Ctrl-C after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.when = (epoch, step)

    def begin(self, recipe: Recipe, progress: Progress, steps_per_epoch: int, images: int, held_out: int) -> None:
        pass

    def step(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        if (epoch, step) == self.when:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, row: dict[str, float], best: bool) -> None:
        pass


def test_ctrl_c_saves_in_the_middle_of_an_epoch_and_the_same_call_goes_on(
    whole: Path, colours: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(colours, tmp_path / "stopped", run__epochs=4, model__dropout=0.1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunStoppedError, match=r"epoch 2 of 4; .* The same command goes on"):
        loop.train(recipe, StopAt(2, 3))
    assert signal.getsignal(signal.SIGINT) is before
    progress = load_run(tmp_path / "stopped" / "last.safetensors").progress
    assert (progress.epoch, progress.step) == (1, 4 + 3)
    loop.train(recipe)
    assert same_tensors(whole / "last.safetensors", tmp_path / "stopped" / "last.safetensors")
    timing = ("seconds", "images_per_second")
    mine, theirs = (
        [{k: row[k] for k in row if k not in timing} for row in read_log(p)] for p in (tmp_path / "stopped", whole)
    )
    assert mine == theirs


def test_another_recipe_in_the_same_folder_is_refused_unless_fresh(whole: Path, colours: Path, tmp_path: Path) -> None:
    recipe = Recipe.read(whole / "recipe.toml", ["lr=0.5"])
    with pytest.raises(CheckpointError, match=r"optimizer\.lr = 0\.02 but the recipe says 0\.5; choose another folder"):
        loop.train(recipe)
    out = tmp_path / "run"
    loop.train(tiny_recipe(colours, out, run__epochs=1))
    result = loop.train(tiny_recipe(colours, out, run__epochs=1, run__seed=1), fresh=True)
    assert len(result.history) == 1


def test_a_damaged_or_foreign_checkpoint_is_named(colours: Path, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "last.safetensors").write_bytes((whole / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        loop.train(tiny_recipe(colours, out))


def test_a_student_is_distilled_from_its_teacher(whole: Path, colours: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        colours,
        tmp_path / "high",
        run__epochs=1,
        model__resolution="high",
        distill__teacher=str(whole / "best.safetensors"),
        model__ranks=True,
        run__sizes=[[0, 24]],
        run__tensorboard=True,
        optimizer__name="adamw",
        optimizer__lr=1e-4,
        optimizer__clip=1.0,
    )
    before = read_state(whole / "best.safetensors")
    result = loop.train(recipe)
    assert result.history[0]["image_size"] == 24
    assert "held_out_accuracy_1+2" in result.history[0]
    assert list((tmp_path / "high" / "tensorboard").glob("events.out.tfevents.*"))
    student = load_model(result.best)
    assert student.backbone(torch.zeros(1, 3, 32, 32)).shape[2:] == (8, 8)
    moved = student.state_dict()["backbone.conv1.weight"]
    assert not torch.equal(moved, before["backbone.conv1.weight"])
    torch.testing.assert_close(moved, before["backbone.conv1.weight"], atol=0.02, rtol=0)  # it started there
    after = read_state(whole / "best.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    model, ranks = load_trained(result.best)
    assert ranks is not None
    assert evaluate(model, open_source(recipe.data, "train"), ranks=ranks).rank_heads == "trained"


def test_a_loss_that_is_no_number_stops_the_run(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"the loss is (nan|inf) in epoch 1; lower optimizer\.lr"):
        loop.train(tiny_recipe(colours, tmp_path / "run", optimizer__lr=1e20, optimizer__warmup_epochs=0))


def test_a_batch_larger_than_the_images_is_refused(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"33 training images make no batch of 64; lower --batch-size"):
        loop.train(tiny_recipe(colours, tmp_path / "run", run__batch_size=64))


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(colours: Path, tmp_path: Path) -> None:
    """Batch norm keeps its statistics here: on a CPU each process would otherwise see those of its own images only."""
    changes = {
        "model__freeze_batchnorm": True,
        "optimizer__lr": 1e-3,
        "run__precision": "64-true",
        "model__ranks": True,
    }
    one = tiny_recipe(colours, tmp_path / "one", run__batch_size=8, **changes)
    two = tiny_recipe(colours, tmp_path / "two", run__batch_size=4, run__devices="auto", **changes)
    history = loop.train(one).history
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "xattn", "train", "-q"]
    command.append(str(write_recipe(two, tmp_path / "two.toml")))
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("on held-out training images") == 1  # the first process alone speaks
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    other = load_run(tmp_path / "two" / "last.safetensors").progress.history
    for a, b in zip(history, other, strict=True):
        for key in a:
            if key not in ("seconds", "images_per_second"):
                assert b[key] == pytest.approx(a[key], rel=1e-6), key  # Fabric hands out logits in float32
