"""How far other libraries lie from xattn: the page has the numbers of the results, and the measures are right."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agreement", FOLDER / "agreement.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_results(script: ModuleType) -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == script.page()
    files = sorted(FOLDER.glob("*.json"))
    assert {file.stem for file in files} <= set(script.ABOUT)
    assert files
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        assert [(row["xattn"], row["library"]) for row in result["pairs"]] == [*script.PAIRS]


def test_the_page_that_compares_counts_the_verdicts(script: ModuleType) -> None:
    text = " ".join((FOLDER.parents[1] / "docs" / "compares.md").read_text(encoding="utf-8").split())
    counts = []
    for name in ("tiny-cnn", "efficientnet_lite0"):
        pairs = [row for row in json.loads((FOLDER / f"{name}.json").read_text())["pairs"] if "refused" not in row]
        moved = [row for row in pairs if row["verdicts that change"]]
        assert all(row["lowest correlation"] < script.SAME for row in moved)
        counts.append((len(pairs), len(moved)))
    (a, b), (c, d) = counts
    assert f"Of {a} pairs on `tiny-cnn` {b} change a verdict, and {d} of {c} on EfficientNet-Lite0" in text


def test_correlation_is_pearsons_over_the_cells_of_the_finer_grid(script: ModuleType) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 4, 4)
    found = script.correlation(ours, theirs)
    near = [(0, 0, 1.0), (0, 1, 0.75), (0, 1, 0.25), (1, 1, 1.0)]  # the cells that half-pixel centres lie between
    for i in range(2):
        m = ours[i, 0].tolist()
        a = [
            wy * (wx * m[y0][x0] + (1 - wx) * m[y0][x1]) + (1 - wy) * (wx * m[y1][x0] + (1 - wx) * m[y1][x1])
            for y0, y1, wy in near
            for x0, x1, wx in near
        ]
        b = theirs[i, 0].flatten().tolist()
        ma, mb = sum(a) / 16, sum(b) / 16
        top = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
        low = math.sqrt(sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b))
        assert found[i] == pytest.approx(top / low, abs=1e-6)
    assert script.correlation(ours, 3 * ours + 7) == pytest.approx([1.0, 1.0])
    assert math.isnan(script.correlation(ours, torch.ones_like(ours))[0])


def test_verdicts(script: ModuleType) -> None:
    low, high = torch.tensor([0.1, 0.2, 0.15, 0.12]), torch.tensor([0.6, 0.8, 0.7, 0.65])
    assert script.verdict(low, high, lower=True) == "better"
    assert script.verdict(low, high, lower=False) == "worse"
    assert script.verdict(low, low.flip(0), lower=True) == "undecided"
    assert script.verdict(low, low, lower=True) == "undecided"
    gap = torch.tensor([0.1, math.nan, math.nan, 0.2])
    assert script.verdict(gap, high, lower=True) == "undecided"
