"""Scores that are read by column from a temporary file are those of the table in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.runs import made_up, rows
from xattn.benchmark import spill
from xattn.benchmark.scores import Entry, Scores
from xattn.benchmark.store import REFUSED, Row, Store


def naive(folder: Path, key: tuple[str, ...]) -> dict[str, float]:
    """Values by image of a data set, model, method, metric and column, from all rows."""
    return {r.image: r.value for r in rows(folder) if (r.dataset, r.model, r.method, r.metric, r.column) == key}


@pytest.mark.parametrize("in_memory", [2**25, 100])
def test_columns_are_those_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(spill, "_IN_MEMORY", in_memory)
    folder = made_up(tmp_path, images=30, models=("b", "a"), metrics=["deletion", "sparsity"])
    more = [Row("shapes", "a", f"image-9{i}", 0, "gradcam", "gini", "gini", i / 7) for i in (3, 1, 2)]
    Store(folder).write("shapes", "a", 1, more, {("gradcam", "gini"): 3})
    scores = Scores(folder)
    found = rows(folder)
    assert scores.rows == len(found)
    assert scores.names == sorted({row.image for row in found})
    keys = {(r.dataset, r.model, r.method, r.metric, r.column) for r in found}
    entries = scores.entries("shapes", "a")
    assert [e.method for e in entries] == sorted({r.method for r in found if r.metric != "status" and r.method})
    for column in scores.columns("shapes", entries):
        values, images = scores.values("shapes", entries, column.metric, column.name)
        expected = [naive(folder, ("shapes", "a", e.method, column.metric, column.name)) for e in entries]
        assert [scores.names[i] for i in images] == sorted({name for own in expected for name in own})
        for j, own in enumerate(expected):
            wanted = [own.get(scores.names[i], np.nan) for i in images]
            np.testing.assert_array_equal(values[:, j], wanted)
            keys.discard(("shapes", "a", entries[j].method, column.metric, column.name))
    assert {key[1:4:2] for key in keys} <= {("a", "status"), ("a", "prediction"), *((("b", k[3])) for k in keys)}
    size = scores.prediction("shapes", "b", "object_share")
    assert {scores.names[i]: v for i, v in size.items()} == naive(
        folder, ("shapes", "b", "", "prediction", "object_share")
    )
    fine = naive(folder, ("shapes", "b", "gradcam", "status", "ok"))
    assert scores.share("shapes", Entry("b", "gradcam")) == pytest.approx(np.mean(list(fine.values())))
    assert scores.values("shapes", [Entry("a", "nothing")], "gini", "gini")[0].shape == (0, 1)


def test_a_pair_that_was_scored_again_counts_once(tmp_path: Path) -> None:
    def part(count: int, value: float) -> None:
        found = [Row("d", "m", f"{i}.png", 0, "cam", "gini", "gini", value) for i in range(count)]
        Store(tmp_path).write("d", "m", 0, found, {("cam", "gini"): count})

    part(2, 0.25)
    part(3, 0.5)  # with a larger limit
    part(1, 0.75)
    scores = Scores(tmp_path)
    values, images = scores.values("d", [Entry("m", "cam")], "gini", "gini")
    assert scores.rows == 3
    assert values[:, 0].tolist() == [0.5, 0.5, 0.5]
    assert images == [0, 1, 2]
    assert [row.value for row in rows(tmp_path)] == [0.5, 0.5, 0.5]


def test_the_reasons_of_methods_and_images(tmp_path: Path) -> None:
    found = [
        Row("d", "m", "a.png", 0, "cam", "status", "ok", 0.0, f"{REFUSED}no head"),
        Row("d", "m", "b.png", 0, "cam", "status", "ok", 0.0, f"{REFUSED}no head at all"),
        Row("d", "m", "b.png", 0, "gradcam", "status", "ok", 0.0, "constant"),
        Row("d", "m", "#7", -1, "", "reading", "error", float("nan"), "it is no image"),
    ]
    Store(tmp_path).write("d", "m", 0, found, {("cam", "status"): 2})
    scores = Scores(tmp_path)
    assert scores.refused() == {("m", "cam"): "no head at all"}
    assert scores.unreadable() == {("d", "#7"): "it is no image"}


def test_a_large_table_is_outside_and_behaves_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_IN_MEMORY", 10)
    values = spill.outside((3, 2))
    assert type(values) is np.ndarray
    assert isinstance(values.base, np.memmap)
    assert np.isnan(values).all()
    values[1] = 2.0
    assert np.nansum(values) == 4


def test_a_full_disk_is_told_and_ends_no_process(tmp_path: Path) -> None:
    own = ["unshare", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=8m none '{tmp_path}'"
    try:
        subprocess.run([*own, "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk can be mounted here")
    code = "from xattn.benchmark.spill import outside; outside((5_000_000, 2))"
    done = subprocess.run(
        [*own, "sh", "-c", f"{mount} && '{sys.executable}' -c '{code}'"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.returncode  # and not 135, of a signal
    assert f"No space left on device: '{tmp_path}'" in done.stderr
