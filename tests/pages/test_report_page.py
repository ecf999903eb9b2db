"""The page of a benchmark: what it says, what it must not load, and the images that it shows again."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.runs import made_up, rows, small
from tests.pages.browser import Tab
from tests.pages.conftest import Open
from xattn.benchmark import run as runs
from xattn.benchmark.panels import Panel, panels
from xattn.benchmark.scores import Scores
from xattn.benchmark.store import Row, Store
from xattn.benchmark.tables import interval_text
from xattn.benchmark.verdict import duration, judge
from xattn.data.sample import collate
from xattn.metrics import metrics
from xattn.pages import pictures, report
from xattn.pages.report import full_report
from xattn.trace import record

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of scores that are made up, with names that would like to be markup; tables and figures left out."""
    run = made_up(tmp_path_factory.mktemp("run"), models=("cnn", "</script><b>x"))
    bad = Row("shapes", "cnn", HOSTILE, -1, "", "reading", "error", math.nan, f"{HOSTILE}: is damaged")
    Store(run).write("shapes", "cnn", 1, [bad], {("", "reading"): 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda *_, **__: None)
        return full_report(run, resamples=20)


CHOSEN: dict[str, Any] = {
    "metrics": ["sparsity", "deletion:steps=4", "insertion:steps=4"],
    "methods": ["gradcam", "saliency", "brnpa"],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data and model can be opened again by `small(**CHOSEN)`."""
    folder = tmp_path_factory.mktemp("ran")
    runs.run(small(**CHOSEN), folder)
    return folder


def views_of(page: Path) -> list[str]:
    """The views of a page."""
    return re.findall(r'<section class="view".*?</section>', page.read_text(), re.DOTALL)


def charts_of(view: str, kind: str) -> dict[tuple[str, str], str]:
    """Charts of a kind by what they show, and beside what."""
    (box,) = re.findall(rf'data-chart="{kind}">(.*?)</svg></div></div>', view, re.DOTALL)
    found = re.findall(r'<div data-y="([^"]*)" data-x="([^"]*)">(<svg.*?)(?=<div data-y|$)', box, re.DOTALL)
    return {(html.unescape(y), html.unescape(x)): svg for y, x, svg in found}


def tips_of(svg: str, kind: str) -> dict[int, str]:
    """What marks of a kind say, by the place of their entry."""
    marks = re.findall(rf'<g (?=[^>]*class="{kind}[ "])[^>]*>', svg)
    return {
        int(re.findall(r'data-m="(\d+)"', mark)[0]): html.unescape(re.findall(r'data-tip="([^"]*)"', mark)[0])
        for mark in marks
    }


def test_the_page_answers(made: Path) -> None:
    text = made.read_text()
    assert made.name == "report.html"
    assert '<h2 class="answer">' in text
    assert re.search(
        r'<h2 class="answer">Use [\w+-]+: shown only the places that its map marks first, the network recognises the '
        r"class sooner, and without them it loses it sooner, than with",
        text,
    )
    assert '<p class="beside">That is by insertion and deletion (baseline blur), on' in text
    assert "Is it faithful, at equal grid?" in text
    assert "is the cheapest" not in text  # its chip says so
    assert len(views_of(made)) == 3
    for view in views_of(made):
        labels = re.findall(r'<th scope="row" class="name" data-v="([^"]*)"', view)
        assert {label.split()[0] for label in labels} >= {"brnpa", "random"}
        assert [title for title, _ in charts_of(view, "curves")] == ["deletion", "insertion"]
        for kind in ("pairs", "ranks", "sizes", "protocols"):
            assert charts_of(view, kind)
        (square,) = charts_of(view, "agreement").values()
        assert "τ = 1.00" in html.unescape(square)


def test_the_page_loads_nothing_and_trusts_no_name(made: Path) -> None:
    text = made.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "</script><b>x" not in text
    assert "&lt;/script&gt;&lt;b&gt;x" in text
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy.split("; "))


def test_numbers_of_the_page_are_those_of_the_tables(made: Path) -> None:
    panel = panels(Scores(made.parent.parent), resamples=20)[0]
    view = views_of(made)[0]
    judged = judge(panel)
    for s in panel.headline(8, directed=True):
        tips = tips_of(charts_of(view, "scatter")[s.column.arrow, "time for one image"], "point")
        assert set(tips) == set(range(len(panel.entries)))
        for j, tip in tips.items():
            name, score, time = tip.split("\n")
            assert name == panel.labels[j]
            assert score == f"{s.column.arrow} {interval_text(s, j)}"
            assert time == f"{duration(panel.costs[j]['seconds'] or 0)} for one image"
    found = panel.summaries["insertion:grid=common", "insertion"].friedman
    assert found is not None
    words = re.findall(r">([^<>]+)</text>", charts_of(view, "ranks")["insertion ↑", ""])
    for j, rank in enumerate(found.mean_ranks):
        assert any(panel.labels[j] in word and f"{rank:.2f}" in word for word in words)
    assert {int(j) for j in re.findall(r'<button type="button" data-m="(\d+)"', view)} == {
        *judged.order,
        *panel.controls,
    }
    tips = re.findall(r'data-tip="([^"]*)"', charts_of(view, "pairs")["insertion ↑", ""])
    dots = [tip for tip in map(html.unescape, tips) if tip.startswith("insertion ↑: ")]
    assert len(dots) == len(panel.entries) * (len(panel.entries) - 1) / 2
    means = dict(zip(panel.labels, panel.summaries["insertion:grid=common", "insertion"].spread.mean, strict=True))
    proven = [tip for tip in dots if "is better than" in tip]
    assert proven
    for tip in proven:
        better, worse = tip.split("\n")[0].removeprefix("insertion ↑: ").split(" is better than ")
        assert means[better] > means[worse]


def test_disputed_best_and_worst_images() -> None:
    from tests.benchmark.test_verdict import panel

    found: Panel = panel(images=30)
    for s in found.summaries.values():
        s.values[3, :4] = np.array([3.0, -3.0, 3.0, -3.0]) * s.column.sign  # methods disagree
        s.values[7] = 2.0 * s.column.sign
        s.values[9] = -2.0 * s.column.sign
        s.values[11, 1:4] = math.nan  # one method alone says nothing about dispute
    chosen = pictures.choose(judge(found), 1)
    assert {kind: [number for number, _ in some] for kind, some in chosen.items()} == {
        "disputed": [3],
        "best": [7],
        "worst": [9],
    }
    several = pictures.choose(judge(found), 9)
    numbers = [number for some in several.values() for number, _ in some]
    assert len(numbers) == len(set(numbers)) == 27
    assert 11 not in numbers
    assert pictures.choose(judge(found), 0) == {}


def test_images_are_explained_as_in_the_run(ran: Path, tmp_path: Path) -> None:
    scores = Scores(ran)
    (panel,) = panels(scores, resamples=10)
    judged = judge(panel)
    shown, notes = pictures.draw(scores, small(**CHOSEN), judged, 2, tmp_path, "p")
    assert notes == []
    assert [p.kind for p in shown] == ["disputed"] * 2 + ["best"] * 2 + ["worst"] * 2
    for p in shown:
        with Image.open(p.path) as picture:
            assert picture.size == p.picture.size
            assert min(picture.size) > 100
        assert p.path.parent == tmp_path
    # The same maps have the same score.
    cell, config = pictures._reopen(scores, small(**CHOSEN), "shapes", "cnn")
    model, spec = cell.load("cpu")
    (sample,) = pictures._find(cell, config, scores, [shown[0].image]).values()
    loaded = runs.Loaded(cell, model, spec, None)
    maps = pictures._explain(loaded, config, sample, dict(enumerate(cell.methods.values())))
    sparsity = metrics.create("sparsity")
    layers = [layer for method in cell.methods.values() for layer in method.layers(spec)]
    trace = record(model, collate([sample], spec).x, spec=spec, layers=layers)
    for name, explanation in zip(cell.methods, maps.values(), strict=True):
        assert not isinstance(explanation, str)
        own = next(r for r in rows(ran) if (r.image, r.method, r.column) == (sample.id, name, "sparsity"))
        assert sparsity.measure(explanation, trace, None)["sparsity"].item() == pytest.approx(own.value, rel=1e-5), name
        assert int(explanation.target[0]) == own.target


def changed(ran: Path, folder: Path, **values: Any) -> Scores:
    """The same scores with another manifest."""
    shutil.copytree(ran, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key, value in values.items():
        manifest[key] = value if value is None else manifest[key] | value
    del manifest["digest"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Scores(folder)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "data are gone": ({"data": {"source": "/nowhere"}}, {}, "/nowhere"),
    "model is gone": ({"models": {"name": "nowhere.models:net"}}, {}, "nowhere"),
    "model of another name": ({"models": {"label": ""}}, {}, "has no 'cnn'"),
    "other weights": ({}, {"identity": {"models": {"cnn": {"weights": "0"}}}}, "weights of cnn have changed"),
    "other images": ({"data": {"source": "synthetic:length=3"}}, {}, "has no image"),
}


@pytest.mark.parametrize(("values", "manifest", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_opened_is_told_in_one_line(
    ran: Path, tmp_path: Path, values: dict[str, Any], manifest: dict[str, Any], reason: str
) -> None:
    scores = changed(ran, tmp_path / "run", **manifest)
    (panel,) = panels(scores, resamples=10)
    shown, (note,) = pictures.draw(scores, small(**CHOSEN, **values), judge(panel), 1, tmp_path, "p")
    assert shown == []
    assert note.startswith("The images cannot be shown again: ")
    assert reason in note
    assert "\n" not in note


def test_expensive_methods_are_left_out(ran: Path, tmp_path: Path) -> None:
    scores = Scores(ran)
    (panel,) = panels(scores, resamples=10)
    panel.costs[panel.labels.index("brnpa")] = {"seconds": 30.0}
    shown, notes = pictures.draw(scores, small(**CHOSEN), judge(panel), 1, tmp_path, "p")
    assert shown
    assert notes == ["Not shown, for their cost: brnpa (30 s an image)."]


def test_a_report_of_little(tmp_path: Path) -> None:
    """One method, one image, no direction: nothing to compare, but a page."""
    found = [
        Row("d", "m", "a", 0, "gradcam", "status", "ok", 1.0, "ok"),
        Row("d", "m", "a", 0, "gradcam", "gini", "gini", 0.5),
        Row("d", "m", "a", 0, "gradcam", "insertion", "insertion", math.nan),
    ]
    Store(tmp_path).write("d", "m", 0, found, {("gradcam", "gini"): 1})
    page = full_report(tmp_path, tmp_path / "out", resamples=5)
    assert "No method was scored on one grid for all by which it could be judged." in page.read_text()
    assert (tmp_path / "out" / "report.md").is_file()


def test_everything_at_once(ran: Path, tmp_path: Path) -> None:
    page = full_report(ran, tmp_path / "out", resamples=10, count=1, config=small(**CHOSEN))
    text = page.read_text()
    links = re.findall(r'href="([^"#:]+)"', text)
    assert links
    for link in links:
        assert (page.parent / link).is_file(), link
    assert sum(link.startswith("panels/") for link in links) == 3
    assert "data:image/webp;base64," in text
    assert "tests.cli.models:cnn" in text  # the manifest
    assert len(list((page.parent / "panels").glob("*.png"))) == 3


# As a person would


def test_tabs_keys_and_links(made: Path, open_page: Open) -> None:
    with open_page(made) as tab:
        page = tab.page
        visible = "[...document.querySelectorAll('.view')].map(v => !v.hidden)"
        assert tab.get(visible) == [True, False, False]
        page.click("#tab-1")
        assert tab.get(visible) == [False, True, False]
        assert tab.get("location.hash") == "#shapes-script-b-x"
        page.keyboard.press("ArrowRight")
        assert tab.get(visible) == [False, False, True]
        assert tab.get("document.activeElement.id") == "tab-2"
        page.keyboard.press("Home")
        page.keyboard.press("2")
        assert tab.get(visible) == [False, True, False]
        assert tab.get("document.querySelectorAll('[role=tab][aria-selected=true]').length") == 1
        tab.until("document.querySelectorAll('.view:not([hidden]) .point').length > 4")
        page.click("[data-goto=agreement]")
        tab.until(
            "document.querySelector('.view:not([hidden]) [data-part=agreement]').getBoundingClientRect().top < 400"
        )
        page.keyboard.press("t")
        assert tab.get("document.documentElement.dataset.theme") == "light"


def column(tab: Tab, i: int) -> list[str]:
    """Texts of a column of the leaderboard, from top to bottom."""
    script = "i => [...document.querySelectorAll('.view:not([hidden]) .board tbody tr')].map(r => r.cells[i].dataset.v)"
    return list(tab.get(script, i))


def test_the_leaderboard_sorts_by_every_column(made: Path, open_page: Open) -> None:
    with open_page(made) as tab:
        page = tab.page
        at_first = (
            "[...document.querySelectorAll('.view:not([hidden]) .board [aria-sort=ascending]')].map(h => h.innerText)"
        )
        assert tab.get(at_first) == ["standing"]
        heads = page.query_selector_all(".view:not([hidden]) .board thead th:not(.extra)")
        for head in heads:
            i = head.evaluate("h => h.cellIndex")
            head.query_selector("button").click()
            way = head.get_attribute("aria-sort")
            raw = column(tab, i)
            values = [float(v) if re.fullmatch(r"-?[\d.e-]+", v) else v for v in raw if v]
            assert values == sorted(values, reverse=way == "descending")
            assert raw[: len(values)] == [v for v in raw if v]  # what has no value comes last
            head.query_selector("button").click()
            assert head.get_attribute("aria-sort") != way
        assert tab.get("document.querySelectorAll('.view:not([hidden]) .board th[aria-sort$=ending]').length") == 1
        page.click(".view:not([hidden]) [data-toggle=brief]")
        assert page.is_visible(".view:not([hidden]) .board td.extra")
        page.click(".view:not([hidden]) [data-toggle=bars]")
        assert page.is_visible(".view:not([hidden]) .board .ends")
        assert not page.is_visible(".view:not([hidden]) .board .iv")


def test_plots_answer_to_pointer_and_choice(made: Path, open_page: Open) -> None:
    with open_page(made) as tab:
        page = tab.page
        points = ".view:not([hidden]) [data-chart=scatter] > :not([hidden]) .point"
        tab.until(f"document.querySelectorAll('{points}').length === 8")
        page.hover(".view:not([hidden]) .board tbody tr:first-child th")
        name = page.inner_text(".view:not([hidden]) .board tbody tr:first-child th").split("≈")[0].strip()
        assert tab.get("document.querySelector('.view:not([hidden]) .point.lit text').textContent") == name
        page.focus(".view:not([hidden]) .point")
        label = tab.get("document.activeElement.getAttribute('aria-label')")
        assert "insertion ↑" in label
        assert " ms for one image" in label or " s for one image" in label
        before = page.inner_html(".view:not([hidden]) [data-chart=scatter]")
        page.select_option(".view:not([hidden]) [data-axis=y]", label="deletion ↓")
        after = page.inner_html(".view:not([hidden]) [data-chart=scatter]")
        assert "deletion ↓, up is better" in after
        assert before != after
        series = ".view:not([hidden]) [data-chart=curves] .series"
        lines = f"document.querySelectorAll('{series}:not([hidden])').length"
        shown = tab.until(lines)
        page.click(".view:not([hidden]) .legend button[aria-pressed=true]")
        assert tab.get(lines) == shown - 2  # one in each plot
        for part in ("pairs", "ranks", "agreement", "protocols", "sizes"):
            assert tab.get(f"!!document.querySelector('.view:not([hidden]) [data-chart={part}] svg')"), part


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 400])
def test_it_fits_the_window(made: Path, open_page: Open, width: int, dark: bool) -> None:
    with open_page(made, width=width, dark=dark) as tab:
        for i in range(3):
            tab.page.keyboard.press(str(i + 1))
            tab.until("document.querySelectorAll('.view:not([hidden]) .point').length > 4")
            assert tab.get("document.documentElement.scrollWidth") <= width
        if width == 1440:  # the answer and the first methods without scrolling
            row = "document.querySelector('.view:not([hidden]) .board tbody tr:nth-child(5)')"
            assert tab.get(f"{row}.getBoundingClientRect().bottom") < 900


def test_the_images_are_there(ran: Path, tmp_path: Path, open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_report", lambda *_, **__: None)
    with open_page(full_report(ran, tmp_path, resamples=5, count=1, config=small(**CHOSEN))) as tab:
        page = tab.page
        page.click("[data-goto=images]")
        assert page.is_visible(".shots[data-kind=disputed] img")
        page.click("button[data-kind=worst]")
        assert page.is_visible(".shots[data-kind=worst] img")
        assert not page.is_visible(".shots[data-kind=disputed] img")
        tab.until("document.querySelector('.shots[data-kind=worst] img').naturalWidth > 200")


def test_what_tests_say_is_told_in_plain_words(made: Path) -> None:
    assert re.search(r"5 methods\W+3 controls", re.sub("<[^>]+>", " ", html.unescape(made.read_text(encoding="utf-8"))))
    tips = set(re.findall(r'data-tip="([^"]*)"', made.read_text(encoding="utf-8")))
    for words in (r"statistically tied with the best \(p = ", r"significantly worse than the best \(p = ",
                  r"not significantly better than every control with \d+ images"):  # fmt: skip
        assert any(re.search(words, html.unescape(tip)) for tip in tips), words
