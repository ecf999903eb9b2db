"""Help teaches, and answers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
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
    resource = pytest.importorskip("resource")
    # With compiled modules, as after the first run of any installation.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "xattn", "--help"], capture_output=True, check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # Processor time, and the least of some runs; beside other work a call takes twice as long as on an idle machine.
    assert min(times) < 0.6
