"""`xattn explain`: pictures, maps, summary, exit status."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import images_zoo as zoo
from tests.cli import models
from tests.cli.conftest import Run, interrupt_after_one, processor_seconds
from xattn.cli.choosing import chosen_methods
from xattn.cli.panel_pages import fold
from xattn.data.preprocessing import preprocess, view_of
from xattn.explaining import explain
from xattn.file_loop import wanted_classes
from xattn.labels import file_stems
from xattn.storage import load_explanation
from xattn.trace import record
from xattn.viz import Cell

CNN = ("--model", "tests.cli.models:cnn")


def summary(run: Run, *arguments: object) -> dict[str, Any]:
    result = run("explain", *arguments, "--json")
    assert result.exit_code in (0, 3), result.stderr
    return json.loads(result.stdout)


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_one_method_gives_one_picture_and_says_so(run: Run, photo: Path, tmp_path: Path) -> None:
    result = run("explain", photo, "-m", "gradcam", *CNN)
    assert result.exit_code == 0
    assert [p.name for p in (tmp_path / "xattn-out").iterdir()] == ["cat.gradcam.png"]
    assert "wrote xattn-out/cat.gradcam.png" in result.stdout
    assert "goldfish, Carassius auratus" in result.stdout or "cat" in result.stdout
    assert result.stderr == ""
    picture = opened(tmp_path / "xattn-out" / "cat.gradcam.png")
    assert min(picture.size) >= 448
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_summary_agrees_with_the_library(run: Run, photo: Path) -> None:
    model = models.cnn()
    expected = explain(model, str(photo), "gradcam")
    found = summary(run, photo, "-m", "gradcam", "--save-maps", *CNN)
    assert found["status"] == 0
    assert found["failed"] == found["left_out"] == found["panels"] == []
    (image,) = found["images"]
    (item,) = image["maps"]
    predicted = image["predicted"]["cnn"]
    assert image["file"] == str(photo)
    assert predicted["index"] == item["target"]["index"] == int(expected.target[0])
    assert predicted["class"] == models.CLASSES[predicted["index"]]
    assert predicted["probability"] == pytest.approx(float(expected.probability[0]), abs=1e-6)
    assert item["method"] == "gradcam"
    assert item["parameters"]["layer"] is None
    assert item["status"] == "ok"
    assert item["parts"] == []
    assert item["seconds"] >= 0
    assert set(image["pass_seconds"]) == {"cnn"}
    assert Path(item["picture"]).is_file()
    stored = load_explanation(item["maps"])
    torch.testing.assert_close(stored.maps, expected.maps)
    assert stored.method == expected.method
    assert stored.spec == expected.spec


def test_several_methods_give_a_panel(run: Run, photo: Path, good: dict[str, Path]) -> None:
    found = summary(run, photo, good["alpha.png"], "-m", "gradcam", "-m", "brnpa", "-m", "Saliency", *CNN, "-o", "out")
    assert found["panels"] == ["out/panel.png"]
    panel = opened("out/panel.png")
    assert panel.width > panel.height  # four columns, two rows
    assert {p.name for p in Path("out").iterdir()} == {"panel.png"} | {
        f"{stem}.{method}.png" for stem in ("cat", "alpha") for method in ("gradcam", "brnpa", "saliency")
    }


def test_many_rows_go_to_pages(run: Run, good: dict[str, Path]) -> None:
    found = summary(run, *list(good.values())[:12], "-m", "gradcam", "-m", "center", *CNN)
    assert [Path(p).name for p in found["panels"]] == ["panel-01.png", "panel-02.png"]
    assert all(Path(p).is_file() for p in found["panels"])


def test_many_methods_of_one_image_are_folded(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-m", "all", *CNN)
    panel = opened(found["panels"][0])
    assert 0.5 < panel.width / panel.height < 2
    cells = [Cell(note=str(i)) for i in range(7)]
    rows = fold(cells, ["Image", *(f"m{i}" for i in range(1, 7))], 3)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [cell.caption for row in rows for cell in row] == ["", "m1", "m2", "m3", "m4", "m5", "m6", "", ""]
    assert [cell.note for row in rows for cell in row][:7] == [str(i) for i in range(7)]


def test_all_lists_what_does_not_fit_in_one_line_each(run: Run, photo: Path) -> None:
    result = run("explain", photo, "-m", "all", *CNN)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("left out: ")]
    told = {line.split(": ")[1] for line in lines}
    assert {"bcnn", "part-cam", "agcam", "rollout"} <= told
    assert told.isdisjoint({"gradcam", "lrp", "rise"})
    assert len(list(Path("xattn-out").glob("cat.*.png"))) >= 15


def test_all_finds_out_on_the_way_what_does_not_fit(run: Run, photo: Path) -> None:
    found = summary(run, photo, "-m", "all", "--model", "tests.cli.models:gelu")
    left_out = {item["method"]: item["reason"] for item in found["left_out"]}
    assert "ReLU" in left_out["guided-backprop"]
    assert "gradcam" not in left_out
    assert {item["method"] for item in found["images"][0]["maps"]}.isdisjoint(left_out)


@pytest.mark.parametrize("name", ["gradcam++", "grad-cam++", "GradCAMpp", "Grad_CAM++"])
def test_names_are_forgiving(run: Run, photo: Path, name: str) -> None:
    assert summary(run, photo, "-m", name, *CNN)["images"][0]["maps"][0]["method"] == "gradcam++"


def test_parts_ranks_and_colors(run: Run, photo: Path) -> None:
    result = run("explain", photo, "--parts", 4, *CNN)
    assert "1 red" in result.stdout
    assert "4 yellow" in result.stdout
    item = summary(run, photo, "--parts", 4, *CNN)["images"][0]["maps"][0]
    assert item["parameters"]["parts"] == 4
    assert [p["color"] for p in item["parts"]] == ["red", "green", "blue", "yellow"]
    assert [p["rank"] for p in item["parts"]] == [1, 2, 3, 4]
    assert sum(p["share"] for p in item["parts"]) == pytest.approx(1)


def test_a_trained_head_keeps_its_own_parts(run: Run, photo: Path) -> None:
    item = summary(run, photo, "--model", "tests.cli.models:brnpa")["images"][0]["maps"][0]
    assert len(item["parts"]) == 2


@pytest.mark.parametrize("target", ["2", "goldfish", "Carassius auratus", "GOLDFISH, carassius auratus"])
def test_target_by_index_or_name(run: Run, photo: Path, target: str) -> None:
    item = summary(run, photo, "-m", "gradcam", "--target", target, *CNN)["images"][0]["maps"][0]
    assert (item["target"]["index"], item["target"]["class"]) == (2, models.CLASSES[2])


def test_the_explained_class_is_told_if_it_is_another(run: Run, photo: Path) -> None:
    index = summary(run, photo, "-m", "gradcam", *CNN)["images"][0]["maps"][0]["target"]["index"]
    other = (index + 1) % len(models.CLASSES)
    assert f"explained as {models.CLASSES[other]}" in run("explain", photo, "-m", "gradcam", "-t", other, *CNN).stdout


def test_topk_explains_the_most_probable_classes(run: Run, photo: Path) -> None:
    model = models.cnn()
    logits = record(model, preprocess(str(photo), model.spec)[None], spec=model.spec, grad=False).logits[0]
    expected = logits.argsort(descending=True)[:3].tolist()
    found = summary(run, photo, "-m", "gradcam", "-m", "activation", "--topk", 3, *CNN)
    items = found["images"][0]["maps"]
    assert [i["target"]["index"] for i in items if i["method"] == "gradcam"] == expected
    assert [i["method"] for i in items].count("activation") == 1  # it is the same for every class
    assert len({i["picture"] for i in items}) == 4
    assert len(found["panels"]) == 1


def test_topk_with_a_target_puts_it_first(run: Run, photo: Path) -> None:
    items = summary(run, photo, "-m", "gradcam", "--topk", 9, "-t", "teapot", *CNN)["images"][0]["maps"]
    order = [i["target"]["index"] for i in items]
    assert order[0] == 4
    assert sorted(order) == [0, 1, 2, 3, 4]


def test_wanted_classes_of_a_binary_model() -> None:
    model = models.seeded(models.TinyCNN, torch.nn.ReLU, 1, classes=("no", "yes"))
    trace = record(model, torch.randn(4, 3, 32, 32), spec=model.spec, grad=False)
    wanted = wanted_classes(trace, 3)
    assert wanted.shape == (4, 2)
    assert torch.equal(wanted.sum(dim=1), torch.ones(4, dtype=torch.int64))


def test_folder_with_bad_images(run: Run, bad: dict[str, Path], photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    zoo.rgb().save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"")
    (folder / "c.jpg").write_text("no image")
    result = run("explain", folder, "-m", "gradcam", *CNN)
    assert result.exit_code == 3
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        str(folder / "b.jpg"),
        str(folder / "c.jpg"),
    ]
    assert (tmp_path / "xattn-out" / "a.gradcam.png").is_file()
    found = summary(run, folder, "-m", "gradcam", *CNN)
    assert [(Path(f["file"]).name, bool(f["reason"])) for f in found["failed"]] == [("b.jpg", True), ("c.jpg", True)]
    assert found["status"] == 3


def test_all_odd_images_are_explained(run: Run, good: dict[str, Path]) -> None:
    found = summary(run, *good.values(), "-m", "gradcam", *CNN)
    assert found["status"] == 0
    assert [i["file"] for i in found["images"]] == [str(p) for p in good.values()]
    names = [i["name"] for i in found["images"]]
    assert len(set(names)) == len(names)  # animated.gif, animated.png and animated.webp do not overwrite each other


def test_batches_change_nothing(run: Run, good: dict[str, Path]) -> None:
    files = list(good.values())[:5]
    one = summary(run, *files, "-m", "random", "-m", "gradcam", "--save-maps", "--batch-size", 1, "-o", "one", *CNN)
    summary(run, *files, "-m", "random", "-m", "gradcam", "--save-maps", "--batch-size", 5, "-o", "five", *CNN)
    for image in one["images"]:
        for item in image["maps"]:
            maps = Path(item["maps"])
            other = load_explanation(Path("five") / maps.name).maps
            torch.testing.assert_close(load_explanation(maps).maps, other, rtol=1e-4, atol=1e-6)


def test_same_image_given_twice_is_used_once(run: Run, photo: Path) -> None:
    result = run("explain", photo, photo, "-m", "gradcam", *CNN)
    assert result.exit_code == 0
    assert "was given before" in result.stderr
    assert len(list(Path("xattn-out").iterdir())) == 1


def test_files_of_one_name_do_not_overwrite_each_other(run: Run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        zoo.rgb().save(tmp_path / folder / "x.png")
    run("explain", "a", "b", "-m", "gradcam", *CNN)
    assert {p.name for p in Path("xattn-out").iterdir()} == {"x.gradcam.png", "x-2.gradcam.png", "index.csv"}


def test_glob(run: Run, tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b.png"):
        zoo.rgb().save(tmp_path / name)
    found = summary(run, "a*.png", "-m", "gradcam", *CNN)
    assert [Path(i["file"]).name for i in found["images"]] == ["a1.png", "a2.png"]


def test_nothing_half_written_stays(run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image, path: Path, *args: object, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", broken)
    result = run("explain", photo, "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    assert "cat.gradcam.png: cannot be written (No space left on device)" in result.stderr
    assert list(Path("xattn-out").iterdir()) == []


@pytest.mark.parametrize("fit", ["crop", "squash", "whole"])
def test_fit(run: Run, photo: Path, fit: str) -> None:
    assert summary(run, photo, "-m", "gradcam", "--fit", fit, *CNN)["status"] == 0


def test_the_view_shows_what_the_model_sees() -> None:
    model = models.cnn()
    image = zoo.rgb()
    view = view_of(image, model.spec)
    assert view.size == (448, 448)
    seen = preprocess(image, model.spec) * 0.25 + 0.5
    shown = torch.from_numpy(np.array(view.resize((32, 32), Image.Resampling.BOX))).permute(2, 0, 1) / 255
    assert (seen - shown).abs().mean() < 0.02


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision(run: Run, photo: Path, precision: str) -> None:
    item = summary(run, photo, "-m", "gradcam", "--precision", precision, *CNN)["images"][0]["maps"][0]
    assert item["status"] == "ok"


def test_scores_differ(run: Run, photo: Path) -> None:
    maps = []
    for score in ("logit", "prob"):
        item = summary(run, photo, "-m", "input-x-gradient", "--score", score, "--save-maps", *CNN)["images"][0][
            "maps"
        ][0]
        maps.append(load_explanation(item["maps"]).maps)
    assert not torch.allclose(maps[0], maps[1])


def test_status_of_a_useless_map_is_told(run: Run, photo: Path) -> None:
    result = run("explain", photo, "-m", "gradcam", "--model", "tests.cli.models:nan")
    assert result.exit_code == 0
    assert "gradcam: not to be read as an explanation, nan: a value is NaN or infinite; look at" in result.stdout
    dead = run("explain", photo, "-m", "gradcam", "--model", "tests.cli.models:dead")
    assert "explanation, all-zero: no cell has any importance" in dead.stdout
    assert "try another class, or hirescam" in dead.stdout
    both = run("explain", photo, "-m", "gradcam", "-m", "gradcam++", "--model", "tests.cli.models:dead")
    assert both.stdout.count("an explanation, all-zero") == 2
    assert both.stdout.count("no cell has any importance") == 1  # what a word means is said once


@pytest.mark.parametrize("command", ["explain", "doctor"])
def test_json_holds_no_nan(run: Run, photo: Path, command: str) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    result = run(command, photo, "--model", "tests.cli.models:nan", "--json")
    found = json.loads(result.stdout, parse_constant=refuse)
    if command == "explain":
        assert found["images"][0]["predicted"]["nan"]["probability"] is None
        assert found["images"][0]["maps"][0]["status"] == "nan"


def test_weights_from_a_file_change_the_answer(run: Run, photo: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = models.cnn()
    with torch.no_grad():
        other.classifier.bias.copy_(torch.tensor([0.0, 0, 0, 50, 0]))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save(other.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        found = summary(run, photo, "-m", "gradcam", *CNN, "--weights", file)
        assert found["images"][0]["predicted"]["cnn"]["class"] == "daisy"


def test_unknown_normalization_is_told(run: Run, photo: Path) -> None:
    result = run("explain", photo, "-m", "gradcam", "--model", "tests.cli.models:unknown")
    assert result.exit_code == 0
    assert "does not say how its images are normalized" in result.stderr


def test_two_layers_of_one_method_have_two_names() -> None:
    methods = chosen_methods(["gradcam", "gradcam:layer=features.3", "gradcam", "brnpa"], 4)
    assert file_stems(methods) == ["gradcam", "gradcam-layer-features.3", "brnpa"]
    assert methods[2].parts == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu(run: Run, photo: Path) -> None:
    maps = {}
    for device in ("cpu", "cuda"):
        items = summary(run, photo, "-m", "all", "--save-maps", "--device", device, "-o", device, *CNN)["images"][0][
            "maps"
        ]
        maps[device] = {item["method"]: load_explanation(item["maps"]).maps for item in items}
    for method, expected in maps["cpu"].items():
        torch.testing.assert_close(maps["cuda"][method], expected, rtol=1e-2, atol=1e-3)


_LITE0 = (
    "import timm, torch, torchvision; model = timm.create_model('tf_efficientnet_lite0').eval(); "
    "model(torch.zeros(1, 3, 224, 224)).sum().backward()"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "seconds", "bare"),
    [("tiny-cnn", 5, "import torch, torchvision"), ("efficientnet_lite0", 7, _LITE0)],  # timm takes two
)
def test_from_cold_start_to_picture_in_some_seconds(
    photo: Path, tmp_path: Path, network: str, seconds: int, bare: str
) -> None:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(tmp_path),
    }
    explain = [sys.executable, "-m", "xattn", "explain", str(photo), "-o", str(tmp_path / "out"), "--model", network]
    least, libraries = (
        min(processor_seconds(one, environment) for _ in range(2))  # the first run compiles the modules
        for one in (explain, [sys.executable, "-c", bare])
    )
    assert (tmp_path / "out" / "cat.gradcam.png").is_file()
    # Of one processor, whatever else the machine is doing; where it takes long for the network alone, so does this.
    assert least < max(seconds, 1.3 * libraries)


def test_an_interrupt_says_what_is_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png", "c.png"):
        zoo.rgb().save(tmp_path / name)
    interrupt_after_one(monkeypatch)
    result = run("explain", "a.png", "b.png", "c.png", "-m", "gradcam", "--batch-size", "1", *CNN)
    assert result.exit_code == 130
    assert "xattn: stopped after 1 of 3 images; wrote xattn-out/a.gradcam.png." in result.stderr
    assert [p.name for p in (tmp_path / "xattn-out").iterdir()] == ["a.gradcam.png"]


def test_an_interrupt_before_the_first_map_of_a_folder_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    zoo.rgb().save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "bad.png").write_text("no image")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xattn.cli.explain.Pictures.add", interrupt)
    result = run("explain", "photos", "-m", "gradcam", *CNN)
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert list((tmp_path / "xattn-out").iterdir()) == []


def test_names_that_look_alike_get_a_picture_each(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    names = ["x.png", "x.jpg", "X.png", "x-2.png", "a b.png", "a_b.png", "a\nb.png", "e\u0301.png", "\u00e9.png"]
    for i, name in enumerate(names):
        (folder / str(i)).mkdir(parents=True)
        zoo.rgb().save(folder / str(i) / name, "PNG")
    found = summary(run, folder, "-m", "gradcam", "--save-maps", *CNN)
    pictures = [m["picture"] for image in found["images"] for m in image["maps"]]
    maps = [m["maps"] for image in found["images"] for m in image["maps"]]
    for written in (pictures, maps):
        alike = {unicodedata.normalize("NFC", p).casefold() for p in written}
        assert len(alike) == len(names)
        assert all(Path(p).is_file() for p in written)
    assert len({image["name"] for image in found["images"]}) == len(names)


@pytest.mark.parametrize(
    "name", ["x" * 251, "\u00e9" * 125, "a\x1b]0;owned\x07", "caf\udce9", "new\nline\r"], ids=ascii
)
def test_names_of_any_kind(run: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    with (folder / f"{name}.png").open("wb") as file:
        zoo.rgb().save(file, "PNG")
    result = run("explain", folder, "-m", "gradcam", "-m", "center", "--topk", 2, *CNN)
    assert result.exit_code == 0
    assert not {"\x1b", "\x07", "\r"} & set(result.stdout + result.stderr)
    written = sorted(p.name for p in (tmp_path / "xattn-out").iterdir())
    assert len(written) == 5  # two classes, one map that is the same for both, a panel, the index
    assert all(re.fullmatch(r"[\w.+-]+", n) and len(n.encode()) < 210 for n in written)
    page = run("compare", folder, "-m", "gradcam", "--no-curves", "-o", "page.html", *CNN)
    assert page.exit_code == 0
    assert Path("page.html").read_bytes().decode("utf-8").count('class="file"') == 1


@pytest.mark.parametrize("command", ["explain", "compare"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topk", "1000000000"], "--topk must be at most 100 but is 1000000000."),
        (["--parts", "99999999999999999999"], "--parts must be at most 1000 but is 99999999999999999999."),
        (["--batch-size", "1000000000"], "--batch-size must be at most 4096 but is 1000000000."),
        (["--target=\u00b2"], "unknown class '\u00b2'."),
        (["--target=--5"], "unknown class '--5'."),
        (["--target=99999999999999999999"], "class 99999999999999999999 does not exist"),
        (["--target", "x" * 5000], "unknown class 'xxxxx"),
        (["--alpha", "nan"], "--alpha must lie between 0 and 1 but is nan"),
    ],
)
def test_what_takes_too_much_is_one_line(
    run: Run, photo: Path, command: str, arguments: list[str], message: str
) -> None:
    result = run(command, photo, *CNN, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert len(line) < 1000
