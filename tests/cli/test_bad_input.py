"""What the command says of bad input: one line on stderr, never a traceback, and an exit status."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import images_zoo as zoo
from tests.cli import models
from tests.cli.conftest import Run
from xattn.models.checkpoint import save_weights

CNN = ("--model", "tests.cli.models:cnn")

WRONG: dict[str, tuple[list[str], str]] = {
    "missing path": (["nowhere.jpg"], "nowhere.jpg: does not exist"),
    "path near another": (["caat.png"], "caat.png: does not exist.*Did you mean.*cat.png"),
    "empty folder": (["empty"], "empty: holds no image"),
    "pattern without a match": (["*.tiff"], "no image matches this pattern"),
    "empty path": ([""], "is an empty path"),
    "no path": ([], "Missing argument 'PATHS'.*xattn explain --help"),
    "unknown method": (["cat.png", "-m", "gradkam"], "unknown method 'gradkam'. Did you mean 'gradcam'"),
    "unknown parameter": (
        ["cat.png", "-m", "gradcam:layr=x"],
        "parameter of method 'gradcam'.*'layr'.*Did you mean 'layer'",
    ),
    "parameter without value": (["cat.png", "-m", "brnpa:parts"], "expected parameter=value but got 'parts'"),
    "parameter of a wrong type": (["cat.png", "-m", "brnpa:parts=many"], "parts must be int but got 'many'"),
    "unknown layer": (["cat.png", "-m", "gradcam:layer=featres.0", *CNN], r"'featres.0'. Did you mean 'features.0'"),
    "unknown model": (["cat.png", "--model", "resnet51"], r"unknown model 'resnet51'. Did you mean 'resnet\d+'"),
    "unknown module": (["cat.png", "--model", "nowhere.nets:build"], "'nowhere.nets' cannot be imported"),
    "unknown factory": (
        ["cat.png", "--model", "tests.cli.models:cn"],
        "factory in tests.cli.models 'cn'. Did you mean 'cnn'",
    ),
    "factory that fails": (
        ["cat.png", "--model", "tests.cli.models:raising"],
        "tests.cli.models:raising raised ValueError .no such file: config.yaml.; --debug",
    ),
    "factory of no model": (
        ["cat.png", "--model", "tests.cli.models:number"],
        "returned int; expected a torch.nn.Module",
    ),
    "no spatial features": (
        ["cat.png", "-m", "gradcam", "--model", "tests.cli.models:flat"],
        "Flat has no layer with a spatial output.*ModelSpec.feature_layer",
    ),
    "model that cannot run": (
        ["cat.png", "-m", "gradcam", "--model", "tests.cli.models:failing"],
        r"failing failed on images of shape \(1, 3, 32, 32\) \(the forward pass is broken\)",
    ),
    "method that does not fit": (["cat.png", "-m", "bcnn", *CNN], "bcnn: the model has no B-CNN head"),
    "method that finds out": (
        ["cat.png", "-m", "guided-backprop", "--model", "tests.cli.models:gelu"],
        "ReLUs; TinyCNN has 0 ReLUs and 3 gelu",
    ),
    "unknown class": (["cat.png", "-t", "tigr cat", *CNN], "unknown class 'tigr cat'. Did you mean 'tiger cat'"),
    "class out of range": (["cat.png", "-t", "5", *CNN], "class 5 does not exist; the model has classes 0 to 4"),
    "negative class": (["cat.png", "--target=-1", *CNN], "class -1 does not exist"),
    "unknown score": (["cat.png", "--score", "logits", *CNN], "unknown score 'logits'. Did you mean 'logit'"),
    "unknown colour map": (["cat.png", "--colormap", "viridi", *CNN], "'viridi'.*Did you mean 'viridis'"),
    "unknown device": (["cat.png", "--device", "gpu", *CNN], "--device: expected auto, cpu, cuda or mps but got 'gpu'"),
    "unknown precision": (["cat.png", "--precision", "fp8", *CNN], "--precision must be fp32, bf16 or fp16"),
    "unknown fit": (["cat.png", "--fit", "stretch", *CNN], "--fit must be crop, squash or whole but is 'stretch'"),
    "unknown head": (["cat.png", "--model", "tests.cli.models:cnn", "--head", "brnp"], "unknown head 'brnp'.*'brnpa'"),
    "unknown resolution": ([*CNN, "cat.png", "--resolution", "medium"], "resolution must be one of"),
    "alpha out of range": (["cat.png", "--alpha", "2", *CNN], "--alpha must lie between 0 and 1 but is 2.0"),
    "alpha that is no number": (["cat.png", "--alpha", "half", *CNN], "'--alpha'.*xattn explain --help"),
    "no classes": (["cat.png", "--topk", "0", *CNN], "--topk must be at least 1 but is 0"),
    "no images at once": (["cat.png", "--batch-size", "0", *CNN], "--batch-size must be at least 1"),
    "no parts": (["cat.png", "--parts", "0", *CNN], "--parts must be at least 1"),
    "parts of a method without": (["cat.png", "-m", "gradcam", "--parts", "3", *CNN], "none of the methods has parts"),
    "weights without a model": (
        ["cat.png", "--weights", "x.safetensors"],
        "--weights needs --model.*--model x.safetensors",
    ),
    "head without a model": (["cat.png", "--head", "bcnn"], "--head needs --model"),
    "unknown option": (["cat.png", "--colourmap", "plasma"], "No such option: --colourmap.*xattn explain --help"),
    "missing weights": ([*CNN, "cat.png", "--weights", "no.safetensors"], "no weights at 'no.safetensors'"),
    "weights that are none": (
        [*CNN, "cat.png", "--weights", "text.safetensors"],
        "'text.safetensors' is no safetensors file",
    ),
    "model file that is none": (
        ["cat.png", "--model", "text.safetensors"],
        "'text.safetensors' is no safetensors file",
    ),
    "DEFAULT weights of one's own": (
        [*CNN, "cat.png", "--weights", "DEFAULT"],
        "weights must be a file but is 'DEFAULT'",
    ),
    "folder that is a file": (
        ["cat.png", "-o", "cat.png", "-m", "gradcam", *CNN],
        "--out cat.png: cannot be made a folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_give_one_line(run: Run, case: str, tmp_path: Path) -> None:
    arguments, message = WRONG[case]
    zoo.rgb().save(tmp_path / "cat.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("not weights")
    result = run("explain", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("xattn: ")
    assert re.search(message, lines[0]), lines[0]
    assert not list(tmp_path.glob("xattn-out/*"))


@pytest.mark.parametrize("name", zoo.BAD_IN_FOLDER)
def test_bad_image_alone(run: Run, bad: dict[str, Path], name: str) -> None:
    result = run("explain", bad[name], "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"xattn: {bad[name]}: ")
    assert re.search(zoo.BAD[name][1], line), line
    assert result.stdout == ""


def test_bad_images_in_a_folder_with_a_good_one(run: Run, bad: dict[str, Path], photo: Path) -> None:
    result = run("explain", next(iter(bad.values())).parent, photo, "-m", "gradcam", *CNN, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert {Path(f["file"]).name for f in summary["failed"]} == set(zoo.BAD_IN_FOLDER)
    assert [i["file"] for i in summary["images"]] == [str(photo)]
    errors = [line for line in result.stderr.splitlines() if line.startswith("xattn: ")]
    assert len(errors) == len(zoo.BAD_IN_FOLDER)


def test_json_is_printed_when_nothing_could_be_explained(run: Run, bad: dict[str, Path]) -> None:
    result = run("explain", bad["empty.jpg"], "-m", "gradcam", *CNN, "--json")
    assert result.exit_code == 2
    summary = json.loads(result.stdout)
    assert summary["images"] == []
    assert summary["status"] == 2


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_image(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    zoo.rgb().save(path)
    path.chmod(0)
    result = run("explain", path, "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    assert "permission denied" in result.stderr


def test_unreadable_image_whoever_asks(run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == photo.name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    result = run("explain", photo, "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    assert f"xattn: {photo}: permission denied; make the file" in result.stderr


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
@pytest.mark.parametrize("as_model", [False, True])
def test_code_in_a_checkpoint_is_refused_and_never_runs(
    run: Run, photo: Path, tmp_path: Path, how: str, as_model: bool
) -> None:
    mark, file = tmp_path / "ran", tmp_path / "evil.pt"
    content = {"state_dict": Trap(mark)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    arguments = ("--model", file) if as_model else (*CNN, "--weights", file)
    result = run("explain", photo, "-m", "gradcam", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "evil.pt' holds pickled objects, which could run code when loaded, and is refused" in line
    assert not mark.exists()


def test_tensors_without_a_model(run: Run, photo: Path, tmp_path: Path) -> None:
    torch.save(models.cnn().state_dict(), tmp_path / "w.pt")
    result = run("explain", photo, "--model", "w.pt")
    assert result.exit_code == 2
    assert (
        "does not say which network it belongs to; name the network and pass the file as its weights" in result.stderr
    )


def test_weights_that_do_not_fit(run: Run, photo: Path, tmp_path: Path) -> None:
    state = models.cnn().state_dict()
    state["extra.weight"] = torch.zeros(2)
    state["extra.bias"] = torch.zeros(2)
    del state["features.1.weight"]
    state["features.3.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save(state, tmp_path / "w.pt")
    result = run("explain", photo, "-m", "gradcam", *CNN, "--weights", "w.pt")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "'w.pt' does not fit TinyCNN" in line
    assert "1 missing (first 'features.1.weight')" in line
    assert "2 unexpected (first 'extra.weight')" in line
    assert "1 of another shape (first 'features.3.weight': (1, 2, 3, 3) instead of (8, 8, 3, 3))" in line


def test_truncated_weights(run: Run, photo: Path, tmp_path: Path) -> None:
    path = save_weights(models.cnn(), tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    result = run("explain", photo, "-m", "gradcam", *CNN, "--weights", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "w.safetensors" in result.stderr


def test_published_weights_without_a_network(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("torchvision")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = run("explain", photo, "-m", "gradcam", "--model", "squeezenet1_1", "--weights", "DEFAULT")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "weights DEFAULT of squeezenet1_1 cannot be downloaded (Network is unreachable)" in line


def test_absent_accelerator(run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("explain", photo, "--device", "cuda", *CNN)
    assert result.exit_code == 2
    assert "--device cuda: this machine has none; usable are auto, cpu" in result.stderr


def test_out_of_memory(run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, x: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models.TinyCNN, "forward", full)
    result = run("explain", photo, "-m", "gradcam", *CNN)
    assert result.exit_code == 2
    assert "out of memory with 1 images at once; pass a smaller --batch-size" in result.stderr


def test_debug_shows_where(run: Run, photo: Path) -> None:
    plain = run("explain", photo, "-m", "gradkam")
    shown = run("--debug", "explain", photo, "-m", "gradkam")
    anywhere = run("explain", photo, "--debug", "-m", "gradkam")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in shown.stderr
    assert shown.stderr.splitlines()[-1] == anywhere.stderr.splitlines()[-1] == plain.stderr.strip()
    assert shown.exit_code == anywhere.exit_code == 2


@pytest.mark.parametrize(("name", "guess"), [("expl", "explain"), ("lst", "list"), ("evalute", "evaluate")])
def test_unknown_command(run: Run, name: str, guess: str) -> None:
    result = run(name)
    assert result.exit_code == 2
    assert f"unknown command '{name}'. Did you mean '{guess}'?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_real_process_gives_the_line_and_the_status(photo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xattn", "explain", str(photo), "-m", "gradkam"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("xattn: unknown method 'gradkam'. Did you mean 'gradcam'?")
    assert len(done.stderr.splitlines()) == 1


def test_a_model_of_several_inputs_is_told_how_it_becomes_one_of_one(run: Run, photo: Path) -> None:
    for command in ("explain", "doctor"):
        arguments = [photo, "-m", "gradcam"] if command == "explain" else []
        result = run(command, *arguments, "--model", "tests.cli.models:with_age")
        assert result.exit_code == 2
        assert re.search(
            r"several inputs \(image, age\).* one whose forward\(\) passes it on", re.sub(r"\s+", " ", result.output)
        )
        assert run(command, *arguments, "--model", "tests.cli.models:at_forty").exit_code == 0
