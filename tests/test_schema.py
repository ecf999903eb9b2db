"""What comes from outside is what its annotation says, or one line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from xattn.errors import DataError, ParameterError
from xattn.schema import Length, Range, build, check, check_fields, read_json, read_toml

Count = Annotated[int, Range(1, 10)]


@dataclass(frozen=True)
class Inner:
    size: tuple[Count, Count] = (1, 1)


@dataclass(frozen=True)
class Outer:
    name: Annotated[str, Length(1, 5)]
    share: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    mode: Literal["sum", "mean"] = "sum"
    count: Annotated[int | None, Range(1, 10)] = None
    inner: Inner | None = None
    names: Annotated[tuple[str, ...], Length(0, 2)] = ()
    table: dict[str, float] = field(default_factory=dict)


GOOD: list[tuple[Any, Any, Any]] = [
    (3, int, 3), (3, float, 3.0), (0.5, Annotated[float, Range(0, 1)], 0.5), ([1, 2], tuple[int, int], (1, 2)),
    (None, int | None, None), ("sum", Literal["sum"], "sum"), ({"a": 1}, dict[str, float], {"a": 1.0}),
    (math.inf, Annotated[float, Range(0, math.inf)], math.inf), (object, Any, object), (True, bool, True),
]  # fmt: skip
BAD: list[tuple[Any, Any]] = [
    (True, int), (1.0, int), ("1", int), (None, int), (True, float), (math.nan, Annotated[float, Range()]),
    (math.inf, Annotated[float, Range(0)]), (10**400, float), (math.inf, float), (math.nan, float), (0, Count),
    (11, Count), (10**30, Count), ([1], tuple[int, int]),
    ("abc", tuple[str, ...]), ("max", Literal["sum"]), (0, Annotated[float, Range(0, 1, open_low=True)]),
    (11, Annotated[int | None, Range(1, 10)]), ("abcdef", Annotated[str, Length(1, 5)]), ({1: 2}, dict[str, int]),
    ({"a": "b"}, dict[str, float]), (1, bool),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "result"), GOOD, ids=str)
def test_a_value_that_fits(value: Any, hint: Any, result: Any) -> None:
    fitted = check(value, hint, "x")
    assert fitted == result
    assert type(fitted) is type(result)


@pytest.mark.parametrize(("value", "hint"), BAD, ids=str)
def test_a_value_that_does_not_fit_is_one_short_line(value: Any, hint: Any) -> None:
    with pytest.raises(ParameterError, match=r"^x.* but is ") as caught:
        check(value, hint, "x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_table_becomes_a_dataclass() -> None:
    built = build(Outer, {"name": "a", "share": 1, "inner": {"size": [2, 3]}, "names": ["b"], "count": 4}, "header")
    assert built == Outer("a", 1.0, "sum", 4, Inner((2, 3)), ("b",), {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "header: 'name' is missing"),
        ({"name": "a", "shrae": 1}, "unknown key 'shrae'. Did you mean 'share'"),
        ({"name": "a", "inner": {"size": [2, 99]}}, r"header: inner: size\[1\] must be at least 1 and at most 10 but"),
        ({"name": "a", "inner": 3}, "header: inner must be Inner or none but is 3"),
        ({"name": "a", "names": ["a", "b", "c"]}, "header: names must be a list of length at most 2"),
        ([], "header must be a table but is a list"),
    ],
)  # fmt: skip
def test_what_a_table_lacks_or_has_too_much(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(Outer, values, "header")


def test_fields_are_fitted_in_place() -> None:
    given = Outer("a", 1, names=["b"])  # type: ignore[arg-type]
    check_fields(given, "outer")
    assert given.share == 1.0
    assert given.names == ("b",)
    with pytest.raises(ParameterError, match="outer: mode must be one of sum, mean but is 'max'"):
        check_fields(Outer("a", mode="max"), "outer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 20"),
        ('{"a": NaN}', "not JSON"),
        ("1" * 10_000, "not JSON"),
        (b"\xff", "not UTF-8"),
        ("[" + "1," * 2**20 + "1]", "more than the 1,048,576"),
        ("{", "not JSON"),
    ],
)
def test_json_is_bounded(text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_json(text, "header")


def test_brackets_in_strings_have_no_depth() -> None:
    assert read_json('{"a": "' + "[" * 50 + '\\"{"}', "header") == {"a": "[" * 50 + '"{'}


@pytest.mark.parametrize("key", ["a." * 20_000 + "b", "a . " * 500 + "b"])
@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "x = {{{} = 1}}"])
def test_keys_of_toml_are_bounded(key: str, form: str) -> None:
    with pytest.raises(ValueError, match="more than 100 parts"):
        read_toml(form.format(key))
