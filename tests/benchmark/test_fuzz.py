"""Configurations, manifests and costs with any value changed are read, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.runs import SMALL, made_up
from xattn.benchmark.config import Config
from xattn.benchmark.store import Store
from xattn.errors import DataError, ParameterError

TRIES = 300
NASTY: list[Any] = [
    None, True, 0, -1, 2**31, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\x00\x1b[31m\n", "²",
    "../..", "os:abort", "[/bold]", [], {}, [[]], {"a": {"b": {}}}, ["x"] * 5000, {str(i): i for i in range(5000)},
    "\udcff",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values lie in nested lists and tables."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutants(value: Any, seed: int) -> Iterator[Any]:
    """The value with something in it replaced, removed, added or nested deeply."""
    rng = random.Random(seed)
    spots = [path for path in places(value) if path]
    for _ in range(TRIES):
        changed = copy.deepcopy(value)
        *way, last = rng.choice(spots)
        inner = changed
        for key in way:
            inner = inner[key]
        kind = rng.randrange(6)
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, dict):
            inner[rng.choice(["import", "__class__", "x" * 5000, ""])] = rng.choice(NASTY)
        elif kind == 2:
            deep: Any = 1
            for _ in range(rng.choice([3, 300])):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            inner[last] = deep
        else:
            inner[last] = rng.choice(NASTY)
        yield changed


def test_configurations() -> None:
    refused = 0
    for values in mutants(copy.deepcopy(SMALL), 0):
        try:
            assert isinstance(Config.build(values), Config)
        except ParameterError:
            refused += 1
    assert refused > TRIES // 2


@pytest.mark.parametrize("name", ["manifest", "costs"])
def test_files_of_a_result_folder(tmp_path: Path, name: str) -> None:
    store = Store(made_up(tmp_path, images=2, metrics=["sparsity"]))
    path = store.manifest if name == "manifest" else store.costs("shapes", "cnn")
    values = json.loads(path.read_text())
    assert values.pop("digest")
    refused = []
    for changed in mutants(values, 0):
        path.write_text(json.dumps(changed))
        try:
            _ = store.read_manifest() if name == "manifest" else store.read_costs("shapes", "cnn")
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > TRIES // 2
    assert all("\n" not in text and len(text) < 1000 for text in refused)
