"""The README is true: its table is the registry's, its commands and its code run.

`python -m tests.test_readme` writes the table anew.
"""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xattn.cli import app
from xattn.cli.catalog import first_sentence
from xattn.explainers import explainers

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- methods: made by `python -m tests.test_readme` -->\n", "<!-- /methods -->"


def table() -> str:
    """The methods as Markdown, from the registry."""
    lines = ["| name | what | kind | class-specific | cost | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for name in explainers.names():
        kind = explainers.get(name)
        specific = "yes" if kind.class_specific else "no"
        what = first_sentence(kind).replace("|", "\\|")
        lines.append(f"| `{name}` | {what} | {kind.family.value} | {specific} | {kind.passes} | {kind.paper} |")
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_the_registry() -> None:
    text = README.read_text(encoding="utf-8")
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert written == table(), "write it anew with `python -m tests.test_readme`"


def test_every_picture_and_link_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    explain = re.search(r"&& \S*xattn (explain .* examples/)\n", text)
    assert explain is not None
    found = [line.removeprefix("$ xattn ") for line in re.findall(r"^\$ xattn .*$", text, re.MULTILINE)]
    return [explain[1], *found]


@pytest.mark.parametrize("command", commands())
def test_commands_run(here: Path, command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    if command.startswith("explain"):
        assert list(here.glob("*out/*.png"))


def test_code_runs(here: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code[1], str(README), "exec"), {})
    assert (here / "chelsea.png").exists()
    assert (here / "chelsea.npz").exists()


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text[: text.index(BEGIN) + len(BEGIN)] + table() + text[text.index(END) :], encoding="utf-8")
