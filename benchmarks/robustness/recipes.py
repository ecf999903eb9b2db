"""Recipes of training with one thing wrong."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

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
    nasty,
    toml,
    write_toml,
)

SOURCE = "synthetic:length=16,size=32"
RIGHT = ANY - {3}


def recipe() -> dict[str, Any]:
    """A short training with every key, as nested values."""
    from xattn.training.recipe import Recipe

    values = tomllib.loads(Recipe().to_toml())
    values["data"]["source"] = SOURCE
    values["model"] |= {"backbone": "tiny-cnn", "head": "linear"}
    values["run"] |= {"out": "r", "epochs": 1, "batch_size": 8, "image_size": 32, "accelerator": "cpu", "devices": 1}
    values["run"] |= {"tensorboard": False}
    return values


def attempt(home: Path, values: dict[str, Any], name: str) -> Call:
    """Train by a recipe."""
    write_toml(home / "c.toml", values)
    return Call(("train", "c.toml", "-q"), RIGHT, name=name)


@case("recipes", 8)
def key(rng: random.Random, home: Path) -> Call:
    """Any key replaced, removed or added."""
    return attempt(home, *mutate(rng, recipe()))


@case("recipes", 5)
def number(rng: random.Random, home: Path) -> Call:
    """A number that is negative, zero, huge or none."""
    values = recipe()
    places = [(s, k) for s, keys in values.items() for k, v in keys.items() if isinstance(v, int | float)]
    section, name = rng.choice([*places, ("run", "devices")])
    values[section][name] = rng.choice([*NUMBERS, *NOT_FINITE, 30_000, "5", True])
    if name == "epochs" and values[section][name] == 10**9:
        values[section][name] = 0
    return attempt(home, values, f"{section}.{name} = {values[section][name]!r}")


@case("recipes", 3)
def text(rng: random.Random, home: Path) -> Call:
    """A text that is another choice, or hostile."""
    values = recipe()
    places = [(s, k) for s, keys in values.items() for k, v in keys.items() if isinstance(v, str) and k != "out"]
    section, name = rng.choice(places)
    values[section][name] = rng.choice([*HOSTILE_TEXTS, "unknown", "../x", "tiny-vit", "ddp_spawn", "tpu", 5, None])
    return attempt(home, values, f"{section}.{name} = {str(values[section][name])[:30]!r}")


@case("recipes", 2)
def source(rng: random.Random, home: Path) -> Call:
    """Parameters of the data set that ask for far too much, or for nothing."""
    values = recipe()
    parameter = rng.choice(["length", "size", "seed", "cells", "decides", "nope"])
    values["data"]["source"] = f"synthetic:length=16,{parameter}={rng.choice([*NUMBERS, *NOT_FINITE, 'x', ''])}"
    return attempt(home, values, values["data"]["source"])


@case("recipes", 2)
def lists(rng: random.Random, home: Path) -> Call:
    """Pairs that are none."""
    values = recipe()
    if rng.random() < 0.6:
        choices = [
            [[0, -5]],
            [[0, 10**9]],
            [[0, 0]],
            [[1, 32], [0, 32]],
            [[0]],
            [["a", "b"]],
            [[0, 8.5]],
            "x",
            [[-1, 32]],
            [[10**30, 32]],
        ]
        values["run"]["sizes"] = rng.choice(choices)
        return attempt(home, values, f"sizes {values['run']['sizes']}")
    values["augment"]["scale"] = rng.choice(
        [[0.0, 1.0], [1.0, 0.5], [float("nan"), 1.0], [0.5], [0.1, 0.2, 0.3], "x", [1e-300, 1.0], [-1, 1]]
    )
    return attempt(home, values, f"scale {values['augment']['scale']}")


@case("recipes", 2)
def no_recipe(rng: random.Random, home: Path) -> Call:
    """A file that is damaged, deep, long, or no TOML."""
    write_toml(home / "c.toml", recipe())
    data, what = damage(rng, (home / "c.toml").read_bytes())
    others = [
        b"",
        b"\xff\xfe",
        b"a = " + b"[" * 5_000 + b"]" * 5_000,
        b"a." * 20_000 + b"b = 1",
        b"[a]\n" * 3,
        b"x = " + b"9" * 50_000,
    ]
    others += [
        b"x = '" + b"y" * 3_000_000 + b"'",
        b"\0" * 100,
        "[run]\nout = '\u202e'".encode(),
        b'[run]\nout = "\\u001b[2J"\nnope = 1',
    ]
    if rng.random() < 0.6:
        data = rng.choice(others)
        what = f"{data[:20]!r}"
    (home / "c.toml").write_bytes(data)
    statuses = RIGHT if data not in others else frozenset({REFUSED})
    return Call(("train", "c.toml", "-q"), statuses, name=what)


@case("recipes", 2)
def override(rng: random.Random, home: Path) -> Call:
    """A change on the command line that cannot be."""
    write_toml(home / "c.toml", recipe())
    left = rng.choice(
        ["run.seed", "seed", "nope", "run.nope", "", "=", "run", "run.run.seed", "a" * 3_000, "\x1b[2J", "optimizer.lr"]
    )
    right = (
        toml(nasty(rng))
        if rng.random() < 0.6
        else rng.choice(["[" * 3_000, "x\nepochs = 5", "'", "\x1b[2J", "9" * 5_000])
    )
    right = right.replace("\0", "")
    return Call(("train", "c.toml", "-q", "-s", f"{left}={right}"), RIGHT, name=f"{left[:20]!r}={right[:20]!r}")
