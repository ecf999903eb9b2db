"""The recipes of the paper's other tasks train as they are, here two steps on small images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.individuals import write_few_shot, write_individuals
from xattn.models import load_model
from xattn.training import loop
from xattn.training.recipe import Recipe
from xattn.training.tasks import tasks

RECIPES = Path(__file__).parents[2] / "benchmarks" / "configs" / "train"


@pytest.mark.parametrize(
    ("name", "size", "changes"),
    [
        ("market1501", "[256, 128]", ["run.image_size=[64, 32]", "batch_size=8"]),
        ("holstein-reid", "[96, 48]", ["run.image_size=[64, 32]", "augment.resize=36", "batch_size=8"]),
        ("cifar-fs", "80", ["run.image_size=32", "batch_size=60"]),
        ("cifar-fs-small", "32", ["batch_size=60"]),
        ("cub-20", "128", ["run.image_size=32", "augment.resize=36", "batch_size=8", "backbone=tiny-cnn"]),
    ],
)
def test_a_recipe_trains(
    name: str, size: str, changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_individuals(tmp_path / "Market-1501-v15.09.15")
    write_few_shot(tmp_path / "cifar-fs")
    monkeypatch.setenv("XATTN_DATA", str(tmp_path))
    path = RECIPES / f"{name}.toml"
    assert f"image_size = {size}" in Recipe.read(path).to_toml()
    quick = [
        *(f'out="{tmp_path / "run"}"', "epochs=1", "accelerator=cpu", "devices=1", "tensorboard=false", "workers=0"),
        'model.weights=""',
        *changes,
    ]
    if name in ("holstein-reid", "cub-20"):
        quick += [f'source="market1501:{tmp_path / "Market-1501-v15.09.15"}"', "data.held_out=0.3"]
    if name == "market1501":
        quick += ["data.held_out=0.3", "backbone=resnet18"]
    result = loop.train(Recipe.read(path, quick))
    model = load_model(result.best)
    assert model.architecture["head"] == Recipe.read(path).model.head
    assert 0 <= result.value <= 1


def test_every_task_says_what_it_is() -> None:
    assert set(tasks.names()) >= {"classify", "reid", "fewshot"}
    for name in tasks:
        assert tasks.get(name).__doc__
        assert tasks.create(name).name == name
