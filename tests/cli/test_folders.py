"""A folder with a folder per class: its tree, its labels, right and wrong, and the table of all of it."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import xattn
from tests.cli import models
from tests.cli.conftest import Run
from xattn.data import reading
from xattn.data.preprocessing import preprocess
from xattn.data.tree import class_of, label_of, places, strangers
from xattn.errors import DataError, ParameterError, StatusWarning, XattnWarning
from xattn.pages.compare import Column, Comparison
from xattn.spec import ModelSpec
from xattn.storage import load_explanation, save_explanation

CNN = ("--model", "tests.cli.models:cnn")


def spotted(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((48, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of classes of the network, one of a class that it does not have, and a file that is no image."""
    root = tmp_path / "photos"
    for i, name in enumerate(["Tiger_cat/1.png", "Tiger_cat/outdoors/1.png", "goldfish/1.png", "teapott/1.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        spotted(i).save(path)
    (root / "goldfish" / "bad.png").write_text("no image")
    return root


def rows(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predicted(path: Path) -> int:
    model = models.cnn()
    with torch.no_grad():
        return int(model(preprocess(path, model.spec)[None]).argmax())


def test_the_tree_is_mirrored_with_panels_by_class_and_a_table(run: Run, folder: Path) -> None:
    result = run("explain", folder, "-m", "gradcam", "-m", "brnpa", *CNN, "--out", "out")
    assert result.exit_code == 3  # one file is no image
    found = sorted(p.relative_to("out").as_posix() for p in Path("out").rglob("*.*"))
    places = ("Tiger_cat", "Tiger_cat/outdoors", "goldfish", "teapott")
    files = [f"{place}/{name}" for place in places for name in ("1.brnpa.png", "1.gradcam.png", "panel.png")]
    assert found == sorted([*files, "index.csv"])
    table = rows("out/index.csv")
    assert len(table) == 4 * 2 + 1
    for row in table[:-1]:
        path = Path(row["image"])
        label = {"Tiger_cat": 1, "goldfish": 2}.get(row["label"])
        guess = predicted(path)
        assert row["predicted"] == models.CLASSES[guess]
        assert row["right"] == ("" if label is None else "yes" if guess == label else "no")
        assert Path(row["picture"]).is_file()
        assert row["status"] == "ok"
    assert {row["label"] for row in table[:-1]} == {"Tiger_cat", "goldfish", "teapott"}
    assert table[-1]["image"].endswith("bad.png")
    assert "not an image" in table[-1]["status"]
    assert "teapott names no class of cnn. Did you mean 'teapot'?" in result.stderr
    right = sum(row["right"] == "yes" for row in table) // 2
    assert f"cnn is right on {right} of 3 images" in result.stdout
    assert "index.csv" in result.stdout


def test_right_and_wrong_are_marked_and_said(run: Run, tmp_path: Path) -> None:
    spotted(0).save(tmp_path / "photo.png")
    k = predicted(tmp_path / "photo.png")
    names = [name.split(",")[0] for name in models.CLASSES]
    green, red = (27, 120, 55), (178, 24, 43)
    for folder, color, right in ((names[k], green, True), (names[k - 1], red, False), ("nothing", None, None)):
        place = tmp_path / "sets" / f"of {folder}" / folder / "photo.png"
        place.parent.mkdir(parents=True)
        spotted(0).save(place)
        result = run("explain", place.parent.parent, "-m", "gradcam", *CNN, "--out", f"out-{right}", "--json")
        found = json.loads(result.stdout)
        assert found["images"][0]["predicted"]["cnn"]["right"] is right
        (panel,) = found["panels"]
        pixels = np.asarray(Image.open(panel))
        for other in (green, red):
            assert (np.all(pixels == other, axis=-1).sum() > 100) == (other == color)


def test_a_flat_folder_gives_a_table_and_no_labels(run: Run, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    spotted(1).save(tmp_path / "flat" / "a.png")
    found = json.loads(run("explain", "flat", "-m", "gradcam", *CNN, "--json").stdout)
    assert found["index"] == "xattn-out/index.csv"
    assert found["images"][0]["predicted"]["cnn"].get("right") is None
    assert [row["label"] for row in rows(found["index"])] == [""]
    assert sorted(p.name for p in Path("xattn-out").iterdir()) == ["a.gradcam.png", "index.csv"]


def test_names_that_collide_in_a_folder_do_not_across_folders(run: Run, tmp_path: Path) -> None:
    for name in ("x/a b.png", "x/a_b.png", "y/a b.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        spotted(1).save(tmp_path / "set" / name)
    run("explain", "set", "-m", "gradcam", *CNN)
    found = sorted(p.relative_to("xattn-out").as_posix() for p in Path("xattn-out").rglob("*.gradcam.png"))
    assert found == ["x/a_b-2.gradcam.png", "x/a_b.gradcam.png", "y/a_b.gradcam.png"]


def test_the_page_tells_labels_and_right_and_wrong(run: Run, folder: Path) -> None:
    (folder / "goldfish" / "bad.png").unlink()
    result = run("compare", folder, "-m", "gradcam", "--no-curves", "--no-controls", *CNN)
    assert result.exit_code == 0
    page = Path("comparison.html").read_text(encoding="utf-8")
    assert page.count("<small>labelled</small>") == 4
    assert page.count('aria-label="right"') + page.count('aria-label="wrong"') == 3
    assert "cnn is right on" in result.stdout


def test_the_photograph_of_a_second_network_is_stored_once() -> None:
    found = [xattn.explain(models.cnn(), spotted(0), name) for name in ("gradcam", "saliency", "brnpa")]
    page = Comparison([Column(e.method, name) for e, name in zip(found, "abb", strict=True)])
    page.add("a.png", [spotted(1), spotted(2), spotted(2)], [found, found])
    (block,) = page.blocks
    assert [[cell.get("photo") for cell in line["cells"]] for line in block["lines"]] == [[None, 0, 0]] * 2
    assert len(block["photos"]) == 1
    assert block["photos"][0] != block["photo"]


SPEC = ModelSpec(classes=("tabby, tabby cat", "tiger cat", "7"))


@pytest.mark.parametrize(
    ("place", "index"),
    [("Tiger-Cat", 1), ("train/tabby_cat/2020", 0), ("7", 2), ("1", None), ("tiger cats", None), (".", None)],
)
def test_folders_name_classes(place: str, index: int | None) -> None:
    assert class_of(Path(place), SPEC) == index


def test_places_and_labels() -> None:
    files = [Path("a/cat/x/1.png"), Path("b.png"), Path("c/d.png")]
    assert [*places(files, ["a", "b.png", "c/*.png"]).values()] == [Path("cat/x"), Path(), Path()]
    assert label_of(Path("tabby/x"), [SPEC]) == "tabby"
    assert label_of(Path("dogs/x"), [SPEC]) == "x"
    assert strangers([Path("tabby"), Path("tabbi")], SPEC) == {"tabbi": "tabby"}


def test_a_folder_in_python_is_its_images_one_by_one(folder: Path) -> None:
    model = models.cnn()
    with pytest.warns(XattnWarning, match="left out: .*bad.png"):
        found = xattn.explain(model, folder, ["gradcam", "brnpa"])
    files = [folder / n for n in ("goldfish/1.png", "teapott/1.png", "Tiger_cat/1.png", "Tiger_cat/outdoors/1.png")]
    table = found[0].frame()
    order = [files.index(Path(image)) for image in table["image"]]
    for explanation, method in zip(found, ["gradcam", "brnpa"], strict=True):
        for i, k in enumerate(order):
            alone = xattn.explain(model, files[k], method)
            torch.testing.assert_close(explanation.maps[i : i + 1], alone.maps)
            assert explanation.frame()["predicted"][i] == models.CLASSES[predicted(files[k])]
    labels = {"goldfish": models.CLASSES[2], "Tiger_cat": models.CLASSES[1], "outdoors": models.CLASSES[1]}
    for row in table.to_dict("records"):
        label = labels.get(Path(row["image"]).parent.name)
        assert row["label"] == label if label else pandas.isna(row["label"])
        assert row["right"] == (row["predicted"] == label) if label else pandas.isna(row["right"])
        assert row["probability"] > 0
    assert found[0].overlay(0).size[0] >= 40  # from the file, for no input is kept


def test_each_image_of_a_folder_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(10):  # more than are explained together
        spotted(i).save(tmp_path / f"{i}.png")
    decoded: list[str] = []
    decode = reading._decode

    def counted(stream: Any, name: str, *arguments: Any) -> Any:
        decoded.append(Path(name).name)
        return decode(stream, name, *arguments)

    monkeypatch.setattr(reading, "_decode", counted)
    xattn.explain(models.cnn(), tmp_path, ["gradcam", "brnpa"])
    assert sorted(decoded) == [f"{i}.png" for i in range(10)]


def test_a_frame_survives_a_file_and_needs_no_photographs(folder: Path, tmp_path: Path) -> None:
    model = models.cnn()
    files = [folder / "goldfish" / "1.png", folder / "teapott" / "1.png"]
    found = xattn.explain(model, files, "gradcam")
    again = load_explanation(save_explanation(found, tmp_path / "a.npz"))
    mine, theirs = (e.frame().drop(columns="image") for e in (found, again))
    assert mine.equals(theirs)
    assert list(again.frame()["image"]) == [0, 1]
    x = torch.rand(2, 3, 32, 32)
    plain = xattn.explain(model, x, "gradcam").frame()
    assert plain["label"].isna().all()
    assert plain["right"].isna().all()


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, folder: Path) -> None:
    model: Any = models.cnn()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        xattn.explain(model, tmp_path / "empty", "gradcam")
    with pytest.raises(ParameterError, match="target: 2 do not fit the 5 images"):
        xattn.explain(model, folder, "gradcam", [0, 1])
    (folder / "goldfish" / "bad.png").unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        xattn.explain(models.dead(), folder, "gradcam")
    (told,) = [w for w in caught if issubclass(w.category, StatusWarning)]
    assert "4 all-zero of 4 maps (first: " in str(told.message)
    assert str(folder) in str(told.message)
