"""Commands and code of a document, run as a reader would, on small stand-ins for what they name."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.data.copies import tiny_imagenet
from tests.training.colours import write_images
from tests.training.individuals import write_few_shot, write_individuals
from xattn.cli import app
from xattn.data import datasets
from xattn.explainers import explainers
from xattn.metrics import metrics
from xattn.models import models

ROOT = Path(__file__).parent.parent

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
# What makes the environment that the tests run in.
_SETTING_UP = re.compile(r"^(python3 -m venv|(\S*/)?pip install|(\S*/)?pytest)\b")
_QUICK = "--epochs 1 --image-size 32 --batch-size 4 --accelerator cpu --devices 1 --set tensorboard=false"
# What a command says, and what stands in for it: nothing is downloaded, and nothing takes long.
_STANDINS: tuple[tuple[str, str], ...] = (
    (r"^\S*\bxattn ", "xattn "),
    (r"^torchrun --nproc-per-node \d+ -m xattn ", "xattn "),
    (r" --weights DEFAULT\b", ""),
    (r"\bmine\.nets:build\b", "tests.cli.models:cnn"),
    (r" --backbone resnet18\b", " --backbone tiny-cnn"),
    (r" --task reid\b", " --task reid:instances=2"),
    (r"^(xattn train .*)$", rf"\1 {_QUICK} --set held_out=0.2"),
    (r" --engine \S+", ""),  # tests/benchmark/test_engines.py runs them
    (r"\bs3://", "memory://"),
    (r" /shared/", " shared/"),
    (r"^(xattn report .*)$", r"\1 --resamples 50 --panels 1"),
    (r"^xattn select \S+", "xattn select tests.cli.models:cnn --images 8"),
    (r"^xattn app\b.*$", "xattn app --help"),  # tests/cli/test_app.py opens the page, which stays
    (r"^xattn audit .*$", "xattn audit tests.cli.models:cnn --data synthetic:length=60 --per-group 8"),
    (r"^xattn doctor .*$", "xattn doctor --model tests.cli.models:cnn"),  # all methods on four images
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document.

    Args:
        language: `sh`, `console`, `python` or another.
        title: name of the file that it shows, if it is one.
        body: what is in it.
    """

    language: str
    title: str
    body: str

    def commands(self) -> Iterator[str]:
        """The commands of a `sh` block, or those of a `console` block that stand behind a prompt."""
        for line in self.body.replace("\\\n", " ").splitlines():
            if self.language == "console" and not line.startswith("$ "):
                continue
            text = re.sub(r"\s+#.*", "", line.removeprefix("$ ")).strip()
            yield from (part.strip() for part in text.split(" && ") if part.strip())


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document."""
    return [Block(m[1], m[2] or "", m[3]) for m in _BLOCK.finditer(path.read_text(encoding="utf-8"))]


def run_command(command: str) -> None:
    """Run a command in this process, in the working folder; it must end well."""
    if _SETTING_UP.match(command):
        return
    for said, standin in _STANDINS:
        command = re.sub(said, standin, command)
    program, *words = shlex.split(command)
    assert program == "xattn", f"no test can run '{command}'"
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{command}\n{result.output}"


def run_code(code: str, source: Path, names: dict[str, Any]) -> None:
    """Run Python code; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code, str(source), "exec"), names)


def run_document(path: Path, folder: Path) -> None:
    """Run all that a document says, in its order: files are written, commands and code are run."""
    names: dict[str, Any] = {}
    for block in blocks(path):
        if block.title:
            # What a run of all methods costs is measured of each of them, which takes minutes.
            text = block.body.replace('methods = ["all"]', 'methods = ["gradcam", "saliency"]')
            (folder / block.title).write_text(text, encoding="utf-8")
        elif block.language in ("sh", "console"):
            for command in block.commands():
                run_command(command)
        elif block.language == "python":
            run_code(block.body, path, names)


def write_hugging_face(folder: Path) -> None:
    """A small vision transformer with its image processor, as `save_pretrained` writes them."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64}
    names = {0: "cat", 1: "dog"}
    config = transformers.ViTConfig(
        **sizes, intermediate_size=64, id2label=names, label2id={n: i for i, n in names.items()}
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a reader: a photograph, labelled images, and what the repository has beside the package."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "benchmarks" / "configs", tmp_path / "benchmarks" / "configs")
    shutil.copy(ROOT / "examples" / "chelsea.jpg", tmp_path / "photo.jpg")
    write_images(tmp_path / "photos", 3, 32, seed=0)
    write_individuals(tmp_path / "people")
    write_few_shot(tmp_path / "data" / "cifar-fs")
    write_hugging_face(tmp_path / "my-vit")
    tiny_imagenet(tmp_path / "data" / "tiny-imagenet")
    monkeypatch.setenv("XATTN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (explainers, metrics, models, datasets):
        registry.names()  # what the package itself has is found before what a document adds
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))
        monkeypatch.setattr(registry, "_display", dict(registry._display))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
