"""The study of the three tasks: its networks can be built in their order, its intervals are what they are called."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from xattn.training.recipe import Recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "three_tasks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """measure.py, with the module that it has beside it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("runs", "measure"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("measure", FOLDER / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "runs", raising=False)
    return module


def test_every_network_has_a_recipe_and_starts_from_one_before_it(script: ModuleType, tmp_path: Path) -> None:
    done: set[str] = set()
    for run in script.RUNS:
        recipe = Recipe.read(FOLDER.parent / "configs" / "train" / f"{run.recipe}.toml", run.overrides(tmp_path, 1))
        assert recipe.run.seed == 1
        assert recipe.run.out == str(tmp_path / run.task / f"{run.name}-1")
        for other, path in ((run.start, recipe.model.start), (run.teacher, recipe.distill.teacher)):
            if other:
                assert f"{run.task}/{other}" in done
                assert path == str(tmp_path / run.task / f"{other}-1" / "best.safetensors")
        done.add(f"{run.task}/{run.name}")
    assert {name.partition("/")[0] for name in done} == set(script.SOURCES)


def test_the_interval_of_a_share_is_wilsons(script: ModuleType) -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, n in ((0, 7), (585, 585), (400, 585)):
        expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        assert script.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_photographs_of_one_individual_count_as_one(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(40, generator=generator, dtype=torch.float64)
    alone = script.clustered(own, torch.arange(40))
    repeated = script.clustered(own.repeat_interleave(9), torch.arange(40).repeat_interleave(9))
    assert repeated == pytest.approx(alone)
    half = 1.96 * float(own.std()) / 40**0.5
    assert alone == pytest.approx((float(own.mean()) - half, float(own.mean()) + half), abs=0.02)
    many = script.clustered(own.repeat_interleave(9), torch.arange(360))
    assert many[1] - many[0] < (alone[1] - alone[0]) / 2
