"""Run the command in this process, as a user would."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests import images_zoo as zoo
from xattn import file_loop
from xattn.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `xattn` with arguments, inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments: object) -> Result:
        result = runner.invoke(app, [str(a) for a in arguments], prog_name="xattn")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def processor_seconds(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """What a process takes of the processor, whatever else the machine is doing."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A readable image of four colours."""
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    zoo.rgb().save(path)
    return path


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All odd images that can be read, by name."""
    return zoo.build_good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All paths that cannot be read, by name."""
    return zoo.build_bad(tmp_path_factory.mktemp("bad"))


def interrupt_after_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody presses Ctrl-C when one image is explained."""
    explain_batch = file_loop._explain_batch
    count = 0

    def interrupted(*arguments: Any) -> Iterator[file_loop.Explained]:
        nonlocal count
        if count:
            raise KeyboardInterrupt
        count += 1
        return explain_batch(*arguments)

    monkeypatch.setattr(file_loop, "_explain_batch", interrupted)
