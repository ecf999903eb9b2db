"""The comparison page in a browser: what it draws, and what keys, clicks and narrow screens do."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli import models
from tests.pages.conftest import Open
from tests.pages.sheets import EVIL, comparison, photograph
from xattn.explainers import resolve
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.pages.compare import Column, Comparison, compare_page
from xattn.pages.html import Spool
from xattn.viz import overlay, rank_overlay

DRAWN = "document.querySelectorAll('.block canvas[data-drawn]').length"


def pixels(tab: Any, selector: str) -> np.ndarray[Any, Any]:
    """Red, green, blue and opacity of a canvas."""
    values = tab.get(
        "s => { const c = document.querySelector(s);"
        " const copy = Object.assign(document.createElement('canvas'), { width: c.width, height: c.height })"
        ".getContext('2d', { willReadFrequently: true });"
        " copy.drawImage(c, 0, 0);"
        " return [c.height, c.width, ...copy.getImageData(0, 0, c.width, c.height).data]; }",
        selector,
    )
    return np.array(values[2:], dtype=float).reshape(values[0], values[1], 4)


def test_it_opens_and_draws(open_page: Open, path: Path) -> None:
    with open_page(path) as tab:
        tab.until(f"{DRAWN} === 3 * (5 + 2)")  # the two methods that are class-specific show both classes
        assert tab.page.title() == "Side by side"
        assert tab.get("document.querySelectorAll('.block').length") == 3
        assert [e.inner_text() for e in tab.page.query_selector_all(".name[data-column='2'] span")] == [
            "Input x gradient±"
        ]
        assert tab.page.locator(".who .file").first.inner_text() == EVIL
        assert tab.style(".cell .stack img", "filter").startswith("grayscale")


def test_keys_and_clicks_change_the_view(open_page: Open, path: Path) -> None:
    with open_page(path) as tab:
        tab.until(DRAWN)
        saliency = ".cell[data-column='1'] canvas"
        overlay_opacity = pixels(tab, saliency)[:, :, 3]
        assert 0 < overlay_opacity.min() < overlay_opacity.max() < 255
        tab.page.keyboard.press("2")
        tab.frame()
        assert tab.style(saliency.replace("canvas", "img"), "visibility") == "hidden"
        assert (pixels(tab, saliency)[:, :, 3] == 255).all()
        tab.page.keyboard.press("3")
        assert tab.style(saliency, "visibility") == "hidden"
        assert tab.style(saliency.replace("canvas", "img"), "filter") == "none"
        tab.page.click("button[value='overlay']")
        assert tab.get("document.body.dataset.view") == "overlay"
        assert tab.get("document.querySelector('button[value=overlay]').getAttribute('aria-pressed')") == "true"


def test_the_slider_changes_the_opacity(open_page: Open, path: Path) -> None:
    with open_page(path) as tab:
        tab.until(DRAWN)
        before = pixels(tab, ".cell[data-column='1'] canvas")[:, :, 3].mean()
        for _ in range(4):
            tab.page.keyboard.press("]")
        tab.frame()
        more = pixels(tab, ".cell[data-column='1'] canvas")[:, :, 3].mean()
        tab.page.fill("#alpha", "0")
        tab.frame()
        assert before + 20 < more
        assert pixels(tab, ".cell[data-column='1'] canvas")[:, :, 3].max() == 0


def test_parts_one_by_one_and_together(open_page: Open, path: Path) -> None:
    brnpa = ".cell[data-column='0'] canvas"
    with open_page(path) as tab:
        tab.until(DRAWN)
        colors = {tuple(c) for c in (pixels(tab, brnpa)[:, :, :3] > 0).reshape(-1, 3).tolist()}
        assert len(colors) > 2  # more than one part shows
        tab.page.click(".bar button[aria-label='Part 2 alone']")
        tab.frame()
        green = pixels(tab, brnpa)
        assert green[:, :, [0, 2]].max() == 0
        assert green[:, :, 1].max() > 50
        assert tab.get(f'document.querySelector("{brnpa}").dataset.drawn === "parts"')
        tab.page.keyboard.press("p")
        tab.frame()
        assert pixels(tab, brnpa)[:, :, :2].max() == 0
        tab.page.click(".bar button[value='map'] >> nth=1")
        tab.frame()
        assert tab.get(f'document.querySelector("{brnpa}").dataset.drawn === "map"')
        levels = tab.get(
            "[...document.querySelectorAll('.block .levels:first-of-type')[0].children].map(i => +i.style.flexGrow)"
        )
        assert sum(levels) == pytest.approx(1, abs=1e-3)


def test_two_classes_side_by_side_or_one(open_page: Open, path: Path) -> None:
    shown = (
        "[...document.querySelector('.block').querySelectorAll('.cell:not([hidden])')]"
        ".map(c => c.dataset.column + c.dataset.line).join(' ')"
    )
    with open_page(path) as tab:
        tab.until(DRAWN)
        assert tab.get(shown) == "00 10 11 20 21 30 40"
        left, right = (
            tab.page.locator(f".cell[data-column='1'][data-line='{k}']").first.bounding_box() for k in (0, 1)
        )
        assert left["y"] == right["y"]
        assert left["x"] < right["x"]
        tab.page.keyboard.press("c")
        assert tab.get(shown) == "00 10 20 30 40"
        tab.page.keyboard.press("c")
        assert tab.get(shown) == "00 11 21 30 40"


def test_hover_and_focus_show_the_curves(open_page: Open, path: Path) -> None:
    with open_page(path) as tab:
        tab.until(DRAWN)
        tab.page.hover(".cell[data-column='1']")
        tab.until("!document.getElementById('card').hidden")
        card = tab.page.locator("#card")
        assert "Saliency" in card.inner_text()
        assert card.locator("path.deletion:not(.reference)").count() == 1
        assert card.locator("path.reference").count() == 2  # those of the control
        assert "dashed: random" in card.inner_text()
        tab.page.mouse.move(5, 5)
        tab.until("document.getElementById('card').hidden")
        tab.page.hover(".name[data-column='0']")
        tab.until("!document.getElementById('card').hidden")
        assert "arXiv:2106.02566" in card.inner_text()
        tab.page.mouse.move(5, 5)
        tab.page.locator(".cell").first.focus()
        tab.page.keyboard.press("ArrowRight")
        tab.until("!document.getElementById('card').hidden")
        assert "Saliency" in card.inner_text()


def test_looking_closer_by_keyboard_alone(open_page: Open, path: Path) -> None:
    title = "document.getElementById('closer-title').textContent"
    file = "document.getElementById('closer-meta').textContent"
    focus = "document.activeElement.dataset.column + ' ' + document.activeElement.closest('.block').id"
    with open_page(path) as tab:
        tab.until(DRAWN)
        for _ in range(40):
            tab.page.keyboard.press("Tab")
            if tab.get("document.activeElement.classList.contains('cell')"):
                break
        assert tab.get(focus) == "0 image-1"
        tab.page.keyboard.press("ArrowRight")
        tab.page.keyboard.press("ArrowDown")
        assert tab.get(focus) == "1 image-2"
        tab.page.keyboard.press("Enter")
        tab.until("document.getElementById('closer').open")
        tab.until("document.querySelectorAll('#closer canvas[data-drawn]').length === 2")  # a class each
        assert (tab.get(title), tab.get(file)) == ("Saliency", "b & c.png")
        assert tab.page.locator("#closer .chart").count() == 2
        tab.page.keyboard.press("ArrowLeft")
        assert tab.get(title) == "BR-NPA (parts=4)"
        assert tab.page.locator("#closer .facts .chip").count() == 4
        tab.page.keyboard.press("ArrowUp")
        assert tab.get(file) == EVIL
        tab.page.keyboard.press("ArrowUp")  # there is nothing above
        tab.page.keyboard.press("2")
        tab.frame()
        assert (pixels(tab, "#closer canvas")[:, :, 3] == 255).all()
        tab.page.keyboard.press("Escape")
        tab.until("!document.getElementById('closer').open")
        tab.until(f"({focus}) === '0 image-1'")


def test_columns_can_be_hidden(open_page: Open, path: Path) -> None:
    with open_page(path) as tab:
        tab.until(DRAWN)
        before = tab.get("parseInt(getComputedStyle(document.documentElement).getPropertyValue('--tracks'))")
        tab.page.click("#methods summary")
        tab.page.uncheck("#methods input[value='1']")
        assert (
            tab.get("parseInt(getComputedStyle(document.documentElement).getPropertyValue('--tracks'))") == before - 2
        )
        assert tab.page.locator(".block .cell[data-column='1']:visible").count() == 0
        assert tab.page.locator("#count").inner_text() == "4 of 5"
        tab.page.keyboard.press("Escape")
        assert not tab.get("document.getElementById('methods').open")


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(open_page: Open, path: Path, dark: bool) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)"
    with open_page(path, dark=dark) as tab:
        tab.until(DRAWN)
        assert (max(tab.get(ground)) < 60) == dark
        seen = set()
        for _ in range(3):
            tab.page.keyboard.press("t")
            seen.add(max(tab.get(ground)) < 60)
        assert seen == {True, False}


def test_status_is_written_on_the_map(open_page: Open, tmp_path: Path) -> None:
    (found,) = explain(models.cnn(), [photograph(0)] * 3, ["gradcam"])
    maps = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan), found.maps[2]])
    maps[1, 0, :4] = torch.rand(4, 8)
    broken = Explanation(maps, found.target, found.method, found.input_size, inputs=found.inputs, spec=found.spec)
    path = compare_page([broken], tmp_path / "page.html")
    with open_page(path) as tab:
        tab.until(f"{DRAWN} === 2")  # there is nothing to draw of the first
        assert tab.page.locator(".status").all_inner_texts() == ["all-zero map", "undefined values"]
        opacity = pixels(tab, "#image-2 canvas")[:, :, 3]
        assert opacity[-10:].max() == 0
        assert opacity[:10].max() > 0
        tab.page.locator(".cell").first.focus()
        tab.until("!document.getElementById('card').hidden")
        assert "try another class, or hirescam" in tab.page.locator("#card").inner_text(), "and what to do is told"


@pytest.mark.parametrize("kind", ["plain", "signed", "fine", "ranks", "many ranks"])
def test_pictures_are_those_of_the_library(open_page: Open, tmp_path: Path, kind: str) -> None:
    """On a grey photograph, since browsers weigh red, green and blue otherwise than the library when they turn grey."""
    g = torch.Generator().manual_seed(1)
    photo = photograph(1, (240, 240), grey=True)
    if kind in ("ranks", "many ranks"):
        parts = torch.rand(1, 3 if kind == "ranks" else 5, 6, 6, generator=g)
        maps = parts[:, :1]
        expected = rank_overlay(photo, parts[0])
        (method,) = resolve(["brnpa"])
    else:
        size = 240 if kind == "fine" else 7
        maps = torch.rand(1, 1, size, size, generator=g) - (0.4 if kind == "signed" else 0.0)
        if kind == "fine":
            maps = torch.nn.functional.avg_pool2d(maps, 25, 1, 12)
        parts = None
        expected = overlay(photo, maps[0, 0])
        (method,) = resolve(["hirescam" if kind == "signed" else "gradcam"])
    pixels_in = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    spec = models.cnn().spec
    found = Explanation(maps, torch.zeros(1, dtype=torch.long), method, (240, 240), parts, inputs=pixels_in, spec=spec)
    path = compare_page([found], tmp_path / "page.html")
    with open_page(path) as tab:
        tab.until(DRAWN)
        stack = tab.page.locator(".cell .stack").first
        stack.evaluate(
            "e => { e.style.cssText = e.closest('.block').style.cssText + ';position:fixed;inset:0;width:240px;"
            "border-radius:0;z-index:99'; document.body.append(e); }"
        )
        tab.frame()
        view = tab.page.screenshot(clip={"x": 0, "y": 0, "width": 240, "height": 240})
    got = Image.open(io.BytesIO(view)).convert("RGB")
    if folder := os.environ.get("XATTN_SCREENSHOTS"):
        Image.fromarray(np.hstack([np.asarray(got), np.asarray(expected)])).save(Path(folder) / f"like-{kind}.png")
    assert got.size == (240, 240)
    difference = np.abs(np.asarray(got, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.mean() < 2  # of 255: WebP, and filters of the browser
    assert np.percentile(difference, 99) < 10


@pytest.fixture(scope="module")
def long(sheet: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 300 rows."""
    rows = [*sheet.blocks]
    blocks = [{**rows[i % 3], "file": f"photo {i}.png", "path": f"photo {i}.png"} for i in range(300)]
    return dataclasses.replace(sheet, blocks=Spool(blocks)).write(tmp_path_factory.mktemp("long") / "long.html")


