"""A published run: its description is accepted, its checksums hold, and its report is that of the run."""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.benchmark.runs import METHODS, made_up, rows, table
from xattn.benchmark.config import Config
from xattn.benchmark.panels import panels
from xattn.benchmark.publication import About, publish
from xattn.benchmark.run import begin
from xattn.benchmark.scores import Scores
from xattn.benchmark.store import PREDICTION, READING, Row, Store
from xattn.benchmark.tables import column_table, cost_table, full_table, leaderboard
from xattn.errors import DataError, ParameterError

ABOUT = About("Scores | of <two> networks", license="CC-BY-4.0", url="https://example.org/scores")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, two blocks each."""
    folder = made_up(
        tmp_path_factory.mktemp("runs") / "run", images=12, models=("b", "a"), metrics=["insertion", "sparsity"]
    )
    for model in ("a", "b"):
        more = [Row("shapes", model, f"image-9{i}", 0, "gradcam", "gini", "gini", i / 7) for i in range(3)]
        Store(folder).write("shapes", model, 1, more, {("gradcam", "gini"): 3})
    return folder


@pytest.fixture(scope="module")
def published(run: Path) -> Path:
    return publish(run, run.parent / "published", ABOUT)


def test_the_rows_are_those_of_the_run(run: Path, published: Path) -> None:
    assert table(published) == table(run)
    files = sorted(published.glob("data/*.parquet"))
    assert len(files) == 2
    assert sum(pq.read_metadata(path).num_rows for path in files) == len(rows(run))
    assert [pq.read_metadata(path).num_row_groups for path in files] == [2, 2]


def test_checksums_hold(published: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "checksums.txt"], cwd=published, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    named = {line.split(":")[0] for line in done.stdout.splitlines()}
    there = {p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file()}
    assert named == there - {"checksums.txt"}


@pytest.mark.filterwarnings("ignore")
def test_the_validator_accepts_the_description(run: Path, published: Path, caplog: pytest.LogCaptureFixture) -> None:
    mlc = pytest.importorskip("mlcroissant")
    with caplog.at_level(logging.WARNING):
        found = mlc.Dataset(jsonld=published / "croissant.json")
    assert found.metadata.ctx.issues.errors == set()
    assert found.metadata.ctx.issues.warnings == set()
    assert "not standard" not in caplog.text
    own = [row for row in rows(run) if row.model == "a"]
    (name,) = [r.name for r in found.metadata.record_sets if "_a-" in r.name]
    records = list(found.records(name))
    assert len(records) == len(own)
    assert {r[f"{name}/method"].decode() for r in records} == {row.method for row in own}
    total = sum(row.value for row in own if row.value == row.value)
    assert sum(r[f"{name}/value"] or 0.0 for r in records) == pytest.approx(total)  # NaN comes as None


@pytest.mark.filterwarnings("ignore")
def test_a_description_that_is_damaged_is_not_accepted(published: Path, tmp_path: Path) -> None:
    mlc = pytest.importorskip("mlcroissant")
    text = (published / "croissant.json").read_text()
    (tmp_path / "croissant.json").write_text(text.replace('"sha256"', '"sha"').replace('"contentUrl"', '"url"'))
    with pytest.raises(Exception, match="contentUrl"):
        mlc.Dataset(jsonld=tmp_path / "croissant.json")


def test_the_card(published: Path) -> None:
    text = (published / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pretty_name"] == ABOUT.title
    assert front["license"] == "CC-BY-4.0"
    assert front["size_categories"] == ["1K<n<10K" if len(rows(published)) < 10_000 else "10K<n<100K"]
    assert {published / c["data_files"] for c in front["configs"]} == set(published.glob("data/*.parquet"))
    for name in pq.read_schema(published / front["configs"][0]["data_files"]).names:
        assert f"- `{name}`: " in text


def test_the_tables_are_those_of_the_run(run: Path, published: Path) -> None:
    def tables(folder: Path) -> list[str]:
        makers = (leaderboard, full_table, column_table, cost_table)
        return [make(panel).csv() for panel in panels(Scores(folder), resamples=20) for make in makers]

    assert tables(published) == tables(run)
    assert "gradcam" in tables(run)[3]  # the costs are there too


def test_what_was_changed_is_not_read(published: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    path = next(copy.glob("data/*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is not as 'checksums\.txt' beside it says"):
        Scores(copy)


def test_nothing_is_overwritten(run: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is there already; remove it, or choose another --out"):
        publish(run, published, ABOUT)
    with pytest.raises(DataError, match="holds no scores"):
        publish(tmp_path / "nothing", tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()
    assert json.loads((published / "croissant.json").read_text())["url"] == ABOUT.url


def test_a_published_run_is_no_out_of_a_further_one(published: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    own = {"data": [{"source": "synthetic"}], "models": [{"name": "tiny-cnn"}], "metrics": ["gini"]}
    store, config = Store(copy), Config.build({**own, "methods": ["gradcam"]})
    with pytest.raises(ParameterError, match="is a published run, to which nothing is added; use another --out"):
        begin(store, config, [])
    assert sorted(p.name for p in copy.iterdir()) == sorted(p.name for p in published.iterdir())
    assert (copy / "manifest.json").read_bytes() == (published / "manifest.json").read_bytes()


def test_the_card_counts_what_was_scored(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "run", images=3, metrics=["sparsity"])
    unread = Row("shapes", "cnn", "#7", -1, "", READING, "error", math.nan, "no image")
    Store(folder).write("shapes", "cnn", 1, [unread], {("", PREDICTION): 1})
    text = (publish(folder, tmp_path / "published", ABOUT) / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| `data/")]
    assert [part.strip() for part in line.split("|")[4:7]] == ["3", str(len(METHODS) + 3), "1"]


def test_an_out_elsewhere_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("upath")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match="'memory://published' is not on this machine; pass a folder"):
        publish(run, "memory://published", ABOUT)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_written_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(OSError, match="No space left"):
        publish(run, tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()
