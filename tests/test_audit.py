"""The page of the audit says what its rows hold, and the rows hold what is promised."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def module(name: str) -> ModuleType:
    """A module beside the audit, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"audit_{name}", ROOT / "benchmarks" / "models" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # its dataclasses look themselves up
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return json.loads((ROOT / "benchmarks" / "models" / "audit.json").read_text(encoding="utf-8"))


def test_the_page_is_that_of_the_rows(rows: list[dict[str, Any]]) -> None:
    names = [architecture.name for architecture in module("catalogue").architectures()]
    assert len(set(names)) == len(names)
    known = {row["name"] for row in rows}
    unaudited = [name for name in names if name not in known]
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    laws = module("page").load_laws()
    assert page == module("page").written([row for row in rows if row["name"] in names], unaudited, laws)


def test_no_map_is_wrong_under_ok_and_nearly_all_networks_are_explained(rows: list[dict[str, Any]]) -> None:
    page = module("page")
    built = [row for row in rows if "unbuilt" not in row]
    assert len(built) >= 200
    assert [row["name"] for row in built if page.wrong(row)] == []
    assert sum(map(page.served, built)) / len(built) >= 0.95


def test_the_laws_hold() -> None:
    page = module("page")
    laws = page.load_laws()
    assert len({row["family"] for row in laws if "family" in row}) >= 60
    assert {row["name"]: broken for row in laws if (broken := page.broken(row))} == {}


def test_a_law_that_is_broken_would_be_counted() -> None:
    page = module("page")
    row = {"status": ["ok"], "images": True, "repetition": True, "places": True, "layout": "proved", "refusals": [],
           "corners": "see everything"}  # fmt: skip
    assert page.broken(row) == []
    for changed in ({"images": False}, {"repetition": False}, {"refusals": ["gradcam: …"]},
                    {"places": False, "places, features": False}):  # fmt: skip
        assert len(page.broken(row | changed)) == 1
        assert page.broken(row | changed | {"status": ["not repeatable"]}) == []


def test_a_wrong_map_would_be_counted() -> None:
    page = module("page")
    right = {"status": ["ok"], "gradcam": "equal", "corners": "right", "attention": True, "relevance": "rollout"}
    assert page.served(right)
    assert not page.wrong(right)
    for changed in ({"gradcam": "different"}, {"corners": "wrong [1, 0, 2, 3]"}):
        assert page.wrong(right | changed)
        assert not page.served(right | changed)
    assert not page.wrong(right | {"gradcam": "different", "status": ["not repeatable"]})
    assert not page.served(right | {"relevance": None})
    assert not page.served(right | {"gradcam": "refused"})
