"""Help teaches, and answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, processor_seconds
from xattn import __version__
from xattn.cli import COMMANDS


def test_help_shows_every_command_and_where_to_start(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout
    assert "xattn explain photo.jpg" in result.stdout
    assert run().stdout == result.stdout  # no command at all shows the help too


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert f"xattn {command}" in result.stdout.split("Examples")[1]


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"xattn {__version__}\n"


def test_help_takes_less_than_300_ms(tmp_path: Path) -> None:
    # With compiled modules, as after the first run of any installation.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [sys.executable, "-m", "xattn", "--help"]
    libraries = [sys.executable, "-c", "import typer, rich.console, rich.markdown, rich.panel, rich.table"]
    # The least of some runs. Where a processor takes long for what the help is printed with, so does the help.
    times, bare = zip(
        *[[processor_seconds(one, environment) for one in (command, libraries)] for _ in range(6)], strict=True
    )
    assert min(times) < max(0.3, 2.5 * min(bare))
