"""The study of the attention heads: what it runs, how it compares, and that its page is made from its JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.attention import embed
from benchmarks.attention import run as study

FOLDER = Path(study.__file__).parent
PLAN = study.Plan(data="somewhere", start="start.safetensors", runs="runs", seeds=2)


def test_runs_are_the_nine_networks_and_three_ablations_with_one_budget() -> None:
    names, recipes = zip(*study.jobs(PLAN), strict=True)
    assert len(set(names)) == len(names) == 2 * 12
    assert len({(r.run.epochs, r.run.batch_size, r.optimizer, r.augment, r.data) for r in recipes}) == 1
    for name, recipe in zip(names, recipes, strict=True):
        kind, seed = name.rpartition("-")[0].rpartition("-")[2], int(name.rpartition("-")[2])
        assert recipe.run.seed == seed
        assert (recipe.model.resolution == "high") == (kind in ("high", "distilled"))
        assert bool(recipe.distill.teacher) == (kind == "distilled")
        if recipe.model.resolution == "high":  # it starts from its own low-resolution network, trained before
            low = f"{recipe.model.head}-low-{seed}"
            assert recipe.model.start == f"runs/{low}/best.safetensors"
            assert names.index(low) < names.index(name)


def test_differences_are_paired() -> None:
    more, less = torch.tensor([1.0, 1, 0, 1]).double(), torch.tensor([0.0, 1, 0, 1]).double()
    row = study.paired(more, less)
    assert (row["first"], row["second"], row["difference"]) == (0.75, 0.5, 0.25)
    assert row["standard_error"] == pytest.approx(0.25)  # std of (1, 0, 0, 0) is 0.5, over the root of 4
    assert row["verdict"] == "no difference seen"
    assert study.paired(more.repeat(99), less.repeat(99))["verdict"] == "higher"
    assert study.paired(less.repeat(99), more.repeat(99))["verdict"] == "lower"


def test_seeds_are_averaged_image_by_image() -> None:
    rows = [
        {"columns": {"top1": [1.0, 0.0], "density": [0.5, 0.25]}},
        {"columns": {"top1": [1.0, 1.0], "density": [0.25, 0.25]}},
    ]
    columns = study.mean_columns(rows)
    assert columns["top1"].tolist() == [1.0, 0.5]
    assert columns["sparsity"].tolist() == [3.0, 4.0]  # the mean of 1/x, not 1 over the mean


def test_a_seed_with_fewer_networks_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "cost", lambda channels, grid: {})
    density = [0.5, 0.25, 0.2]
    columns = {"top1": [1.0, 0.0, 1.0], "density": density, "density_upsampled": density}
    for name in ("linear-low-0", "bcnn-low-0", "linear-low-1"):
        row = {"columns": columns, "images_per_second": 1.0, "seconds": 1.0}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(row))
    networks = study.collect(dataclasses.replace(PLAN, runs=str(tmp_path)))["networks"]
    assert {name: row["seeds"] for name, row in networks.items()} == {"linear-low": 1, "bcnn-low": 1}


def test_the_page_is_made_from_the_json() -> None:
    if not (FOLDER / "results.json").is_file():
        pytest.skip("the study has not been run yet")
    results = json.loads((FOLDER / "results.json").read_text())
    assert study.page(results) == (FOLDER / "README.md").read_text()


def test_the_page_of_the_embedded_networks_is_made_from_the_json() -> None:
    folder = FOLDER / "embedded"
    results = json.loads((folder / "embedded.json").read_text())
    assert embed.page(results) == (folder / "README.md").read_text()
    assert sum(row["bytes"] for row in results.values()) < embed.LIMIT_BYTES
    for name, row in results.items():
        assert (embed.FOLDER / f"{name}.safetensors").stat().st_size == row["bytes"]
        # A transformer learns less from so few images than a network that knows of neighbouring pixels.
        assert row["validation"]["top1"] > (0.4 if name == "tiny-vit" else 0.45)
