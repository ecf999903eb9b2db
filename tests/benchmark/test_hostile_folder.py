"""A report of somebody else's folder runs nothing, reads nothing outside, and ends in files or in one line."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.runs import made_up, small
from xattn.benchmark import figures
from xattn.benchmark.panels import panels
from xattn.benchmark.report import folder_names
from xattn.benchmark.scores import Scores
from xattn.benchmark.store import Row, Store
from xattn.benchmark.tables import Table
from xattn.errors import DataError, ParameterError, XattnError
from xattn.pages.report import full_report

MODULE = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text('x')\ndef net(): raise SystemExit(3)\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("run"), images=12, metrics=("insertion", "deletion"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def costs_of(run: Path) -> Path:
    return next((run / "costs").glob("*.json"))


def test_nothing_that_the_manifest_names_is_imported_or_read(run: Path, tmp_path: Path) -> None:
    """Tried by the command from a folder that holds the module, as `package.module:factory` would find it."""
    (tmp_path / "evil.py").write_text(MODULE)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "passwords.txt").write_text("hunter2")
    config = small(models={"name": "evil:net", "label": "cnn"}, data={"source": str(secret)}).model_dump(mode="json")
    (run / "manifest.json").write_text(json.dumps({"config": config, "environments": []}))
    made = subprocess.run(
        [sys.executable, "-m", "xattn", "report", str(run), "--panels", "2", "--resamples", "10"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "--config" in made.stderr
    assert not (tmp_path / "ran").exists()
    for path in (run / "report").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_a_configuration_chooses_no_code_and_the_remedy_works(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE)
    config = tmp_path / "c.toml"
    config.write_text(
        'methods = ["random"]\nmetrics = ["sparsity"]\n[[data]]\nsource = "synthetic:length=2,size=64"\n'
        '[[models]]\nname = "own:net"\n[run]\ntarget = "predicted"\ncontrols = false\n'
    )

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "xattn", "benchmark", str(config), "--plan", *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{tmp_path}"},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = command()
    assert refused.returncode == 2
    assert not (tmp_path / "ran").exists()
    command(*shlex.split(refused.stderr.partition("name it yourself: ")[2]))
    assert (tmp_path / "ran").exists()


def outward_link(run: Path) -> None:
    part = next(run.glob("parts/*/*.parquet"))
    outside = run.parent / "outside.parquet"
    part.rename(outside)
    part.symlink_to(outside)


def linked_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()
    (run / "manifest.json").symlink_to("/etc/passwd")


def linked_costs(run: Path) -> None:
    path = costs_of(run)
    path.rename(run.parent / "costs.json")
    path.symlink_to("../../costs.json")


def linked_report(run: Path) -> None:
    (run.parent / "elsewhere").mkdir()
    (run / "report").symlink_to(run.parent / "elsewhere")


def linked_panel(run: Path) -> None:
    (run.parent / "elsewhere").mkdir()
    (run / "report").mkdir()
    (run / "report" / "shapes-cnn").symlink_to("../../elsewhere")


def pipe(run: Path) -> None:
    os.mkfifo(next(run.glob("parts/*")) / f"block-00001-{'a' * 32}.parquet")


LEADS_OUT: list[Callable[[Path], None]] = [
    outward_link, linked_manifest, linked_costs, linked_report, linked_panel, pipe,
]  # fmt: skip


@pytest.mark.parametrize("change", LEADS_OUT, ids=lambda change: change.__name__)
def test_links_and_pipes_are_refused(run: Path, change: Callable[[Path], None]) -> None:
    change(run)
    with pytest.raises(DataError, match=r"no regular file|link to another place|link out of"):
        full_report(run, resamples=5, count=0)
    elsewhere = run.parent / "elsewhere"
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


WRONG: dict[str, Any] = {
    "list": [], "methods list": {"methods": []}, "methods text": {"methods": {"gradcam": "x"}},
    "text": {"methods": {"gradcam": {"seconds": "long"}}}, "negative": {"methods": {"gradcam": {"seconds": -1}}},
    "nan": {"methods": {"gradcam": {"seconds": math.nan}}}, "bool": {"methods": {"gradcam": {"seconds": True}}},
}  # fmt: skip


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_costs_that_are_none_are_refused_in_one_line(run: Path, content: Any) -> None:
    costs_of(run).write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        full_report(run, resamples=5, count=0)
    assert "costs" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[" * 10_000, "null", '{"a": NaN}', "\ud800", "[1]", '"' + "x" * 10**6 + '"'])
def test_a_damaged_manifest_is_refused_in_one_line(run: Path, text: str) -> None:
    (run / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="manifest") as error:
        full_report(run, resamples=5, count=0)
    assert len(str(error.value)) < 1000


def test_infinite_scores_count_as_undefined(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row("shapes", "cnn", f"image-{i:03d}", 0, "gradcam", "insertion:grid=common", "insertion", value)
        for i, value in enumerate([math.inf, -math.inf, 1e308, *[0.5] * 9])
    ]
    Store(run).write("shapes", "cnn", 0, rows, {("gradcam", "insertion:grid=common"): 10**6})  # read before the others
    monkeypatch.setattr(figures, "FORMATS", ("png",))
    full_report(run, resamples=5, count=0)
    with (run / "report" / "shapes-cnn" / "scores.csv").open(encoding="utf-8") as stream:
        (row,) = [r for r in csv.DictReader(stream) if (r["method"], r["column"]) == ("gradcam", "insertion")]
    assert (int(row["n"]), int(row["nan"])) == (9, 3)
    assert float(row["mean"]) == pytest.approx(0.5)


NAMES = {
    "formula": "=cmd|' /C calc'!A0", "math": "$\\frac{", "markup": "[/bold]<script>x", "long": "a" * 4000,
    "control": "a\x1b]0;owned\x07\nb\u202e", "path": "../../../tmp/x", "other script": "模型",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_stay_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row(name, name, f"{i}", 0, method, metric, metric, value)
        for i in range(6)
        for method in ("gradcam", name)
        for metric, value in (("insertion", 0.1 * i), (name, 0.5))
    ]
    Store(tmp_path / "run").write(name, name, 0, rows, {("gradcam", "insertion"): 6})
    monkeypatch.setattr(figures, "FORMATS", ("png", "svg"))
    page = full_report(tmp_path / "run", resamples=5, count=0)
    made = {p for p in tmp_path.rglob("*") if p.is_file()} - set((tmp_path / "run" / "parts").rglob("*"))
    assert all(p.is_relative_to(page.parent) for p in made)
    for path in made:
        assert path.stat().st_size < 10**7
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as stream:
                assert not any(cell[:1] in tuple("=+-@\t\r") and not re.match(r"-?\d", cell)
                               for row in csv.reader(stream) for cell in row if cell)  # fmt: skip
        elif path.suffix in (".md", ".tex", ".html", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert path.suffix == ".tex" or "<script>x" not in text
            assert "\x1b" not in text


def test_cells_that_look_like_formulas_are_texts() -> None:
    cells = ("=1", "+1+cmd", "-2+3+cmd|x", "@a", "\tb", "-0.5 [-0.6, -0.4]†", "-1e-05", "a=b")
    text = Table("t", ("x",), [(cell,) for cell in cells]).csv()
    first = [row[0] for row in csv.reader(text.splitlines()[1:])]
    assert first == ["'=1", "'+1+cmd", "'-2+3+cmd|x", "'@a", "'\tb", *cells[5:]]


@pytest.mark.parametrize("resamples", [0, 10**9, 99999999999999999999])
def test_resamples_have_a_limit(run: Path, resamples: int) -> None:
    with pytest.raises(ParameterError, match="resamples must be at least 1 and at most 100,000"):
        full_report(run, resamples=resamples, count=0)


def test_panels_with_like_names_get_a_folder_each(tmp_path: Path) -> None:
    run = made_up(tmp_path, images=4, models=("a b", "a-b", "A b"), metrics=("insertion",))
    names = folder_names(panels(Scores(run), resamples=2))
    assert len({name.lower() for name in names}) == len(names) == 4


def test_all_scores_as_a_frame(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = Scores(run)
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(XattnError, match="pip install pandas"):
        scores.frame()

    class Polars:
        """Hands on what it gets."""

        from_arrow = staticmethod(lambda table: table.to_pylist())

    monkeypatch.setitem(sys.modules, "polars", Polars)
    frame = scores.frame()
    assert len(frame) == scores.rows
    assert set(frame[0]) == {"dataset", "model", "image", "target", "method", "metric", "column", "value", "note"}
