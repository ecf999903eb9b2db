"""Distillation without labels: what the teacher names takes their place, on any folder of images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import xattn
from tests.cli.conftest import Run, run  # noqa: F401 (a fixture)
from tests.training.colours import tiny_recipe
from xattn.data.preprocessing import to_batch
from xattn.errors import ParameterError
from xattn.models import create_model, load_model, save_weights
from xattn.models.checkpoint import read_state
from xattn.models.converting import before_dilation
from xattn.training.loop import Monitor, Silent, train


@pytest.fixture
def flat(colours: Path, tmp_path: Path) -> Path:
    """The images without the folders that name their classes."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i, file in enumerate(sorted(colours.rglob("*.png"))):
        shutil.copy(file, folder / f"{i}.png")
    return folder


def files_of(tmp_path: Path, **options: Any) -> tuple[Path, Path]:
    """Teacher and converted student, of two files."""
    torch.manual_seed(0)
    teacher = create_model("tiny-cnn", num_classes=4)
    with torch.no_grad():
        teacher.head.classifier.weight.mul_(10)  # so that its answers are far from even
    made = xattn.convert(teacher, parts=2, **options)
    return save_weights(teacher, tmp_path / "teacher.safetensors"), save_weights(made, tmp_path / "student.safetensors")


def recipe_of(flat: Path, tmp_path: Path, teacher: Path, student: Path, **changes: Any) -> Any:
    values = {
        "model__weights": str(student), "model__parts": 2, "model__freeze_batchnorm": True, "optimizer__ema": 0,
        "distill__teacher": str(teacher), "distill__labels": "teacher", "distill__weight": 1.0,
        **changes,
    }  # fmt: skip
    return tiny_recipe(flat, tmp_path / "run", **values)


class Watch(Silent):
    """Remembers the losses."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def epoch(self, row: dict[str, float], best: bool) -> None:
        self.rows.append(row)


def test_a_converted_network_learns_from_the_one_of_before(flat: Path, tmp_path: Path) -> None:
    teacher, student = files_of(tmp_path, resolution="x2")
    watch: Monitor = Watch()
    same: dict[str, Any] = {f"augment__{name}": 0.0 for name in ("brightness", "contrast", "saturation")}
    same |= {"augment__crop": "none", "augment__flip": False, "model__freeze_front": True, "run__epochs": 3}
    result = train(recipe_of(flat, tmp_path, teacher, student, optimizer__lr=0.001, **same), watch)
    assert watch.rows[-1]["train_loss"] < watch.rows[0]["train_loss"]  # type: ignore[attr-defined]
    before, after = load_model(student), load_model(result.best)
    assert after.architecture == before.architecture
    front = {id(p) for p in before_dilation(before)}  # type: ignore[arg-type]
    pairs = list(zip(before.named_parameters(), after.parameters(), strict=True))
    assert front
    assert all(torch.equal(p, q) for (_, p), q in pairs if id(p) in front)
    assert not all(torch.equal(p, q) for (_, p), q in pairs if id(p) not in front)
    x = to_batch([str(file) for file in sorted(flat.glob("*.png"))], after.spec)
    with torch.no_grad():
        wanted = load_model(teacher)(x).softmax(1)
        errors = [float(F.kl_div(net(x).log_softmax(1), wanted, reduction="batchmean")) for net in (before, after)]
    assert errors[0] > 1e-3
    assert errors[1] < errors[0]


def test_labels_are_what_the_teacher_names(colours: Path, flat: Path, tmp_path: Path) -> None:
    teacher, student = files_of(tmp_path)
    named = create_model(teacher)
    with torch.no_grad():  # names one class of four whatever it sees
        named.head.classifier.bias[2] = 100.0
    save_weights(named, teacher)
    result = train(recipe_of(colours, tmp_path, teacher, student, run__epochs=1, optimizer__lr=1e-9))
    assert result.value < 1.0  # of the student that has not learned it
    made = xattn.convert(named, parts=2)
    save_weights(made, student)
    again = recipe_of(flat, tmp_path, teacher, student, run__epochs=1, optimizer__lr=1e-9, run__out=str(tmp_path / "2"))
    assert train(again).value == 1.0


def test_labels_of_a_teacher_need_one(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"distill.labels = 'teacher' needs distill.teacher"):
        tiny_recipe(flat, tmp_path, distill__labels="teacher")


def test_the_command_distils_and_goes_on(run: Run, flat: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = (
        "convert", "tests.cli.models:cnn", "--parts", 2, "--resolution", "x2", "--data", flat, "--distil", flat,
        "--out", "net.safetensors", "--lr", 0.01, "--json",
    )  # fmt: skip
    first = run(*arguments, "--epochs", 2)
    assert first.exit_code == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["distilled"]["images"] == found["agreement"]["images"] == len(list(flat.glob("*.png")))
    assert found["distilled"]["change"] != found["agreement"]["change"]
    state = read_state(tmp_path / "net.safetensors")
    second = run(*arguments, "--epochs", 2)  # the run is done, and the file is written again
    assert second.exit_code == 0, second.stderr
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_state(tmp_path / "net.safetensors").items())
    assert load_model(tmp_path / "net.safetensors", "tests.cli.models:cnn").spec.crop == pytest.approx(0.875)


def test_attention_with_weights_of_its_own_is_distilled(run: Run, flat: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ("convert", "tiny-cnn", "--head", "bcnn", "--parts", 2, "--data", flat, "--distil", flat)
    result = run(*arguments, "--epochs", 1, "--lr", 0.01, "--out", "net.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["distilled"]["images"] == found["agreement"]["images"]
    before, after = xattn.convert(create_model("tiny-cnn"), head="bcnn", parts=2), load_model(Path("net.safetensors"))
    for name, p in after.named_parameters():
        kept = torch.equal(p, before.get_parameter(name))
        assert kept == name.startswith("backbone.") or "bias" in name or name.startswith("head.attention.block.bn"), (
            name
        )
    shown = run("explain", next(flat.glob("*.png")), "--model", "net.safetensors", "-m", "bcnn", "--json")
    assert json.loads(shown.stdout)["images"][0]["maps"][0]["status"] == "ok"
