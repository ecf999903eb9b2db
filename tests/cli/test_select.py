"""`xattn select` as a user meets it: photographs in a folder, an answer, and files that the next command takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from xattn.benchmark.config import Config

MODEL = "tests.cli.models:cnn"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures without labels, one of them damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    return folder


def test_photographs_without_labels_give_an_answer_and_files(run: Run, photos: Path, tmp_path: Path) -> None:
    result = run("select", MODEL, "--data", photos, "-m", "gradcam", "-m", "cam", "-m", "rollout", "--out", "answer")
    assert result.exit_code == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert first.startswith(("Use ", "No method ")), first
    assert all(len(line) <= 80 for line in result.stdout.split("High is good")[0].splitlines()[1:])
    for name in ("gradcam", "cam", "random", "center", "edges"):
        assert f"\n{name} " in result.stdout
    assert "Not defined for cnn: rollout." in result.stdout or "Not defined for tests.cli.models:cnn" in result.stdout
    assert "xattn benchmark answer/benchmark.toml --out runs/full --set models.0.name=tests.cli.models:cnn" in (
        result.stdout
    )
    answer = json.loads((tmp_path / "answer" / "select.json").read_text())
    assert answer["sentence"] == first
    assert answer["images"] == 19
    assert answer["available"] == 20
    assert set(answer["left_out"]) == {"rollout"}
    with Image.open(tmp_path / "answer" / "winners.png") as picture:
        assert picture.width > 100
    assert sorted(p.name for p in (tmp_path / "answer").iterdir()) == ["benchmark.toml", "select.json", "winners.png"]


def test_a_question_that_was_not_asked_yet_is_said_to_be(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xattn.benchmark.limit.SHARE", 1e-9)  # one image at a time
    monkeypatch.setattr("xattn.benchmark.race.Race.decided", property(lambda race: race.images >= 2))
    result = run("select", MODEL, "--data", photos, "-m", "gradcam")
    assert "mean: not asked of the first 5 images." in result.stdout


def test_the_full_benchmark_runs_from_the_file(run: Run, photos: Path, tmp_path: Path) -> None:
    assert run("select", MODEL, "--data", photos, "-m", "gradcam", "--images", "8", "--out", "answer").exit_code == 0
    path = tmp_path / "answer" / "benchmark.toml"
    config = Config.read(path, [f"models.0.name={MODEL}"])
    assert config.methods == ("gradcam",)
    assert config.data[0].source == f"images:{photos.resolve()}"
    assert Config.build(json.loads(config.model_dump_json())) == config
    plan = run("benchmark", path, "--set", f"models.0.name={MODEL}", "--plan")
    assert plan.exit_code == 0, plan.stderr
    assert run("benchmark", path, "--plan").exit_code == 2  # a file names no code


def test_a_picture_of_before_stays_until_there_is_another_answer(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("select", MODEL, "--data", photos, "-m", "gradcam", "--images", "6", "--out", "answer")
    assert run(*command).exit_code == 0
    picture = tmp_path / "answer" / "winners.png"
    before = picture.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.Image.save", full)
        result = run(*command)
    assert result.exit_code == 2
    assert "winners.png: cannot be written (No space left on device)." in result.stderr
    assert picture.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("xattn.benchmark.select._Runner.explain", lambda *args: [])
        assert run(*command).exit_code == 0
    assert not picture.exists()


def test_json_alone_on_stdout(run: Run, photos: Path) -> None:
    result = run("select", MODEL, "--data", photos, "-m", "gradcam", "--images", "6", "--json")
    answer = json.loads(result.stdout)
    assert answer["images"] <= 6
    assert answer["methods"][0]["scores"].keys() == {"blur", "mean"}
    assert answer["files"][0].endswith("winners.png")


def test_the_same_seed_gives_the_same_answer(run: Run, photos: Path) -> None:
    def ask(seed: int) -> dict[str, object]:
        command = ("select", MODEL, "--data", photos, "-m", "gradcam", "-m", "activation", "--images", "8", "--json")
        answer = json.loads(run(*command, "--seed", seed).stdout)
        for method in answer["methods"]:
            del method["seconds"]
        return {key: value for key, value in answer.items() if key != "seconds"}

    assert ask(1) == ask(1)
    assert ask(1)["methods"] != ask(2)["methods"]


@pytest.mark.parametrize(
    "words",
    [
        ("select", MODEL, "--data", "PHOTOS", "--out", "file"),
        ("select", MODEL, "--data", "PHOTOS", "--out", "file/below"),
        ("convert", MODEL, "--data", "PHOTOS", "--out", "file/net.safetensors"),
        ("match", "PHOTOS/0.png", "PHOTOS", "--model", MODEL, "--out", "file/match.png"),
    ],
)
def test_a_file_where_a_folder_should_be_is_told_before_the_work(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for work in ("xattn.models.create_model", "xattn.cli.loading.load"):
        monkeypatch.setattr(work, lambda *args, **options: pytest.fail("the work has begun"))
    result = run(*(word.replace("PHOTOS", str(photos)) for word in words))
    assert result.exit_code == 2
    assert "cannot be made a folder" in result.stderr
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass the folder of your images with --data"),
        (["--data", "nowhere"], "nowhere: does not exist"),
        (["--data", "PHOTOS", "-m", "gradkam"], "Did you mean 'gradcam'?"),
        (["--data", "PHOTOS", "-m", "rollout"], "none of the methods is defined for"),
        (["--data", "PHOTOS", "--minutes", "-1"], "--minutes must be at least 0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run("select", MODEL, *(str(photos) if a == "PHOTOS" else a for a in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "xattn-select").exists()
