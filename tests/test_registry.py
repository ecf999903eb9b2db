"""Names, parameters and discovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from xattn.errors import ParameterError, UnknownNameError
from xattn.registry import Registry, canonical


@dataclass(frozen=True)
class Thing:
    size: int = 3
    mode: Literal["a", "b"] = "a"
    layer: str | None = None
    share: float = 0.5
    flag: bool = False
    grid: Literal["map", "pixels"] | int = "map"


@pytest.fixture
def registry() -> Registry[Thing]:
    things: Registry[Thing] = Registry("thing", "xattn.functional", "xattn.no_such_group")
    things.register("thing++", "other")(Thing)
    return things


@pytest.mark.parametrize("name", ["thing++", "Thing-pp", "THING_PP", "other"])
def test_names_are_forgiving(registry: Registry[Thing], name: str) -> None:
    assert registry.create(name) == Thing()
    assert name in registry


def test_aliases_are_not_listed(registry: Registry[Thing]) -> None:
    assert list(registry) == ["thing++"]


def test_parse_reads_by_type(registry: Registry[Thing]) -> None:
    assert registry.parse("other:size=4, mode=b,layer=layer3,share=0.25,flag=yes") == Thing(
        4, "b", "layer3", 0.25, True
    )
    assert registry.parse("other:layer=none") == Thing()
    assert [registry.parse(f"other:grid={value}").grid for value in ("pixels", "8")] == ["pixels", 8]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("thng++", UnknownNameError, "Did you mean 'thing\\+\\+'"),
        ("other:sise=4", UnknownNameError, "Did you mean 'size'"),
        ("other:size=x", ParameterError, "size must be int but got 'x'"),
        ("other:mode=c", ParameterError, "mode must be one of a, b but got 'c'"),
        ("other:grid=all", ParameterError, "grid must be one of map, pixels or int but got 'all'"),
        ("other:size", ParameterError, "expected parameter=value but got 'size'"),
    ],
)
def test_faults_are_told(registry: Registry[Thing], text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        registry.parse(text)


def test_a_name_used_twice_raises(registry: Registry[Thing]) -> None:
    with pytest.raises(ParameterError, match="registered twice"):
        registry.register("other")(dataclass(frozen=True)(type("Else", (), {})))


def test_canonical_keeps_plus_apart() -> None:
    assert canonical("gradcam") != canonical("gradcam++")
