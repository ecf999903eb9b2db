"""`xattn benchmark` and `xattn report` as a user meets them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.cli.conftest import Run
from xattn.benchmark import plan as planning
from xattn.benchmark import run as runs

RUN = """
methods = ["gradcam", "cam"]
metrics = ["sparsity", {name = "insertion:steps=4", limit = 3}]
[[data]]
source = "DATA"
label = "shapes"
[[models]]
name = "own"
label = "cnn"
[run]
block = 3
batch = 2
device = "cpu"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN.replace("DATA", "synthetic:length=5"))
    return path


def benchmark(run: Run, config: Path, *more: object) -> Any:
    """The command, with the network of the configuration, which no file may choose."""
    return run("benchmark", config, "--set", "models.0.name=tests.cli.models:cnn", *more)


def test_run_again_extend_and_report(run: Run, config: Path, tmp_path: Path) -> None:
    first = benchmark(run, config, "--out", "runs/x", "--quiet")
    assert first.exit_code == 0, first.stderr
    assert "new scores in 2 blocks, in runs/x" in first.stdout
    assert f"next: xattn report runs/x --config {config}" in first.stdout
    assert "0 new scores in 0 blocks" in benchmark(run, config, "--out", "runs/x").stdout
    more = benchmark(
        run, config, "--out", "runs/x", "-q", "--set", "run.batch=5", "--set", 'methods=["gradcam", "brnpa"]'
    )
    assert more.exit_code == 0
    assert "new scores in 2 blocks" in more.stdout
    assert list((tmp_path / "runs" / "x" / "costs").glob("*.json"))
    report = run("report", "runs/x", "--out", "paper", "--resamples", "20", "--quiet")
    assert report.exit_code == 0, report.stderr
    assert (tmp_path / "paper" / "report.md").is_file()
    assert report.stdout.startswith("paper/report.html")


def test_shards_are_parts_of_one_run(run: Run, config: Path) -> None:
    found = [benchmark(run, config, "--out", "x", "-q", "--shard", f"{i}/2") for i in range(2)]
    assert [r.exit_code for r in found] == [0, 0]
    assert "process 1 of 2: " in found[1].stdout
    assert "0 new scores" in benchmark(run, config, "--out", "x", "-q").stdout


def test_status_of_all_shards(run: Run, config: Path) -> None:
    before = benchmark(run, config, "--out", "x", "--status")
    assert before.exit_code == 0, before.stderr
    assert "nothing is stored yet" in before.stdout
    assert benchmark(run, config, "--out", "x", "-q", "--shard", "1/2").exit_code == 0
    lines = benchmark(run, config, "--out", "x", "--status", "--shard", "0/2").stdout
    found = [[word.strip() for word in line.split("│")[1:-1]] for line in lines.splitlines() if "│" in line]
    by_name = {row[0]: row[1:] for row in found if len(row) == 5}
    assert by_name["shapes x cnn"][:3] == ["2", "1", "0"]
    assert by_name["process 0 of 2"] == ["1", "0", "0", "0%"]
    assert by_name["process 1 of 2"] == ["1", "1", "0", "100%"]
    assert by_name["all"][:3] == ["2", "1", "0"]
    assert "1 parts, the last one" in lines
    more = benchmark(run, config, "--out", "x", "--status", "--set", 'methods=["gradcam", "cam", "brnpa"]').stdout
    assert "1" in next(line for line in more.splitlines() if "all" in line).split("│")[4]  # begun, not whole
    assert benchmark(run, config, "--out", "x", "-q").exit_code == 0
    assert "100%" in benchmark(run, config, "--out", "x", "--status").stdout


def test_plan_tells_what_it_takes(run: Run, config: Path, tmp_path: Path) -> None:
    result = benchmark(run, config, "--plan", "--set", 'methods=["gradcam", "bcnn"]')
    assert result.exit_code == 0, result.stderr
    assert "shapes x cnn: 5 of 5 images" in result.stdout
    assert "left out: bcnn: the model has no B-CNN head" in " ".join(result.stdout.split())
    # Three steps and the replaced end, once: five methods on three images; one pass for the maps on five.
    assert f"in all about {(5 * 3 + 1) * 3 + 5:,} images through the models" in " ".join(result.stdout.split())
    assert not (tmp_path / "parts").exists()


def test_unreadable_images_are_counted(run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    for i, name in enumerate(("cat/a", "cat/b", "dog/c")):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 50 + i).convert("RGB").save(path)
    broken = tmp_path / "pets" / "cat" / "b.png"
    broken.write_bytes(broken.read_bytes()[:100])
    config.write_text(RUN.replace("DATA", str(tmp_path / "pets")))
    for _ in range(2):  # also when there is nothing left to do
        result = benchmark(run, config, "--out", "x", "-q")
        assert result.exit_code == 3
        assert "1 images could not be read:" in result.stdout
        assert "b.png" in result.stdout
    # A launcher would stop the other processes.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    result = benchmark(run, config, "--out", "x", "-q")
    assert result.exit_code == 0
    assert "1 images could not be read:" in result.stdout


