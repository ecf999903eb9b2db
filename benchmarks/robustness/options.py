"""Every option of every command with values that it cannot take."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, HOSTILE_TEXTS, Call, case, write_toml
from benchmarks.robustness.weights import QUICK

TEXTS = (
    *HOSTILE_TEXTS,
    "-1",
    "0",
    "nan",
    "inf",
    "1e308",
    "1000000000",
    "99999999999999999999",
    "9" * 5_000,
    "1000000",
    "-",
    "--",
    "@file",
    "0.5",
)
DOCTOR = ANY | {1}
NEVER = {"--help", "--debug", "--version"}


def usual(command: str, home: Path) -> tuple[str, ...]:
    """A good call of a command that does not take long."""
    photo = stock.photograph(home)
    data = str(stock.folder() / "data")
    write_toml(home / "c.toml", stock.configuration(data, methods=["activation"], metrics=["sparsity"]))
    run = str(stock.folder() / "run")
    return {
        "explain": ("explain", photo, "-m", "brnpa", "--model", "tiny-brnpa", "--out", "out"),
        "compare": ("compare", photo, "-m", "brnpa", "--model", "tiny-brnpa", "--out", "page.html", "--no-curves"),
        "list": ("list",),
        "doctor": ("doctor", photo, "--model", "tiny-cnn"),
        "train": ("train", "--data", "synthetic:length=16,size=32", "--backbone", "tiny-cnn", *QUICK),
        "evaluate": ("evaluate", str(stock.folder() / "four.safetensors"), "--data", data),
        "benchmark": ("benchmark", "c.toml", "--out", "run", "-q"),
        "report": ("report", run, "--out", "rep", *stock.BRIEF),
    }[command]


def options(command: str) -> list[Any]:
    """The options of a command that take a value."""
    import click
    import typer

    from xattn.cli import app

    group: Any = typer.main.get_command(app)
    found = group.get_command(click.Context(group), command)
    return [p for p in found.params if p.param_type_name == "option" and not p.is_flag and not NEVER & set(p.opts)]


def given(rng: random.Random, home: Path, command: str) -> Call:
    """One option of a command, after the usual ones."""
    known = options(command)
    words = usual(command, home)
    text = rng.choice(TEXTS)
    if not known or rng.random() < 0.1:
        return Call((*words, text), DOCTOR if command == "doctor" else ANY, name=f"{command} argument {text[:20]!r}")
    name = max(rng.choice(known).opts, key=len)
    if name == "--model" and text in ("os:abort", "evil:build"):
        text = "os:getpid"  # a factory that is given on the command line is to run
    if name == "--epochs" and text in ("1000000000", "1000000"):
        text = "-1"  # as many as one asks for, which is long
    return Call(
        (*words, f"{name}={text}"), DOCTOR if command == "doctor" else ANY, name=f"{command} {name}={text[:20]!r}"
    )


@case("options", 4)
def explain(rng: random.Random, home: Path) -> Call:
    """Options of `xattn explain`."""
    return given(rng, home, "explain")


@case("options", 3)
def compare(rng: random.Random, home: Path) -> Call:
    """Options of `xattn compare`."""
    return given(rng, home, "compare")


@case("options", 3)
def train(rng: random.Random, home: Path) -> Call:
    """Options of `xattn train`."""
    return given(rng, home, "train")


@case("options", 4)
def others(rng: random.Random, home: Path) -> Call:
    """Options of the other commands."""
    return given(
        rng, home, rng.choice(["evaluate", "benchmark", "report", "evaluate", "benchmark", "report", "list", "doctor"])
    )


@case("options")
def target(rng: random.Random, home: Path) -> Call:
    """A class that is none."""
    command = rng.choice(["explain", "compare"])
    texts = (
        "²",
        "--5",
        "-1",
        "99999999999999999999",
        "9" * 5_000,
        "\u0663",
        "1e3",
        "0x1",
        "",
        "goldfish\0",
        "1.0",
        "+5",
        " 5 ",
        *HOSTILE_TEXTS,
    )
    text = rng.choice(texts)
    return Call((*usual(command, home), f"--target={text}"), ANY - {3}, name=f"{command} target {text[:20]!r}")


@case("options")
def words(rng: random.Random, home: Path) -> Call:
    """Command lines that are none."""
    lines = (
        (),
        ("nope",),
        ("explain",),
        ("--nope",),
        ("explain", "--debug", "--model", "zzz", "a.jpg"),
        ("\x1b[2J",),
        ("x" * 5_000,),
        ("list", "\x1b[2J"),
        ("list", "x" * 5_000),
        ("report",),
        ("benchmark", "c.toml", "nope"),
        ("", ""),
        ("--", "--"),
        ("explain", "-m"),
    )
    line = rng.choice(lines)
    return Call(line, ANY, name=" ".join(line)[:60])
