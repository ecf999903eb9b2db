"""Recipes: what is accepted, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from xattn.errors import ParameterError
from xattn.training.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "benchmarks" / "configs" / "train").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_published_recipes_are_valid_and_survive_writing(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.read(path)
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert Recipe.read(tmp_path / "again.toml") == recipe


def test_there_are_recipes() -> None:
    assert {"cub-200-2011", "fgvc-aircraft", "stanford-cars", "tiny-imagenet-brnpa"} <= {p.stem for p in RECIPES}


def test_overrides_win_and_are_read_as_toml() -> None:
    recipe = Recipe.build(
        {"run": {"epochs": 5}}, ["epochs=7", "model.head=bcnn", "nesterov=false", "sizes=[[0, 32], [3, 64]]"]
    )
    assert recipe.run.epochs == 7
    assert recipe.model.head == "bcnn"
    assert recipe.optimizer.nesterov is False
    assert [recipe.size_at(e) for e in (0, 2, 3, 9)] == [32, 32, 64, 64]


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"modle": {}}, [], "Did you mean 'model'"),
        ({"model": {"hed": "linear"}}, [], "Did you mean 'model.head'"),
        ({}, ["ephocs=3"], "Did you mean 'epochs'"),
        ({}, ["optimiser.lr=3"], "unknown key 'optimiser.lr'"),
        ({}, ["seed=3"], "could be model.seed or run.seed"),
        ({}, ["epochs"], "expected key=value"),
        ({"run": {"epochs": 0}}, [], "run.epochs.*greater than or equal to 1 but got 0"),
        ({"run": 3}, [], "'run' is a section"),
        ({"model": {"head": "attention"}}, [], "model.head: unknown head.*Known: bcnn, brnpa, linear"),
        ({"model": {"head": "linear", "ranks": True}}, [], "model.ranks needs a head with parts"),
        ({"model": {"parts": 4, "ranks": True}}, [], "defined for 3 parts"),
        ({"augment": {"scale": [0.9, 0.3]}}, [], "augment.scale must be two shares"),
        ({"augment": {"crop": "squash", "resize": 256}}, [], "augment.resize has no meaning where augment.crop is"),
        ({"run": {"sizes": [[3, 64], [0, 32]]}}, [], "in order of the epoch"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], overrides: list[str], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as error:
        Recipe.build(values, overrides)
    assert "\n" not in str(error.value)


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Recipe().run.epochs = 3


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no recipe at"):
        Recipe.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\nepochs = 3")
    with pytest.raises(ParameterError, match="no valid TOML"):
        Recipe.read(tmp_path / "bad.toml")
