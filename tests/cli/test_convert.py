"""`xattn convert`: what it says, the file that it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import xattn
from tests.cli import models
from tests.cli.conftest import Run
from xattn.data.preprocessing import to_batch
from xattn.errors import NotApplicableError
from xattn.models import load_model, save_weights
from xattn.training.evaluation import load_trained

CNN = "tests.cli.models:cnn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs of noise, two of them in a folder called like a class."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        name = tmp_path / "photos" / ("daisy" if i < 2 else "") / f"{i}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(name)
    return tmp_path / "photos"


@pytest.mark.parametrize("resolution", ["low", "high"])
def test_converts_measures_and_writes_a_file_that_loads(run: Run, folder: Path, resolution: str) -> None:
    result = run(
        "convert", CNN, "--parts", 2, "--resolution", resolution, "--data", folder, "--data", folder / "daisy",
        "--out", "net.safetensors", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    model = models.cnn()
    files = sorted(folder.glob("*.png")) + sorted(folder.glob("daisy/*.png"))
    x = to_batch([str(file) for file in files], model.spec)
    made = xattn.convert(model, parts=2, resolution=resolution)
    same = int((made(x).argmax(1) == model(x).argmax(1)).sum())
    assert found["agreement"]["images"] == 5
    assert found["agreement"]["same"] == same
    assert found["agreement"]["labelled"] == 2
    assert found["agreement"]["right_before"] == int((model(x[3:]).argmax(1) == 3).sum())
    assert found["grid"] == ([8, 8] if resolution == "low" else [32, 32])
    back = load_model(Path("net.safetensors"), CNN)
    torch.testing.assert_close(back(x), made(x))
    assert f"agrees on {same} of 5 images" in result.stderr
    shown = run("explain", files[0], "--model", CNN, "--weights", "net.safetensors", "-m", "brnpa", "--json")
    assert json.loads(shown.stdout)["images"][0]["maps"][0]["parts"]


def test_a_table_of_labels_and_statistics_taken_anew(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n2.png,bear cat\n3.png,0\n")
    result = run(
        "convert", "tiny-cnn", "--resolution", "x2", "--data", folder, "--labels", "labels.csv", "--recalibrate",
        folder / "daisy", "--out", "net.safetensors", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["agreement"]["labelled"] == 2
    assert found["recalibrated_on"] == 2
    assert "batch norm took its statistics from 2 images" in result.stderr


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("file,label\n2.png\n", "line 2 needs a file and a label"),
        ("file,label\n2.png,0\n,1\n", "line 3 needs a file and a label"),
        ("file,label\n2.png,5\n", "line 2: class 5 is none of 5, from 0"),
        ("file,label\n2.png,-1\n", "line 2: class -1 is none of 5, from 0"),
    ],
)
def test_a_damaged_table_of_labels_names_the_line(run: Run, folder: Path, table: str, why: str) -> None:
    Path("labels.csv").write_text(table)
    result = run("convert", CNN, "--data", folder, "--labels", "labels.csv", "--out", "net.safetensors")
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_labels_of_other_images_are_told(run: Run, folder: Path) -> None:
    Path("labels.csv").write_text("file,label\nother.png,0\n")
    result = run("convert", CNN, "--data", folder / "daisy", "--labels", "labels.csv", "--out", "net.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "none of its files is among the images" in result.stderr


def test_statistics_are_not_taken_anew_where_nothing_changes(run: Run, folder: Path) -> None:
    result = run("convert", CNN, "--recalibrate", folder, "--out", "net.safetensors")
    assert result.exit_code == 2
    assert "no batch norm lies behind a layer with dilation" in result.stderr
    assert not Path("net.safetensors").exists()


def test_a_network_whose_layers_cannot_skip_cells_is_converted_and_read_again(run: Run, folder: Path) -> None:
    name = "tests.models.test_shifting:Ladder"
    made = run(
        "convert", name, "--size", 32, "--resolution", "x2", "--data", folder, "--out", "net.safetensors", "--json"
    )
    assert made.exit_code == 0, made.stderr
    assert "so it runs on 4 shifted copies of each image" in " ".join(made.stderr.split())
    found = json.loads(made.stdout)
    assert (found["shifts"], found["grid"], found["weighting"]) == (True, [16, 16], "coverage")
    shown = run("explain", folder, "--model", name, "--weights", "net.safetensors", "-m", "brnpa", "--json")
    assert shown.exit_code == 0, shown.stderr
    finer = run("explain", folder, "--model", name, "--size", 32, "--resolution", "x2", "-m", "gradcam", "--json")
    assert finer.exit_code == 0, finer.stderr
    assert "4 passes of Ladder each" in " ".join(finer.stderr.split())
    assert all("original" in v for i in json.loads(finer.stdout)["images"] for v in i["predicted"].values())


def test_another_network_learns_in_a_folder_of_its_own(run: Run, folder: Path) -> None:
    def learn(*arguments: object) -> int:
        more = ("--distil", folder, "--epochs", 1, "--batch-size", 2, "--out", "net.safetensors")
        result = run("convert", CNN, *arguments, *more)
        assert result.exit_code == 0, result.stderr
        return len(list(Path("net.distil").iterdir()))

    assert [learn(), learn(), learn("--parts", 2)] == [1, 1, 2]
    other = models.cnn()
    other.classifier.bias.data += 1
    save_weights(other, "other.safetensors")
    assert learn("--weights", "other.safetensors") == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["tests.cli.models:flat"], "Flat has no layer with a spatial output"),
        ([CNN, "--head", "bcnn"], "--head bcnn has attention of its own, which must be trained: pass --distil DIR"),
        ([CNN, "--head", "linear"], "head linear is none that a trained classifier can be shared by; choose brnpa"),
        ([CNN, "--resolution", "x8"], "do not make a map that is 8 times finer"),
        ([CNN, "--resolution", "medium"], "resolution must be one of low, x2, x4, x8, high"),
        ([CNN, "--labels", "l.csv"], "--labels needs --data"),
        ([CNN, "--data", "nowhere"], "does not exist"),
        (["tiny-brnpa"], "it pools by attention already (brnpa)"),
    ],
)
def test_what_cannot_be_converted_says_why(run: Run, arguments: list[str], why: str) -> None:
    result = run("convert", *arguments, "--out", "net.safetensors")
    assert result.exit_code == 2
    assert why in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not Path("net.safetensors").exists()


def test_the_file_must_be_called_safetensors(run: Run) -> None:
    result = run("convert", CNN, "--out", "net.pt")
    assert result.exit_code == 2
    assert "must end in .safetensors" in result.stderr


def test_a_fitted_classifier_is_nearer_to_the_network(run: Run, folder: Path) -> None:
    result = run(
        "convert", CNN, "--weighting", "equal", "--data", folder, "--fit", folder, "--ridge", 0.01,
        "--out", "net.safetensors", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["fitted_on"] == 5
    assert found["fitted"]["change"] < 0.5 * found["agreement"]["change"]
    assert "the classifier was fitted to what cnn says of 5 images" in result.stderr


def test_what_cannot_be_is_refused_before_anything_is_measured(run: Run, folder: Path) -> None:
    for network, option, why in (
        (CNN, ("--fit", folder, "--ridge", 0), "--ridge must be positive but is 0.0."),
        (CNN, ("--fit", folder, "--ridge", "nan"), "--ridge must be positive but is nan."),
        ("tests.cli.models:cells", ("--distil", folder), "--distil: the classifier of this network reads each cell"),
    ):
        result = run("convert", network, "--data", folder, *option, "--out", "net.safetensors")
        assert result.exit_code == 2
        assert why in result.stderr
        assert not result.stdout
        assert not Path("net.safetensors").exists()


def test_a_fit_that_would_not_help_is_left_out(run: Run, folder: Path) -> None:
    result = run("convert", CNN, "--fit", folder, "--out", "net.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    assert "the classifier stays as it is: no fit to 5 images brings it nearer to cnn" in result.stderr
    assert json.loads(result.stdout)["ridge"] is None


def test_a_network_that_reads_each_cell_is_fitted_and_neither_trained_nor_evaluated(run: Run, folder: Path) -> None:
    result = run("convert", "tests.cli.models:cells", "--fit", folder, "--out", "net.safetensors")
    assert result.exit_code == 0, result.stderr
    with pytest.raises(NotApplicableError, match=r"'net\.safetensors': the classifier of this network reads each cell"):
        load_trained("net.safetensors", "tests.cli.models:cells")