WRONG: dict[str, tuple[str, str]] = {
    "unknown key": ("batchs = 3\n[run]\nbatches = 3", "unknown key 'run.batches' .did you mean 'batch'"),
    "no methods": ("methods = []", "methods: Tuple should have at least 1 item"),
    "wrong type": ('[run]\nbatch = "many"', "run.batch: .*integer.*'many'"),
    "not TOML": ("methods = [", "is no valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_bad_configurations(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    result = run("benchmark", "bad.toml", "--out", "x")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    import re

    assert re.search(message, result.stderr), result.stderr


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["nowhere.toml", "--out", "x"], "there is no configuration 'nowhere.toml'"),
    "no out": (["run.toml"], "pass the folder of the scores with --out, or --plan"),
    "shard": (["run.toml", "--out", "x", "--shard", "3/3"], "--shard: expected i/n"),
    "engine": (["run.toml", "--out", "x", "--engine", "rai"], "unknown engine 'rai'. Did you mean 'ray'"),
    "engine's part": (
        ["run.toml", "--out", "x", "--engine", "ray", "--shard", "0/2"],
        "engine ray shares out the work",
    ),
    "engine's parameter": (["run.toml", "--out", "x", "--engine", "ray:worker=2"], "Did you mean 'workers'"),
    "file system": (["run.toml", "--out", "nothing://x"], "file system that cannot be opened"),
    "set": (["run.toml", "--out", "x", "--set", "batch"], "--set: expected key=value"),
    "set nowhere": (["run.toml", "--out", "x", "--set", "data.7.limit=3"], "no place for 'data.7.limit'"),
    "set unknown": (
        ["run.toml", "--out", "x", "--set", "run.batche=3"],
        "unknown key 'run.batche' (did you mean 'batch'?)",
    ),
    "all faults": (
        ["run.toml", "--out", "x", "--set", 'methods=["gradkam", "x"]', "--set", "run.device=abacus"],
        "gradkam",
    ),
    "report": (["report"], "holds no scores"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input(run: Run, config: Path, words: list[str], message: str) -> None:
    result = run("report", ".") if words == ["report"] else run("benchmark", *words)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_another_run_in_the_folder(run: Run, config: Path) -> None:
    assert benchmark(run, config, "--out", "x", "-q").exit_code == 0
    result = benchmark(run, config, "--out", "x", "--set", "run.seed=5")
    assert result.exit_code == 2
    assert (
        "'x' holds scores of another run: run.seed was 0 and is 5. Use another --out, or change it back."
        in result.stderr
    )


def test_interrupted(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = runs.score_batch
    calls = 0

    def once(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "score_batch", once)
        result = benchmark(run, config, "--out", "x")
    assert result.exit_code == 130
    assert "interrupted with 1 blocks of scores stored; nothing that is in 'x' is lost. The same command goes on" in (
        result.stderr
    )
    again = benchmark(run, config, "--out", "x", "-q")
    assert "new scores in 1 blocks" in again.stdout  # the first was whole


def test_interrupted_before_anything_is_scored(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "digest_of", interrupt)
    result = benchmark(run, config, "--out", "x")
    assert result.exit_code == 130
    assert "xattn: interrupted with 0 blocks of scores stored" in result.stderr
    result = benchmark(run, config, "--plan")
    assert result.exit_code == 130
    assert result.stderr == "xattn: interrupted.\n"


def test_a_configuration_that_is_no_file_or_nested_deeply(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "deep.toml").write_text("methods = " + "[" * 100_000)
    (tmp_path / "dotted.toml").write_text("limits." + ".".join("a" * 10_000) + " = 1")
    (tmp_path / "digits.toml").write_text("limits.gradcam = " + "1" * 10_000)
    for name, message in (
        ("pipe.toml", "is no regular file"),
        ("deep.toml", "is no valid TOML"),
        ("dotted.toml", "more than 100 parts"),
        ("digits.toml", "is no valid TOML"),
    ):
        result = run("benchmark", name, "--out", "x")
        assert result.exit_code == 2, name
        assert len(result.stderr.strip().splitlines()) == 1
        assert message in result.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "val" / "cat" / "b.png").rename(root / "val" / "b.png"),  # no folder of images is left
        lambda root: (root / "val" / "cat").rename(root / "val" / "cow"),
    ],
    ids=["no image", "another class"],
)
def test_a_damaged_validation_part_is_never_the_training_part_instead(
    run: Run, config: Path, tmp_path: Path, damage: Any
) -> None:
    from PIL import Image

    for i, name in enumerate(("train/cat/a", "val/cat/b")):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.effect_noise((40, 40), 50 + i).convert("RGB").save(path)
    damage(tmp_path / "pets")
    config.write_text(RUN.replace("DATA", str(tmp_path / "pets")))
    result = benchmark(run, config, "--out", "x", "-q")
    assert result.exit_code == 2, result.stdout
    assert "val" in result.stderr
    result = benchmark(run, config, "--out", "x", "-q", "--set", "data.0.split=train")
    assert result.exit_code == 0, result.stderr


def test_markup_in_a_label_is_text(run: Run, config: Path) -> None:
    label = "[/bold] \x1b[31m"
    result = benchmark(run, config, "--plan", "--set", f"models.0.label={json.dumps(label)}")
    assert result.exit_code == 0, result.stderr
    assert "[/bold]" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of 'x' is full; what is stored is whole"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out of memory (CUDA out of memory); lower run.batch"),
    ],
)
def test_full(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pq, "write_table", full)
    result = benchmark(run, config, "--out", "x", "-q")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr
