"""`xattn compare`: one page, whole, with everything that was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import images_zoo as zoo
from tests.cli import models
from tests.cli.conftest import Run, interrupt_after_one
from xattn.cli.choosing import choose_columns
from xattn.cli.compare import sheet, with_controls, write
from xattn.cli.work import Work
from xattn.data.preprocessing import preprocess
from xattn.explaining import explain
from xattn.file_loop import Settings
from xattn.metrics.deletion import Deletion
from xattn.models import create_model
from xattn.trace import record
from xattn.viz import percent

CNN = ("--model", "tests.cli.models:cnn")
QUICK = ("-m", "gradcam", "--no-curves", *CNN)


def scripts(path: str | Path) -> list[Any]:
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(m) for m in re.findall(r'<script type="application/json"[^>]*>(.*?)</script', text, re.DOTALL)]


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [found for found in scripts(path) if isinstance(found, dict) and "lines" in found]


def columns(path: str | Path) -> list[dict[str, Any]]:
    return next(found for found in scripts(path) if isinstance(found, list))


def summary(run: Run, *arguments: object) -> dict[str, Any]:
    result = run("compare", *arguments, "--json")
    assert result.exit_code in (0, 3), result.stderr
    return json.loads(result.stdout)


def test_one_method_on_finer_maps(run: Run, photo: Path) -> None:
    result = run("compare", photo, "-m", "gradcam@x2", "-m", "gradcam", "--steps", 2, *CNN)
    assert result.exit_code == 0, result.stderr
    names = [(c["title"], c["network"]) for c in columns("comparison.html")]
    assert names[:2] == [("Grad-CAM", "cnn x2"), ("Grad-CAM", "cnn")]
    assert {network for _, network in names[2:]} == {"cnn"}, "controls are of the network itself"
    first, second = (cell["map"] for cell in rows("comparison.html")[0]["lines"][0]["cells"][:2])
    assert (first["w"], first["h"]) == (2 * second["w"], 2 * second["h"])


def test_one_page_and_nothing_else(run: Run, photo: Path, good: dict[str, Path], tmp_path: Path) -> None:
    result = run("compare", photo, good["alpha.png"], "-m", "gradcam", "-m", "brnpa", "--steps", 3, *CNN)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.fullmatch(r"wrote comparison\.html \(0\.\d MB\): open it in a browser\n", result.stdout)
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.html"]
    titles = ["Grad-CAM", "BR-NPA", "Random", "Centre", "Edges", "Pooled gradient"]
    assert [c["title"] for c in columns("comparison.html")] == titles
    assert [r["file"] for r in rows("comparison.html")] == ["cat.png", "alpha.png"]
    text = Path("comparison.html").read_text(encoding="utf-8")
    assert "<h1>What cnn looks at</h1>" in text
    for fact in ("2 images", "2 methods", "4 controls", "the predicted class explained"):
        assert f"<span>{fact}</span>" in text


def test_curves_are_those_of_the_benchmark(run: Run, photo: Path) -> None:
    run("compare", photo, "-m", "saliency", "--steps", 5, "--no-controls", "-o", "a.html", *CNN)
    (cell,) = rows("a.html")[0]["lines"][0]["cells"]
    model = models.cnn()
    explanation = explain(model, str(photo), "saliency")
    x = preprocess(str(photo), model.spec)[None]
    trace = record(model, x, spec=model.spec, grad=False)
    value = Deletion(steps=5).measure(explanation, trace, None)["deletion"]
    assert cell["curves"]["deletion_area"] == pytest.approx(float(value[0]), abs=1e-3)
    assert len(cell["curves"]["insertion"]) == 6
    settings = next(found for found in scripts("a.html") if isinstance(found, dict) and "shares" in found)
    assert settings["shares"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_without_curves_the_model_runs_once(run: Run, photo: Path) -> None:
    run("compare", photo, "-o", "a.html", *QUICK)
    assert all("curves" not in cell for cell in rows("a.html")[0]["lines"][0]["cells"])


def test_summary(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-m", "brnpa:parts=2", "-o", "deep/er/a.html", *CNN)
    assert found["page"] == "deep/er/a.html"
    assert Path("deep/er/a.html").is_file()
    assert found["status"] == 0
    assert "panels" not in found
    (image,) = found["images"]
    assert [m["method"] for m in image["maps"]] == ["brnpa", "random", "center", "edges"]
    assert len(image["maps"][0]["parts"]) == 2


def test_controls_stand_at_the_end_and_once(run: Run, photo: Path) -> None:
    assert with_controls(["random:grid=4", "gradcam"]) == [
        "random:grid=4",
        "gradcam",
        "center",
        "edges",
        "pooled-gradient",
    ]
    assert with_controls(["brnpa"]) == ["brnpa", "random", "center", "edges"]  # it reads no gradient
    run("compare", photo, "-m", "random:grid=4", "-m", "gradcam", "--no-curves", "-o", "a.html", *CNN)
    assert [c["title"] for c in columns("a.html")] == [
        "Grad-CAM",
        "Random (grid=4)",
        "Centre",
        "Edges",
        "Pooled gradient",
    ]
    run("compare", photo, "--no-controls", "-o", "b.html", *QUICK)
    assert [c["title"] for c in columns("b.html")] == ["Grad-CAM"]


def test_two_targets_side_by_side(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-t", "teapot", "-t", "goldfish", "-t", "4", "-o", "a.html", *QUICK)
    explained = [m["target"]["class"] for m in found["images"][0]["maps"] if m["method"] == "gradcam"]
    assert explained == ["teapot", "goldfish, Carassius auratus"]
    lines = rows("a.html")[0]["lines"]
    assert [line["class"] for line in lines] == explained
    assert lines[0]["cells"][0] != lines[1]["cells"][0]
    assert [cell["note"] for cell in lines[1]["cells"][1:4]] == ["the same for every class"] * 3


def test_a_target_and_the_most_probable(run: Run, photo: Path) -> None:
    model = models.cnn()
    logits = record(model, preprocess(str(photo), model.spec)[None], spec=model.spec, grad=False).logits[0]
    order = [k for k in logits.argsort(descending=True).tolist() if k not in (4, 0)]
    found = summary(run, photo, "-t", "teapot", "-t", 0, "--topk", 3, "-o", "a.html", *QUICK)
    targets = [m["target"]["index"] for m in found["images"][0]["maps"] if m["method"] == "gradcam"]
    assert targets == [4, 0, order[0]]
    assert "teapot and 0, then the most probable classes explained" in Path("a.html").read_text(encoding="utf-8")


def test_a_method_that_does_not_fit(run: Run, photo: Path) -> None:
    result = run("compare", photo, "-m", "bcnn", "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    assert "bcnn: the model has no B-CNN head" in result.stderr


def test_a_method_that_refuses_on_the_way_has_no_column(run: Run, photo: Path) -> None:
    work = Work(Settings(batch_size=2, tolerant=True), err=False)
    texts = ["gradcam", "brnpa"]
    work.columns = choose_columns(
        texts, parts=None, models=[CNN[1]], weights=(), head=None, resolution=None, device="cpu", given={}
    )
    work.columns[0].refused = "gradcam: not today"
    comparison = sheet(work, None, "plasma", None, 0)
    for result, _ in work.results([photo]):
        comparison.add("a.png", result.view, result.lines)
    write(work, comparison, Path("a.html"))
    assert [c["title"] for c in columns("a.html")] == ["BR-NPA"]
    assert "<p>Left out: gradcam: not today</p>" in Path("a.html").read_text(encoding="utf-8")


def test_bad_images_are_told_on_the_page(run: Run, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    zoo.rgb().save(folder / "<img src=x onerror=alert(1)>.png")
    (folder / "b.jpg").write_text("no image")
    result = run("compare", folder, "-o", "a.html", *QUICK)
    assert result.exit_code == 3
    assert "b.jpg" in result.stderr
    text = Path("a.html").read_text(encoding="utf-8")
    assert re.search(r"<p>\S*b\.jpg: ", text)
    assert "<img src=x" not in text
    assert [r["file"] for r in rows("a.html")] == ["<img src=x onerror=alert(1)>.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "folder"], "--out folder: expected the name of a file that ends in .html"),
        (["--out", "page.png"], "--out page.png: expected the name of a file that ends in .html"),
        (["--out", "file/page.html"], "--out file/page.html: file cannot be made a folder"),
        (["--steps", "0"], "--steps must be at least 1 but is 0"),
        (["--topk", "0"], "--topk must be at least 1 but is 0"),
        (["--alpha", "2"], "--alpha must lie between 0 and 1 but is 2"),
        (["--target", "goldfisch"], "unknown class 'goldfisch'. Did you mean 'goldfish'"),
        (["--target", "0", "--target", "goldfisch"], "unknown class 'goldfisch'. Did you mean 'goldfish'"),
        (["--target", "0", "--target", "9"], "class 9 does not exist; the model has classes 0 to 4"),
        (["--colormap", "plasm"], "unknown colour map 'plasm'. Did you mean 'plasma'"),
    ],
)
def test_bad_input_is_one_line_and_no_page(
    run: Run, photo: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    result = run("compare", photo, *QUICK, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_no_image_no_page(run: Run, tmp_path: Path) -> None:
    result = run("compare", "nowhere.jpg", *QUICK)
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        zoo.rgb().save(tmp_path / name)
    interrupt_after_one(monkeypatch)
    result = run("compare", "a.png", "b.png", "--batch-size", 1, *QUICK)
    assert result.exit_code == 130
    assert "stopped after 1 of 2 images; nothing was written." in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_random_weights_are_told_on_the_page(run: Run, photo: Path) -> None:
    run("compare", photo, "-m", "gradcam", "--no-curves", "--model", "tiny-cnn", "--head", "linear", "-o", "a.html")
    text = Path("a.html").read_text(encoding="utf-8")
    assert '<p class="warning">tiny-cnn has random weights, so its maps mean nothing.</p>' in text


def test_a_random_head_on_trained_layers_is_told(run: Run, photo: Path) -> None:
    result = run("compare", photo, "-m", "bcnn", "--no-curves", *CNN, "--head", "bcnn", "-o", "a.html")
    assert result.exit_code == 0, result.stderr
    assert "cnn has a random head" in result.stderr
    assert "has random weights in its head, so its maps mean nothing." in Path("a.html").read_text(encoding="utf-8")


def test_one_network_for_all_methods_where_one_fits(run: Run, photo: Path) -> None:
    run("compare", photo, "-m", "bcnn", "-m", "gradcam", "--no-curves", "--title", "Mine", "-o", "a.html")
    assert {c["network"] for c in columns("a.html")} == {""}
    assert "<h1>Mine</h1>" in Path("a.html").read_text(encoding="utf-8")
    cell = rows("a.html")[0]["lines"][0]["cells"][0]
    assert len(cell["parts"]["maps"]) == 3


def test_several_networks_have_columns_of_their_own(run: Run, photo: Path) -> None:
    run("compare", photo, "-m", "gradcam", "--model", "tiny-brnpa", "--model", "tiny-cnn", *CNN, "--no-curves",
        "--no-controls", "-o", "a.html")  # fmt: skip
    assert [c["network"] for c in columns("a.html")] == ["tiny-brnpa", "tiny-cnn", "cnn"]
    block = rows("a.html")[0]
    line = block["lines"][0]
    model = create_model("tiny-cnn")
    given = explain(model, str(photo), "gradcam", model.spec.class_index(line["class"])).probability
    assert given is not None
    same, other = line["cells"][1:]  # the first two know the same classes and explain the same one
    assert same["probability"] == percent(float(given[0])) != line["probability"]
    assert "class" not in same
    assert "photo" not in same
    assert other["class"] in models.CLASSES
    assert block["photos"][other["photo"]].startswith("data:")  # it sees another part of the photograph


def test_batches_do_not_matter(run: Run, good: dict[str, Path]) -> None:
    some = [good[name] for name in sorted(good)[:5]]
    run("compare", *some, "-m", "gradcam", "--steps", 3, "--batch-size", 1, "-o", "a.html", *CNN)
    run("compare", *some, "-m", "gradcam", "--steps", 3, "--batch-size", 4, "-o", "b.html", *CNN)
    for one, other in zip(rows("a.html"), rows("b.html"), strict=True):
        assert one["file"] == other["file"]
        for left, right in zip(one["lines"][0]["cells"], other["lines"][0]["cells"], strict=True):
            assert left.keys() == right.keys()
            for kind in ("deletion", "insertion"):
                if kind in left.get("curves", {}):
                    assert torch.tensor(left["curves"][kind]).sub(torch.tensor(right["curves"][kind])).abs().max() <= 1
