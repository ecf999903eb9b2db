"""What a report says of scores that were made up, so that the answer is known."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.runs import METHODS, made_up
from xattn.benchmark import answers, charts, tables
from xattn.benchmark import panels as compared
from xattn.benchmark.panels import Panel, panels, rank_of
from xattn.benchmark.report import write_report
from xattn.benchmark.scores import Scores
from xattn.benchmark.store import Row, Store
from xattn.benchmark.tables import Table, text_of
from xattn.errors import DataError
from xattn.metric import HIGHER, LOWER, NEITHER


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def panel(run: Path) -> Panel:
    (found,) = panels(Scores(run), resamples=100)
    return found


def test_means_and_counts_are_those_of_the_rows(run: Path, panel: Panel) -> None:
    rows = [Row(**values) for values in Store(run).table().to_pylist()]
    for (metric, column), s in panel.summaries.items():
        if s.column.pooled:
            continue
        for j, entry in enumerate(panel.entries):
            own = [r.value for r in rows if (r.method, r.metric, r.column) == (entry.method, metric, column)]
            fine = [v for v in own if not math.isnan(v)]
            assert s.spread.n[j] == len(fine)
            assert s.spread.missing[j] == len(own) - len(fine)
            assert s.spread.mean[j] == pytest.approx(np.mean(fine))
            assert s.spread.low[j] < s.spread.mean[j] < s.spread.high[j]
    assert {e.method for e in panel.entries} == {*METHODS, "random", "center", "edges"}
    ok = [r.value for r in rows if r.method == "brnpa" and r.metric == "status"]
    assert panel.coverage[[e.method for e in panel.entries].index("brnpa")] == pytest.approx(np.mean(ok))


def test_no_score_is_shown_of_a_method_whose_maps_fail_their_check(run: Path, tmp_path: Path) -> None:
    rows = [Row(**values) for values in Store(run).table().to_pylist()]
    bad = {f"image-{i:03d}" for i in range(0, 40, 4)}
    changed = [
        replace(row, value=0.0, note="non-conserving")
        if (row.method, row.metric) == ("brnpa", "status") and row.image in bad
        else row
        for row in rows
    ]
    Store(tmp_path).write("shapes", "cnn", 0, changed, {(r.method, r.metric): 40 for r in rows})
    Store(tmp_path).replace_manifest(Store(run).read_manifest())
    (found,) = panels(Scores(tmp_path), resamples=20)
    j = found.labels.index("brnpa")
    assert 0.5 < found.coverage[j] < 0.76
    for s in found.summaries.values():
        assert math.isnan(s.spread.mean[j])
        assert s.best is None or s.best.best != j
        others = [k for k in range(len(found.labels)) if k != j]
        assert not np.isnan(s.spread.mean[others]).any()
    said = write_report(Scores(tmp_path), [found], tmp_path / "report").read_text(encoding="utf-8")
    assert "Not ranked, as more than a tenth of their maps are unsound: brnpa." in said
    (line,) = [line for line in said.splitlines() if line.startswith("| brnpa | unsound maps |")]
    assert not re.search(r"\d", line.partition("% |")[2])
    assert "No score is shown of a method with more than a tenth of unsound maps" in said


def test_the_best_comes_first_and_controls_are_known(panel: Panel) -> None:
    order = answers.order(panel)
    assert panel.labels[order[0]] == "brnpa"
    assert {panel.labels[j] for j in panel.controls} == {"random", "center", "edges"}
    assert {panel.labels[j] for j in order[-3:]} == {"random", "center", "edges"}
    s = panel.summaries["deletion:grid=common", "deletion"]
    assert s.best is not None
    assert panel.labels[s.best.best] == "brnpa"  # lower is better
    assert s.rank[s.best.best] == 1
    names = [panel.labels[j] for j in range(len(panel.labels)) if s.unproven[j]]
    assert "brnpa" not in names
    assert not {"random", "center", "edges"} & set(names)


def test_a_method_no_better_than_a_control_is_marked() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.1, 60)
    values = np.stack([base + 0.2, base + rng.normal(0, 0.1, 60), base, base - 0.2], axis=1)
    methods, controls = [True, True, False, False], [False, False, True, True]
    assert compared._unproven(values, methods, controls).tolist() == [False, True, False, False]
    assert compared._unproven(-values, methods, controls).tolist() == [True, True, False, False]
    assert not compared._unproven(values, [True] * 4, [False] * 4).any()


def test_ranks_share_ties_and_leave_nan() -> None:
    mean = np.array([0.3, 0.1, math.nan, 0.3, 0.2])
    np.testing.assert_array_equal(rank_of(mean, higher=True), [1.5, 4, math.nan, 1.5, 3])
    np.testing.assert_array_equal(rank_of(mean, higher=False), [3.5, 1, math.nan, 3.5, 2])


def test_pooled_values_are_those_of_the_metric(run: Path, panel: Panel) -> None:
    import torch

    from xattn.metrics import metrics

    metric = metrics.create("max_box_accuracy")
    s = panel.summaries["max_box_accuracy", "max_box_acc_v2"]
    scores = Scores(run)
    for j, entry in enumerate(panel.entries):
        columns = {}
        for name in metric.columns:
            values, _ = scores.values("shapes", [entry], "max_box_accuracy", name)
            columns[name] = torch.from_numpy(values[~np.isnan(values[:, 0]), 0])
        assert s.spread.mean[j] == pytest.approx(metric.pool(columns)["max_box_acc_v2"])
        assert s.spread.low[j] <= s.spread.high[j]
    assert ("max_box_accuracy", "iou_50") not in panel.summaries  # says nothing by itself


def test_sizes_of_objects_split_the_images(run: Path, panel: Panel) -> None:
    scores = Scores(run)
    s = panel.summaries["energy_pointing_game", "energy"]
    names, means, counts = compared.by_size(panel, scores, s)
    assert sum(counts) == 40
    assert len(names) == len(means) == len(counts)
    assert means[-1].mean() > means[0].mean()  # made up so
    share = scores.prediction("shapes", "cnn", "object_share")
    inside = [i for i, image in enumerate(s.images) if 0.75 < share[image] <= 1]
    assert counts[-1] == len(inside)
    np.testing.assert_allclose(means[-1], np.nanmean(s.values[inside], axis=0))


def test_models_beside_each_other(tmp_path: Path) -> None:
    found = panels(
        Scores(made_up(tmp_path, images=12, models=("cnn", "brnpa-net"), metrics=("insertion",))), resamples=20
    )
    assert [p.name for p in found] == ["shapes, cnn", "shapes, brnpa-net", "shapes, across models"]
    last = found[-1]
    assert [e.method for e in last.entries if e.model == "brnpa-net"] == ["brnpa"]  # the attention of the others
    assert len([e for e in last.entries if e.model == "cnn"]) == len(METHODS) + 3
    assert "brnpa (brnpa-net)" in last.labels
    for panel in found[:2]:  # marked as among those of its own model, whose controls differ
        for j, entry in enumerate(panel.entries):
            if entry in last.entries:
                marks = last.summaries["insertion:grid=common", "insertion"].unproven
                assert (
                    marks[last.entries.index(entry)]
                    == panel.summaries["insertion:grid=common", "insertion"].unproven[j]
                )


def test_protocols_tell_who_wins(panel: Panel) -> None:
    table = tables.protocol_table(panel)
    by_name = {str(row[0]): row for row in table.rows}
    assert by_name["insertion ↑"][1] == "brnpa"
    assert by_name["deletion ↓"][4] == "none"
    tau = compared.agreement(panel.directed)
    np.testing.assert_allclose(np.diag(tau), 1)
    np.testing.assert_allclose(tau, tau.T)


def test_report_writes_everything(tmp_path: Path, run: Path) -> None:
    scores = Scores(run)
    path = write_report(scores, compared.panels(scores, resamples=20), tmp_path / "out")
    text = path.read_text()
    assert path.name == "report.md"
    home = tmp_path / "out" / "shapes-cnn"
    names = "leaderboard ranks significance critical_difference agreement protocols reliability sparsity cost"
    names += " box_size curves"
    for name in names.split():
        assert f"shapes-cnn/{name}.png" in text
        with Image.open(home / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 20) or [0] * 9) > 8  # not blank
        assert (home / f"{name}.svg").stat().st_size > 1000
        assert (home / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"
    for name in ("leaderboard", "scores", "columns", "protocols", "cost", "box_size", "agreement"):
        for suffix in ("csv", "md", "tex"):
            assert (home / f"{name}.{suffix}").stat().st_size > 50
    with (home / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["beats controls"] for row in rows if row["method"] == "brnpa" and row["column"] == "insertion"} == {
        "yes"
    }
    assert {row["beats controls"] for row in rows if row["method"] == "random"} == {""}
    assert "†" in text
    assert "Made with torch 2, commit abc on cpu (1 thread)." in text


def test_a_run_with_little_in_it(tmp_path: Path) -> None:
    """One method, one image, one metric, and a score that is never defined."""
    rows = [
        Row("d", "m", "a", 0, "gradcam", "status", "ok", 1.0, "ok"),
        Row("d", "m", "a", 0, "gradcam", "gini", "gini", 0.5),
    ]
    rows += [Row("d", "m", "a", 0, "gradcam", "insertion", c, math.nan) for c in ("insertion", "ic")]
    rows += [Row("d", "m", "#1", -1, "", "reading", "error", math.nan, "a.png: is damaged")]
    Store(tmp_path).write("d", "m", 0, rows, {("gradcam", "gini"): 1})
    scores = Scores(tmp_path)
    text = write_report(scores, compared.panels(scores, resamples=5), tmp_path / "report").read_text()
    assert "1 images could not be read" in text
    assert "a.png: is damaged" in text
    assert "gradcam" in text


def test_no_scores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scores; run `xattn benchmark`"):
        compared.panels(Scores(tmp_path), resamples=5)


def test_tables_as_files(tmp_path: Path) -> None:
    table = Table("t", ("a_b ↑", "x|y"), [("m & m", 0.123456), ("n†", math.nan), ("o", None)], ("note",))
    table.write(tmp_path, "t")
    assert (tmp_path / "t.csv").read_text() == "a_b ↑,x|y\nm & m,0.123456\nn†,\no,\n"
    assert (
        tmp_path / "t.md"
    ).read_text() == "| a_b ↑ | x\\|y |\n| --- | ---: |\n| m & m | 0.123 |\n| n† |  |\n| o |  |\n\nnote\n"
    latex = (tmp_path / "t.tex").read_text()
    assert r"a\_b $\uparrow$ & x|y \\" in latex
    assert r"m \& m & 0.123 \\" in latex
    assert r"n$^{\dagger}$ &  \\" in latex
    assert [text_of(v) for v in (1e-9, 12345.6, 5e7, -0.5)] == ["1e-09", "12346", "5e+07", "-0.500"]


def test_bars_that_do_not_meet_share_a_level() -> None:
    groups = [np.array([1.0, 2.0]), np.array([1.5, 3.0]), np.array([2.5, 4.0])]
    assert [level for level, _ in charts._levels(groups, 0.1)] == [0, 1, 0]


def test_rows_of_earlier_versions_are_of_pixels(tmp_path: Path) -> None:
    """Their labels tell no grid; they are read, called so, and no pair of the grid that all methods share."""
    rows = [
        Row("d", "m", str(i), 0, method, metric, column, 0.1 * i)
        for i in range(6)
        for method in ("gradcam", "random")
        for metric, column in (
            ("insertion:steps=16", "insertion"),
            ("insertion:steps=16,grid=common", "insertion"),
            ("insertion:grid=4", "insertion"),
            ("rise2018", "dauc_rise2018"),
            ("sensitivity_n:cells=16", "sensitivity_n"),
            ("sparsity", "sparsity"),
        )
    ]
    Store(tmp_path).write("d", "m", 0, rows, {})
    scores = Scores(tmp_path)
    found = {c.title: (c.matched, c.direction) for c in scores.columns("d", scores.entries("d", "m"))}
    assert found == {
        "insertion (steps=16,grid=pixels)": (False, HIGHER),
        "insertion (steps=16)": (True, HIGHER),
        "insertion (grid=4)": (True, HIGHER),
        "dauc_rise2018": (False, LOWER),
        "sensitivity_n (cells=16)": (True, NEITHER),
        "sparsity": (True, NEITHER),
    }
