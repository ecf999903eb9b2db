"""The page of an audit: what is on it, and what keys, clicks, links and narrow screens do in a browser."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from tests.audit.synthetic import Pictures, build, pictures
from tests.pages.conftest import Open
from xattn.audit import Audit, AuditSettings, audit
from xattn.errors import DataError
from xattn.pages.audit import PICTURES, audit_page, outline

VISIBLE = "[...document.querySelectorAll('.finding')].filter(c => !c.hidden).map(c => c.id)"
FOCUSED = "document.activeElement.id"


@pytest.fixture(scope="module")
def images() -> Pictures:
    return pictures(80, share=0.5)


@pytest.fixture(scope="module")
def found(images: Pictures) -> Audit:
    return audit(build(), images, settings=AuditSettings(score="logit", parts=3, area=0.2))


@pytest.fixture(scope="module")
def path(found: Audit, images: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audit_page(found, images, build().spec, tmp_path_factory.mktemp("page") / "audit.html")  # type: ignore[arg-type]


def test_cards_stand_in_order_with_their_sentences(open_page: Open, path: Path, found: Audit) -> None:
    moving = [f for f in found if f.effect.moves]
    with open_page(path) as tab:
        assert tab.get(VISIBLE) == [f.id for f in moving]
        first = "document.querySelector('.finding')"
        assert tab.get(f"{first}.querySelector('.sentence').textContent") == moving[0].sentence
        text = tab.get(f"{first}.innerText")
        assert moving[0].sure in text
        assert moving[0].next in text
        assert "shortcut candidate" in text
        assert f"{moving[0].effect.fall:.2f}" in text
        assert tab.get(f"{first}.querySelectorAll('.gallery img').length") == 6
        assert tab.get("document.documentElement.scrollWidth <= innerWidth")


def test_keys_move_open_hide_and_name(open_page: Open, path: Path, found: Audit) -> None:
    ids = [f.id for f in found if f.effect.moves]
    with open_page(path) as tab:
        keys = tab.page.keyboard
        keys.press("j")
        assert tab.get(FOCUSED) == ids[0]
        keys.press("j")
        assert tab.get(FOCUSED) == ids[1]
        keys.press("k")
        keys.press("Enter")
        assert tab.get("document.getElementById('closer').open")
        members = next(f for f in found if f.id == ids[0]).group.members
        shown = tab.get("[...document.querySelectorAll('#closer-shots img')].map(i => i.alt)")
        assert len(shown) == min(PICTURES, len(members))
        assert set(shown) <= {m.image for m in members}
        assert tab.get("location.hash") == f"#{ids[0]}"
        keys.press("ArrowRight")
        assert tab.get("location.hash") == f"#{ids[1]}"
        keys.press("Escape")
        assert not tab.get("document.getElementById('closer').open")
        tab.get(f"document.getElementById('{ids[0]}').focus()")
        keys.press("n")
        keys.type("The red corner")
        keys.press("Enter")
        assert tab.get(f"document.querySelector('#{ids[0]} .name').textContent") == "The red corner"
        keys.press("h")
        assert tab.get(VISIBLE) == ids[1:]
        assert tab.get(FOCUSED) == ids[1]
        tab.page.check("#hidden")
        assert tab.get(VISIBLE) == ids
        keys.press("?")


def test_what_was_hidden_and_named_is_there_again(open_page: Open, path: Path, found: Audit) -> None:
    ids = [f.id for f in found if f.effect.moves]
    with open_page(path) as tab:
        tab.page.click(f"#{ids[1]} [data-do=hide]")
        tab.page.reload()
        assert ids[1] not in tab.get(VISIBLE)


def test_exports_hold_the_findings_and_the_images(open_page: Open, path: Path, found: Audit, tmp_path: Path) -> None:
    first = found.findings[0]
    with open_page(path) as tab:
        with tab.page.expect_download() as waiting:
            tab.page.click(f"#{first.id} [data-do=csv]")
        waiting.value.save_as(tmp_path / "a.csv")
        rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
        assert [r["image"] for r in rows] == [m.image for m in first.group.members]
        assert {r["finding"] for r in rows} == {first.id}
        with tab.page.expect_download() as waiting:
            tab.page.click("#json")
        waiting.value.save_as(tmp_path / "a.json")
        plain = json.loads((tmp_path / "a.json").read_text())
        assert [f["id"] for f in plain["findings"]] == [f.id for f in found if f.effect.moves]
        assert plain["findings"][0]["effect"]["difference"] == first.effect.difference
        assert plain["findings"][0]["name"] == "green thing"


def test_a_link_leads_to_its_finding_and_filters_filter(open_page: Open, path: Path, found: Audit) -> None:
    ids = [f.id for f in found if f.effect.moves]
    with open_page(path) as tab:
        tab.page.goto(f"{path.resolve().as_uri()}#{ids[-1]}")
        tab.page.reload()
        assert tab.get(FOCUSED) == ids[-1]
        tab.page.click("#levels button[value='shortcut candidate']")
        assert tab.get(VISIBLE) == [f.id for f in found if f.candidate]
        tab.page.click("#levels button[value='']")
        tab.page.fill("#find", found.findings[0].group.members[0].image)
        assert ids[0] in tab.get(VISIBLE)
        tab.page.fill("#find", "no such thing")
        assert tab.get(VISIBLE) == []
        assert tab.get("!document.querySelector('.nothing').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_narrow_screens_scroll_down_only(open_page: Open, path: Path, dark: bool) -> None:
    with open_page(path, width=400, dark=dark) as tab:
        assert tab.get("document.documentElement.scrollWidth") <= 400
        tab.page.click(".gallery")
        assert tab.get("document.getElementById('closer').getBoundingClientRect().right") <= 400


def test_names_from_outside_do_nothing(open_page: Open, found: Audit, images: Pictures, tmp_path: Path) -> None:
    evil = '<img src=x onerror=alert(1)></script>","=1+1'
    first = found.findings[0]
    members = (dataclasses.replace(first.group.members[0], image=evil), *first.group.members[1:])
    bad = dataclasses.replace(first, group=dataclasses.replace(first.group, members=members, class_name=evil))
    page = audit_page(
        dataclasses.replace(found, findings=(bad, *found.findings[1:])),
        images,
        build().spec,
        tmp_path / "evil.html",  # type: ignore[arg-type]
    )
    with open_page(page) as tab:
        assert evil.split(",")[0] in tab.get("document.querySelector('.finding .name').textContent")
        tab.page.click(".gallery")
        assert evil in tab.get("[...document.querySelectorAll('#closer-shots img')].map(i => i.alt)")


def test_outlines_go_around_cells() -> None:
    cells = np.zeros((2, 3), bool)
    cells[0, 1] = True
    edges = {outline(cells)[i + 1 : i + 6] for i in range(0, 24, 6)}
    assert len(edges) == 4
    assert outline(np.zeros((2, 2), bool)) == ""


def test_an_audit_of_nothing_has_no_page(images: Pictures, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no group of evidence to show"):
        audit_page(Audit(()), images, build().spec, tmp_path / "a.html")  # type: ignore[arg-type]