def test_hundreds_of_rows_scroll(open_page: Open, long: Path) -> None:
    with open_page(long) as tab:
        tab.until(DRAWN)
        assert tab.get(DRAWN) < 300  # not 2100: only what is near
        assert tab.get("document.querySelectorAll('.cell').length") < 300
        tab.get("document.querySelector('main').scrollTo(0, 1e9)")
        tab.until("document.querySelectorAll('#image-300 canvas[data-drawn]').length === 7")
        tab.until("document.querySelectorAll('#image-1 canvas[data-drawn]').length === 0")  # given back
        assert tab.get(DRAWN) < 300
        tab.get("document.querySelector('main').scrollTo(0, 0)")
        tab.until("document.querySelectorAll('#image-1 canvas[data-drawn]').length === 7")


def test_finding_rows(open_page: Open, long: Path) -> None:
    with open_page(long) as tab:
        tab.until(DRAWN)
        tab.page.keyboard.press("/")
        tab.page.keyboard.type("photo 29")
        shown = "[...document.querySelectorAll('.block:not([hidden])')].length"
        assert tab.get(shown) == 11  # 29 and 290 to 299
        tab.page.keyboard.type("x")
        assert tab.get(shown) == 0
        assert tab.page.locator(".nothing").is_visible()


def test_a_narrow_screen_has_no_overflow(open_page: Open, path: Path) -> None:
    with open_page(path, width=400, height=800) as tab:
        tab.until(DRAWN)
        assert tab.get("document.documentElement.scrollWidth") == 400
        assert tab.get("document.body.scrollWidth") == 400
        assert tab.page.locator(".cell .caption").first.inner_text() == "BR-NPA (parts=4)"
        tab.page.locator(".cell").nth(1).tap()
        tab.until("document.getElementById('closer').open")
        box = tab.page.locator("#closer").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
        tab.page.locator("#closer [data-close]").tap()
        tab.until("!document.getElementById('closer').open")
        tab.get("scrollTo(0, document.body.scrollHeight)")
        tab.until("document.querySelectorAll('#image-3 canvas[data-drawn]').length === 7")


