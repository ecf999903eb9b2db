"""The comparison page: what is stored, that it is safe and whole, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from tests.cli import models
from tests.pages.sheets import EVIL, EVIL_CLASS, comparison, photograph, stored, to_input
from xattn.errors import DataError, ShapeError
from xattn.explainers import explainers, resolve
from xattn.explaining import explain
from xattn.metrics.deletion import Deletion
from xattn.pages.compare import Comparison, compare_page, stored_map, stored_parts
from xattn.pages.html import as_json, render, write
from xattn.registry import first_sentence
from xattn.trace import record
from xattn.viz import shares

# ---------------------------------------------------------------------------------------------------- what is stored


def test_a_coarse_map_is_stored_cell_by_cell() -> None:
    found = stored_map(torch.tensor([[0.0, 0.5], [1.0, 0.25], [0.75, 2.0]]), signed=False)
    assert (found["h"], found["w"], found["signed"]) == (3, 2, False)
    assert list(base64.b64decode(found["raw"])) == [0, 128, 255, 64, 191, 255]


def test_zero_of_a_signed_map_is_in_the_middle() -> None:
    found = stored_map(torch.tensor([[-1.0, 0.0, 1.0, 0.5]]), signed=True)
    assert list(base64.b64decode(found["raw"])) == [1, 128, 255, 192]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_gaps_are_transparent() -> None:
    found = stored_map(torch.tensor([[0.2, torch.nan], [1.0, 0.0]]), signed=False)
    pixels = np.asarray(decoded(found["src"]))
    assert pixels[:, :, 3].tolist() == [[255, 0], [255, 255]]
    assert pixels[:, :, 0][[0, 1, 1], [0, 0, 1]].tolist() == [51, 255, 0]


def test_a_fine_map_is_a_picture_of_limited_size() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 500), torch.linspace(0, 1, 250), indexing="ij")
    found = stored_map((x + y) / 2, signed=False)
    picture = np.asarray(decoded(found["src"]).convert("L"), dtype=float)
    assert picture.shape == (found["h"], found["w"]) == (224, 112)
    expected = (np.linspace(0, 1, 112)[None] + np.linspace(0, 1, 224)[:, None]) / 2
    assert np.abs(picture / 255 - expected).mean() < 0.01


def test_parts_come_by_rank_on_one_scale() -> None:
    parts = torch.tensor([[[1.0, 0.0]], [[4.0, 2.0]], [[0.0, 2.0]]])
    kept = stored_parts(parts, ranked=True)
    assert [list(base64.b64decode(m)) for m in kept["maps"]] == [[64, 0], [255, 128], [0, 128]]
    assert kept["shares"] == pytest.approx([round(s, 4) for s in shares(parts)])
    by_share = stored_parts(parts, ranked=False)
    assert [list(base64.b64decode(m)) for m in by_share["maps"]] == [[255, 128], [0, 128], [64, 0]]
    many = stored_parts(torch.rand(20, 3, 3), ranked=False)
    assert (len(many["maps"]), many["of"]) == (8, 20)
    assert many["shares"] == sorted(many["shares"], reverse=True)


def test_curves_on_the_page_are_those_of_the_metric(path: Path) -> None:
    model = models.cnn()
    x = torch.stack([to_input(photograph(i)) for i in range(3)])
    (method,) = resolve(["saliency"])
    trace = record(model, x, 1, spec=model.spec, layers=method.layers(model.spec), grad=True)
    explanation = method.explanation(trace)
    curve = Deletion(steps=4).curves([explanation], trace, "morf")[0]
    values = Deletion(steps=4).measure(explanation, trace, None)["deletion"]
    blocks = [found for found in stored(path.read_text("utf-8")) if "lines" in found]
    assert len(blocks) == 3
    for i, block in enumerate(blocks):
        cell = block["lines"][1]["cells"][1]
        assert cell["curves"]["deletion"] == [round(1000 * v) for v in curve.scores[i].tolist()]
        assert cell["curves"]["deletion_area"] == pytest.approx(float(values[i]), abs=1e-3)


def test_facts_about_the_methods(path: Path) -> None:
    columns = next(found for found in stored(path.read_text("utf-8")) if isinstance(found, list))
    about = {column["title"]: column for column in columns}
    assert list(about) == ["BR-NPA (parts=4)", "Saliency", "Input x gradient", "Random", "Centre"]
    assert about["Saliency"]["what"] == first_sentence(explainers.get("saliency"))
    assert about["Saliency"]["link"] == "https://arxiv.org/abs/1312.6034"
    assert [c["control"] for c in columns] == [False, False, False, True, True]
    assert [c["signed"] for c in columns] == [False, False, True, False, False]
    assert about["Saliency"]["images"] == 6
    assert about["Random"]["images"] == 3 + 3


def test_a_method_that_is_left_out_has_no_column(tmp_path: Path) -> None:
    page = comparison(["a.png"], curves=False, topk=1)
    page.leave_out(1, "gradcam: no <gradient>")
    text = page.write(tmp_path / "a.html").read_text("utf-8")
    columns, block = (next(f for f in stored(text) if isinstance(f, kind)) for kind in (list, dict))
    assert len(columns) == len(block["lines"][0]["cells"]) == 4
    assert "Left out: gradcam: no &lt;gradient&gt;" in text


# ---------------------------------------------------------------------------------------------------- safe and whole


def test_names_stay_text(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "<script>alert" not in text
    assert [f["file"] for f in stored(text) if "lines" in f] == [EVIL, "b & c.png", "d.png"]
    assert next(f for f in stored(text) if "lines" in f)["lines"][0]["class"] == EVIL_CLASS


def test_everything_is_inside(path: Path) -> None:
    text = path.read_text("utf-8")
    places: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            places.extend(value or "" for name, value in attributes if name in ("src", "href", "srcset", "action"))

    Reader().feed(text)
    assert len(places) == 4  # the icon and three photographs
    assert all(place.startswith("data:image/") for place in places)
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|\bimport\b", text.split("</style>")[0] + js(text))
    assert "default-src 'none'" in text


def js(text: str) -> str:
    """The scripts of a page that run."""
    return "".join(re.findall(r"<script nonce[^>]*>(.*?)</script>", text, re.DOTALL))


def test_scripts_need_the_nonce(path: Path) -> None:
    text = path.read_text("utf-8")
    (nonce,) = set(re.findall(r"script-src 'nonce-(\w+)'", text))
    scripts = re.findall(r"<script(?! type=\"application/json\")([^>]*)>", text)
    assert len(scripts) == 2
    assert set(scripts) == {f' nonce="{nonce}"'}


def test_the_same_run_gives_the_same_file(sheet: Comparison, path: Path, tmp_path: Path) -> None:
    assert sheet.write(tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_a_page_is_written_whole_or_not_at_all(sheet: Comparison, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "page.html"
    sheet.write(target)  # its folder is made
    assert [p.name for p in target.parent.iterdir()] == ["page.html"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"page\.html: cannot be written"):
        sheet.write(tmp_path / "file" / "page.html")


def test_a_template_asks_for_nothing_in_vain() -> None:
    with pytest.raises(UndefinedError):
        render("compare.html.j2", heading="x")


def test_json_survives_a_script() -> None:
    value = {"</script><!--": ["<b>&amp;", "\u2028\u2029", float("inf"), 1.5, None, True, "ä"]}
    text = str(as_json(value))
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"</script><!--": ["<b>&amp;", "\u2028\u2029", None, 1.5, None, True, "ä"]}


def test_no_image_and_no_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no image to show"):
        Comparison([]).write(tmp_path / "a.html")
    page = comparison(["a.png"], curves=False, topk=1)
    for j in range(5):
        page.leave_out(j, "x")
    with pytest.raises(DataError, match="there is no method to show"):
        page.write(tmp_path / "a.html")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ShapeError, match="1 explanations do not fit 5 columns"):
        page.add("b", photograph(0), [["no"]])


def test_from_explanations(tmp_path: Path) -> None:
    model = models.cnn()
    found = explain(model, [photograph(0), photograph(1)], ["gradcam", "brnpa"])
    path = compare_page(found, tmp_path / "a.html", names=["one", "two"], heading="Mine & yours")
    text = path.read_text("utf-8")
    assert [f["file"] for f in stored(text) if "lines" in f] == ["one", "two"]
    assert "<h1>Mine &amp; yours</h1>" in text
    raw = next(f for f in stored(text) if "lines" in f)["lines"][0]["cells"][0]["map"]["raw"]
    flat = found[0].maps[0].flatten()
    expected = 255 * (flat - flat.min()) / (flat.max() - flat.min())
    assert list(base64.b64decode(raw)) == expected.round().int().tolist()
    with pytest.raises(ShapeError, match="1 names do not fit 2 images"):
        compare_page(found, tmp_path / "b.html", names=["one"])


def test_write_makes_no_page_of_unknown_values(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        write(tmp_path / "x.html", "compare.html.j2", heading="x")
    assert not list(tmp_path.iterdir())
