"""Known orders: what a rung is, that a run scores it apart from methods, and what tau says of a metric."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from tests.benchmark.runs import rows, small
from xattn.benchmark.ladder import SHARES, Rung, recoveries, recovery, rungs, tau_of
from xattn.benchmark.report import write_report
from xattn.benchmark.run import run
from xattn.benchmark.scores import Scores
from xattn.data.synthetic import Synthetic
from xattn.errors import ParameterError
from xattn.explainers import resolve
from xattn.explaining import record_for
from xattn.functional.grid import resample


def test_a_rung_shuffles_a_share_of_the_cells_of_the_common_grid() -> None:
    data = Synthetic(4, 32, "colour")
    model = data.model()
    (method,) = resolve(["input-x-gradient"])
    trace = record_for(model, data.batch(range(4), model.spec).x, [method], spec=model.spec, seeds=[1, 2, 3, 4])
    plain = resample(method.explanation(trace).maps, (8, 8))
    maps = [rung.explanation(trace).maps for rung in rungs(["input-x-gradient"])]
    assert torch.equal(maps[0], plain)
    moved = [(m != plain).flatten(1) for m in maps]
    for share, where in zip(SHARES, moved, strict=True):
        assert (where.sum(1) <= round(share * 64)).all()
    for less, more in pairwise(maps):
        assert torch.equal(less.flatten(1).sort().values, more.flatten(1).sort().values)
    alone = record_for(model, data.batch([2], model.spec).x, [], spec=model.spec, seeds=[3])
    torch.testing.assert_close(Rung(0.5, "input-x-gradient").explanation(alone).maps[0], maps[2][2])


def test_cells_of_a_rung_are_among_those_of_the_next() -> None:
    from xattn.benchmark.ladder import shuffled

    values = torch.arange(64.0).view(1, 8, 8)
    before = torch.zeros(64, dtype=torch.bool)
    for share in SHARES:
        moved = (shuffled(values, share, torch.Generator().manual_seed(5)) != values).flatten()
        assert moved.sum() == round(share * 64)
        assert (moved | ~before).all()
        before = moved


def test_tau_is_that_of_scipy_and_nothing_where_all_are_equal() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (30, 5)).astype(float)
    order = -np.arange(5.0)
    expected = [scipy.stats.kendalltau(row, order).statistic for row in values]
    np.testing.assert_allclose(tau_of(values, order), np.nan_to_num(expected), atol=1e-12)
    assert tau_of(np.ones((1, 5)), order).tolist() == [0.0]


def test_intervals_hold_the_value_and_shrink_with_images() -> None:
    rng = np.random.default_rng(1)
    values = -np.arange(5.0) + rng.normal(0, 4, (400, 5))
    tau, _, single, few = recovery(values[:40], 500, 0)
    _, _, _, many = recovery(values, 500, 0)
    assert few[0] <= single <= few[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert -1 <= tau <= 1
    assert recovery(-np.arange(5.0) + np.zeros((3, 5)), 50, 0) == (1.0, (1.0, 1.0), 1.0, (1.0, 1.0))


def test_a_run_scores_the_ladder_apart_from_its_methods(tmp_path: Path) -> None:
    """On images whose evidence is known, a metric of the evidence finds the order, and its opposite the reverse."""
    metrics = ["energy_pointing_game", "sparsity", "deletion:steps=8", {"name": "random_logit"}]
    config = small(
        ladder=["gradcam"], metrics=metrics, methods=["gradcam", "saliency"],
        data={"source": "synthetic:length=12,size=32", "limit": 0}, run={"controls": False},
    )  # fmt: skip
    run(config, tmp_path / "run")
    assert not any(r.method.startswith("ladder") and r.metric == "random_logit" for r in rows(tmp_path / "run"))
    scores = Scores(tmp_path / "run")
    assert [e.method for e in scores.entries("shapes", "cnn")] == ["gradcam", "saliency"]
    assert len(scores.rungs("shapes", "cnn")) == 5
    found = recoveries(scores, "shapes", "cnn", resamples=50)
    assert {r.method for r in found} == {"gradcam"}
    assert all(r.images <= 12 and -1 <= r.tau <= 1 for r in found)
    assert {r.column.base for r in found} >= {"energy_pointing_game", "deletion"}
    text = write_report(scores, [], tmp_path / "report").read_text()
    assert "## Known orders: shapes, cnn" in text
    assert (tmp_path / "report" / "shapes-cnn-known-orders" / "known_orders.csv").is_file()


def test_a_ladder_of_no_method_is_refused() -> None:
    from xattn.benchmark.plan import plan

    with pytest.raises(ParameterError, match="gradcan"):
        plan(small(ladder=["gradcan"]))