def test_few_images_of_many_methods_become_a_wall(open_page: Open, tmp_path: Path) -> None:
    page = comparison(["a.png"], curves=False, topk=2)
    (block,) = page.blocks
    lines = [{**line, "cells": line["cells"] * 2} for line in block["lines"]]
    double = dataclasses.replace(page, columns=[*page.columns] * 2, blocks=Spool([{**block, "lines": lines}]))
    with open_page(double.write(tmp_path / "wall.html"), width=1000) as tab:
        tab.until(DRAWN)
        assert tab.get("document.body.classList.contains('wall')")
        assert tab.get("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
        assert tab.page.locator(".caption b:visible").count() == 14
        tops = tab.get(
            "new Set([...document.querySelectorAll('.cell')].map(c => Math.round(c.getBoundingClientRect().top))).size"
        )
        assert tops > 1


def test_a_name_of_two_words_is_not_cut(open_page: Open, tmp_path: Path) -> None:
    model = models.cnn()
    found = explain(model, torch.zeros(1, 3, 32, 32), ["gradcam"], spec=model.spec)
    sheet = Comparison([Column(found[0].method)])
    guess = {"cnn": {"class": "king penguin of the far south", "probability": 0.5, "right": True}}
    sheet.add("a.png", photograph(0), [found], predicted=guess, label="king penguin of the far south")
    with open_page(sheet.write(tmp_path / "page.html")) as tab:
        tab.until(DRAWN)
        assert tab.get(
            "[...document.querySelectorAll('.who p:not(.file)')].every(p => p.scrollHeight <= p.clientHeight)"
        )
        assert tab.get("[...document.querySelectorAll('.who b')].every(b => b.scrollWidth <= b.offsetWidth)")
