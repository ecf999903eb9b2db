"""Benchmark configurations with one thing wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from benchmarks.robustness import stock
from benchmarks.robustness.cases import (
    ANY,
    HOSTILE_TEXTS,
    NOT_FINITE,
    NUMBERS,
    REFUSED,
    Call,
    case,
    damage,
    mutate,
    write_toml,
)

RIGHT = ANY - {3}


def full() -> dict[str, Any]:
    """A benchmark with every key that a configuration has."""
    values = stock.configuration(str(stock.folder() / "data"))
    values["metrics"] = [{"name": "sparsity", "limit": 1, "without": ["gradcam"]}]
    values["data"][0] |= {"split": "val", "fit": "crop", "mosaic": 0, "metrics": []}
    values["models"][0] |= {"resolution": "low", "methods": ["gradcam"], "label": "net"}
    values["limits"] = {"gradcam": 1}
    values["run"] |= {
        "seed": 0,
        "target": "predicted",
        "score": "logit",
        "precision": "fp32",
        "fast": False,
        "controls": True,
    }
    return values


def attempt(rng: random.Random, home: Path, values: dict[str, Any], name: str, **more: Any) -> Call:
    """Run or plan a benchmark."""
    write_toml(home / "c.toml", values)
    words = ("--plan",) if rng.random() < 0.2 else ("--out", "run", "-q")
    return Call(("benchmark", "c.toml", *words, *more.pop("words", ())), RIGHT, name=name, **more)


@case("configurations", 8)
def key(rng: random.Random, home: Path) -> Call:
    """Any key replaced, removed or added."""
    values, what = mutate(rng, full())
    return attempt(rng, home, values, what)


@case("configurations", 3)
def number(rng: random.Random, home: Path) -> Call:
    """A number that is negative, zero, huge or none."""
    values = full()
    section, name = rng.choice(
        [
            ("run", "seed"),
            ("run", "batch"),
            ("run", "block"),
            ("data", "limit"),
            ("data", "mosaic"),
            ("limits", "gradcam"),
            ("metrics", "limit"),
        ]
    )
    inside = values[section][0] if isinstance(values[section], list) else values[section]
    inside[name] = rng.choice([*NUMBERS, *NOT_FINITE, "5", True, 1000])
    return attempt(rng, home, values, f"{section}.{name} = {inside[name]!r}")


@case("configurations", 4)
def text(rng: random.Random, home: Path) -> Call:
    """A name or label that is hostile."""
    values = full()
    section, name = rng.choice(
        [
            ("data", "source"),
            ("data", "label"),
            ("data", "split"),
            ("models", "name"),
            ("models", "label"),
            ("models", "weights"),
        ]
    )
    values[section][0][name] = rng.choice(
        [*HOSTILE_TEXTS, ".:x", "sys:exit", "os:getcwd", "timm:", "a:b:c", "$NOPE/x", "~nobody"]
    )
    return attempt(rng, home, values, f"{section}.{name} = {str(values[section][0][name])[:30]!r}")


@case("configurations", 3)
def names(rng: random.Random, home: Path) -> Call:
    """Methods and metrics that are none, or have parameters that are none."""
    values = full()
    kind = rng.choice(["methods", "metrics"])
    name = "gradcam" if kind == "methods" else "deletion"
    ends = [
        "",
        ":",
        ":nope=1",
        ":steps",
        ":steps=" + "9" * 5_000,
        ":=",
        ":steps=1,steps=2",
        ":layer=\x1b[2J",
        ",",
        ":" * 99,
    ]
    values[kind] = rng.choice(
        [[name + rng.choice(ends)], [name, name], [], ["\x1b[2J"], ["x" * 5_000], [name] * 3_000, [5]]
    )
    if kind == "methods":
        del values["models"][0]["methods"]
    return attempt(rng, home, values, f"{kind} {str(values[kind])[:40]}")


@case("configurations", 2)
def no_configuration(rng: random.Random, home: Path) -> Call:
    """A file that is damaged, deep, long, a pipe, or no TOML."""
    write_toml(home / "c.toml", full())
    data, what = damage(rng, (home / "c.toml").read_bytes())
    if rng.random() < 0.6:
        data = rng.choice(
            [
                b"",
                b"\xff",
                b"a = " + b"[" * 5_000 + b"]" * 5_000,
                b"a." * 20_000 + b"b = 1",
                b"x = " + b"9" * 50_000,
                b"\0" * 99,
            ]
        )
        what = f"{data[:20]!r}"
    (home / "c.toml").write_bytes(data)
    if rng.random() < 0.15:
        (home / "c.toml").unlink()
        os.mkfifo(home / "c.toml")
        return Call(("benchmark", "c.toml", "-q", "--out", "run"), frozenset({REFUSED}), name="a pipe")
    return Call(("benchmark", "c.toml", "-q", "--out", "run"), RIGHT, name=what)


@case("configurations", 2)
def shards(rng: random.Random, home: Path) -> Call:
    """Processes that cannot be: by option or by the environment."""
    values = stock.configuration(str(stock.folder() / "data"))
    text = rng.choice(
        [
            "²/5",
            "1/1",
            "0/0",
            "-1/2",
            "a/b",
            "0",
            "/",
            "0/" + "9" * 30,
            "0/1/2",
            "\u0663/\u0665",
            "\x1b[2J",
            "9" * 5_000 + "/2",
        ]
    )
    if rng.random() < 0.5:
        write_toml(home / "c.toml", values)
        return Call(("benchmark", "c.toml", "--out", "run", "-q", "--shard", text), RIGHT, name=f"shard {text[:20]!r}")
    name = rng.choice(["RANK", "WORLD_SIZE"])
    value = rng.choice(["a", "0", "-1", "²", "", "9" * 30, "1.5"])
    write_toml(home / "c.toml", values)
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), RIGHT, env={name: value}, name=f"{name}={value[:20]!r}")


@case("configurations")
def change(rng: random.Random, home: Path) -> Call:
    """A change on the command line that cannot be."""
    text = rng.choice(
        [
            "run.batch=0",
            "run.batch=" + "9" * 5_000,
            "=",
            "a",
            "data.5.limit=1",
            "data.²=1",
            "run=5",
            "x" * 4_000 + "=1",
            "run.\x1b[2J=1",
            "data.0.limit=" + "[" * 3_000,
            "data.-1.limit=x",
            "run.batch.x=1",
            "__class__.x=1",
            "data.9" + "9" * 5_000 + "=1",
        ]
    )
    return attempt(rng, home, full(), f"--set {text[:30]!r}", words=("--set", text))
