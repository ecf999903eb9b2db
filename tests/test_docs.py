"""The documentation is true: its commands and code run, its tables come from results, its formulas are complete."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest

from tests.benchmark.runs import made_up
from tests.commands import ROOT, blocks, run_document, workshop  # noqa: F401 (a fixture)
from xattn.benchmark.publication import About, publish
from xattn.benchmark.store import Store
from xattn.explainers import explainers
from xattn.metrics import metrics

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda path: path.stem)
def test_everything_in_a_page_runs(page: Path, workshop: Path) -> None:  # noqa: F811
    run_document(page, workshop)


def test_every_block_says_what_it_is() -> None:
    known = {"sh", "console", "python", "toml", "text"}
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
        assert {re.split(r"\W", fence)[0] for fence in fences} <= known, page.name


@pytest.mark.parametrize(("kind", "registry"), [("methods", explainers), ("metrics", metrics)])
def test_every_entry_has_a_formula(kind: str, registry: object) -> None:
    formulas = importlib.import_module("docs.generate.formulas").formulas(kind)
    own = {name for name in registry.names() if registry.get(name).__module__.startswith("xattn.")}  # type: ignore[attr-defined]
    assert own - set(formulas) == set(), "write them into docs/generate/formulas.toml"
    assert set(formulas) - own == set(), "there is nothing of that name"


@pytest.mark.parametrize("kind", ["methods", "metrics"])
def test_every_formula_can_be_drawn(kind: str) -> None:
    pytest.importorskip("latex2mathml", reason="the documentation's packages are not installed")
    module = importlib.import_module("docs.generate.formulas")
    for name in module.formulas(kind):
        latex = module.display(kind, name).strip("$")
        page = module.to_mathml(f'<div class="arithmatex">\\[{latex}\\]</div>')
        assert page.startswith('<div class="formula"><math'), name
        text = re.sub(r"<[^>]+>", "", page)
        assert "\\" not in text, f"{name}: {text}"  # a command that is not known stays as it is


def test_parts_of_other_files_are_taken() -> None:
    results = importlib.import_module("docs.generate.results")
    text = results.filled("before\n<!-- take: README.md # cams -->\nafter")
    assert "resnet18, 8" in text
    assert "<!--" not in text
    assert results.filled("<!-- take: benchmarks/attention/README.md # Clai* -->").startswith("| claim |")
    assert "not been measured" in results.filled("<!-- take: benchmarks/none.md # Claims -->")
    with pytest.raises(LookupError, match=r"README\.md has no part 'nothing'"):
        results.filled("<!-- take: README.md # nothing -->")


def test_findings_are_read_off_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = importlib.import_module("docs.generate.results")
    monkeypatch.setattr(results, "RUNS", tmp_path)
    assert "No benchmark run" in results.findings()
    assert "No published run" in results.tables("columns")
    home = tmp_path / "small" / "shapes-cnn"
    home.mkdir(parents=True)
    rows = ["column,best,methods above controls", "deletion,cam,3 of 4", "insertion,random (control),1 of 4"]
    (home / "columns.csv").write_text("\n".join(rows))
    (home / "columns.md").write_text("| a table |")
    (home.parent / "report.md").write_text(
        "# Report\n\n## shapes, cnn\n\n**Cam beats every control.** Of two.\n\n### More\n"
    )
    found = results.findings()
    assert "- **shapes, cnn**: **Cam beats every control.** Of two." in found
    assert "- **small: shapes cnn**: " in found
    assert "2 different entries come first in 2 columns; in 1 of them it is a control (insertion)" in found
    assert "Of 8 pairs of a method and a column, 4 are above the best control." in found
    assert "| a table |" in results.tables("columns")


def test_the_report_of_published_scores_is_made_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason="the documentation's packages are not installed")
    reports, cache, results = (importlib.import_module(f"docs.generate.{n}") for n in ("reports", "cache", "results"))
    monkeypatch.setattr(results, "RUNS", tmp_path / "results")
    monkeypatch.setattr(cache, "HOME", tmp_path / "cache")
    assert "No run has been published" in reports.make()[0]["reports/index.md"]
    run, home = made_up(tmp_path / "run", images=12), tmp_path / "results" / "small"
    publish(run, home / "scores", About("Small"))
    (home / "manifest.json").write_bytes(Store(run).manifest.read_bytes())
    (home / "report.md").write_text("# Report\n\n## shapes, cnn\n\n**Use cam: it is best.**\n\n### More\n", "utf-8")
    shutil.copytree(home, tmp_path / "results" / "tables", ignore=shutil.ignore_patterns("scores"))
    pages, _ = reports.make()
    assert 'href="tables/report.html"' not in pages["reports/index.md"]
    assert "tables in `benchmarks/results/tables`." in pages["reports/index.md"]
    assert "shapes, cnn: **Use cam: it is best.**" in pages["reports/index.md"]
    assert 'href="small/report.html"' in pages["reports/index.md"]
    reports.copy(tmp_path / "site")
    page = tmp_path / "site" / "reports" / "small" / "report.html"
    assert "shapes, cnn" in page.read_text("utf-8")
    assert (page.parent / "shapes-cnn" / "leaderboard.csv").is_file()
    made = page.stat().st_mtime_ns
    reports.copy(tmp_path / "site")
    assert page.stat().st_mtime_ns == made, "made once of the same scores"


def test_standings_are_put_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = importlib.import_module("docs.generate.results")
    monkeypatch.setattr(results, "RUNS", tmp_path)
    assert "No two runs" in results.standings()
    for folder, rows in {
        "a/d-net": ["cam:layer=x,best", "gradcam,'= cam", "lrp,fails", "random,control"],
        "b/d-other": ["lrp:rule=y,in some columns", "cam,fails", "rise,best", "edges,control"],
        "b/d-across-models": ["cam,best", "lrp,best"],
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "leaderboard.csv").write_text("\n".join(["method,standing", *map(quoted, rows)]))
    lines = results.standings().splitlines()
    assert lines[0] == "| method | above the controls | d-net | d-other |"
    assert lines[2:] == ["| `cam` | 1 of 2 | best | fails |", "| `lrp` | 1 of 2 | fails | in some columns |"]


def quoted(row: str) -> str:
    """A method, whose parameters may hold commas, and its standing."""
    method, standing = row.rsplit(",", 1)
    return f'"{method}",{standing}'


def test_docstrings_become_markdown() -> None:
    readable = importlib.import_module("docs.generate.docstrings").readable
    assert readable("R [a > 0][b], `x[0]`.") == "R &#91;a > 0]&#91;b], `x[0]`."
    assert readable("Text.\n\n>>> f([1])\n[1]") == "Text.\n\n\n```pycon\n>>> f([1])\n[1]\n```"
