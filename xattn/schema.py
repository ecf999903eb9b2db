"""Values from outside (parameters, headers of files, JSON) checked against annotations before anything is made of them.

A dataclass is the schema: its annotations name the types, `Annotated[int, Range(1, 1000)]` the limits, `Literal` the
choices; a function in `Annotated` is called with the value and raises if it cannot read it. What does not fit is one
line that says what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from xattn.errors import DataError, ParameterError, XattnError, unknown

T = TypeVar("T")
_MISSING = object()
_LARGEST = 2**1000  # of a whole number that is read as a float; infinity is no number unless a range allows it
_KEY_PARTS = 100  # of a key in a TOML file
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number; an open end leaves out the limit itself.

    >>> str(Range(0, 1, open_low=True)), str(Range(1)), str(Range(high=5))
    ('more than 0 and at most 1', 'at least 1', 'at most 5')
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within; NaN never does, infinity only where an end is infinite itself."""
        if math.isnan(value) or (math.isinf(value) and value not in (self.low, self.high)):
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return above and (self.high is None or (value < self.high if self.open_high else value <= self.high))

    def __str__(self) -> str:
        ends = []
        if self.low is not None:
            ends.append(f"{'more than' if self.open_low else 'at least'} {self.low:,}")
        if self.high is not None:
            ends.append(f"{'less than' if self.open_high else 'at most'} {self.high:,}")
        return " and ".join(ends) or "finite"


@dataclass(frozen=True)
class Length:
    """Smallest and largest number of characters of a text, or of items of a list or mapping."""

    low: int = 0
    high: int | None = None

    def holds(self, value: Any) -> bool:
        """Whether the length of a value lies within."""
        return self.low <= len(value) and (self.high is None or len(value) <= self.high)

    def __str__(self) -> str:
        if self.high == self.low:
            return f"of length {self.low:,}"
        most = "" if self.high is None else f"at most {self.high:,}"
        least = f"at least {self.low:,}" if self.low else ""
        return f"of length {' and '.join(filter(None, (least, most))) or 'any'}"


def check(value: Any, hint: Any, what: str, error: type[XattnError] = ParameterError) -> Any:
    """The value, if it is what the annotation says; lists become tuples where a tuple is expected.

    A bool is no number, a whole number serves as a float, numbers are finite unless a `Range` ends in infinity.

    Args:
        value: to be checked.
        hint: the annotation: a type, `Annotated` with `Range` and `Length`, `Literal`, an optional or a union, `list`,
            `tuple`, `dict`, a dataclass (made from a mapping by `build`), or `Any`.
        what: how the message calls the value, "rise: samples".
        error: class of the error.

    Raises:
        XattnError: of the class `error`.

    >>> check(3, Annotated[int, Range(1, 10)], "rise: samples")
    3
    >>> check(0, Annotated[int, Range(1, 10)], "rise: samples")
    Traceback (most recent call last):
    ...
    xattn.errors.ParameterError: rise: samples must be at least 1 and at most 10 but is 0.
    """
    result = _fit(value, hint, what, error)
    if result is _MISSING:
        raise error(f"{what} must be {expected(hint)} but is {_shown(value)}.")
    return result


def expected(hint: Any) -> str:
    """An annotation in words.

    >>> expected(Literal["sum", "mean"]), expected(int | None), expected(tuple[int, int])
    ('one of sum, mean', 'a whole number or none', 'a list of 2 items')
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        limits = [str(limit) for limit in arguments[1:] if isinstance(limit, (Range, Length))]
        kind, text = expected(arguments[0]), " and ".join(limits)
        # "at least 1" says of itself that a number is meant; the kind is told only where it decides.
        if limits and all(isinstance(a, Range) for a in arguments[1:]):
            if kind in _NUMBERS:
                return text
            if kind in (f"{number} or none" for number in _NUMBERS):
                return f"none or {text}"
        return f"{kind} {text}".strip()
    if origin is Literal:
        return f"one of {', '.join(str(a) for a in arguments)}"
    if origin in (Union, types.UnionType):
        return " or ".join(expected(a) for a in arguments)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return f"a list of {len(arguments)} items"
    return _WORDS.get(origin or hint) or str(getattr(hint, "__name__", hint))


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none", None: "none",
    list: "a list", tuple: "a list", dict: "a table", Mapping: "a table", Sequence: "a list",
}  # fmt: skip
_NUMBERS = (_WORDS[int], _WORDS[float])


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _fit(value: Any, hint: Any, what: str, error: type[XattnError]) -> Any:
    """The value as the annotation has it, or `_MISSING`; errors inside lists and tables name the place."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        if isinstance(value, float) and math.isinf(value):
            return value if any(isinstance(a, Range) and a.holds(value) for a in arguments[1:]) else _MISSING
        fitted = _fit(value, arguments[0], what, error)
        if fitted is _MISSING:
            return fitted
        for limit in arguments[1:]:
            # The limits of an optional or of a union are those of its numbers and texts.
            concerns = isinstance(fitted, (int, float)) and not isinstance(fitted, bool)
            if isinstance(limit, Length):
                concerns = isinstance(fitted, (str, list, tuple, Mapping))
            if isinstance(limit, (Range, Length)) and concerns and not limit.holds(fitted):
                return _MISSING
            if callable(limit) and fitted is not None:
                limit(fitted)
        return fitted
    if origin is Literal:
        return value if any(value == a and type(value) is type(a) for a in arguments) else _MISSING
    if origin in (Union, types.UnionType):
        fits = (_fit(value, a, what, error) for a in arguments)
        return next((f for f in fits if f is not _MISSING), _MISSING)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _fit_list(value, origin or hint, arguments, what, error)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return _MISSING
        kind = arguments[1] if arguments else Any
        return {key: check(item, kind, f"{what}: {key}", error) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, what, error) if isinstance(value, Mapping) else _as_is(value, hint)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number and abs(value) < _LARGEST else _MISSING
    if hint in (int, str, bool):
        return value if type(value) is hint else _MISSING
    return _as_is(value, type(None) if hint is None else hint)


def _as_is(value: Any, hint: Any) -> Any:
    return value if not isinstance(hint, type) or isinstance(value, hint) else _MISSING


def _fit_list(value: Any, kind: Any, arguments: tuple[Any, ...], what: str, error: type[XattnError]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _MISSING
    if kind is not tuple or not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
        hints = [arguments[0] if arguments else Any] * len(value)
    elif len(arguments) != len(value):
        return _MISSING
    else:
        hints = list(arguments)
    items = [check(item, hint, f"{what}[{i}]", error) for i, (item, hint) in enumerate(zip(value, hints, strict=True))]
    return items if kind is list else tuple(items)


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Annotation of each field of a dataclass that its constructor takes, with limits."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def check_fields(instance: Any, what: str, error: type[XattnError] = ParameterError) -> None:
    """Check every field of a dataclass by its annotation, and put the fitted value in its place.

    Raises:
        XattnError: of the class `error`, for the first field that does not fit.
    """
    for name, hint in hints_of(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        fitted = check(value, hint, f"{what}: {name}", error)
        if fitted is not value:
            object.__setattr__(instance, name, fitted)


def build(kind: type[T], values: Any, what: str, error: type[XattnError] = DataError) -> T:
    """A dataclass made of a mapping that was read from a file.

    Raises:
        XattnError: of the class `error`, for a key that is unknown, missing or of the wrong kind.
    """
    if not isinstance(values, Mapping):
        raise error(f"{what} must be a table but is {_shown(values)}.")
    hints = hints_of(kind)  # type: ignore[arg-type]
    for key in values:
        if key not in hints:
            raise error(f"{what}: {unknown('key', str(key)[:_SHOWN], hints)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {}
    for name, hint in hints.items():
        if name in values:
            given[name] = check(values[name], hint, f"{what}: {name}", error)
        elif fields[name].default is fields[name].default_factory is dataclasses.MISSING:
            raise error(f"{what}: '{name}' is missing.")
    return kind(**given)


def read_json(
    text: str | bytes,
    what: str,
    *,
    max_bytes: int = 2**20,
    max_depth: int = 20,
    error: type[XattnError] = DataError,
) -> Any:
    """What a JSON text says, if it is of bounded size and depth and its numbers are finite.

    Args:
        text: UTF-8 where it is bytes.
        what: how the message calls it.
        max_bytes: largest length of the text.
        max_depth: how deep lists and tables may lie in each other.
        error: class of the error.

    Raises:
        XattnError: of the class `error`.

    >>> read_json('{"a": [1, 2.5]}', "header")
    {'a': [1, 2.5]}
    """
    if len(text) > max_bytes:
        raise error(f"{what} is {len(text):,} bytes long, more than the {max_bytes:,} that are read.")
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as reason:
        raise error(f"{what} is not UTF-8 text ({reason.reason}).") from None
    if _depth(plain) > max_depth:
        raise error(f"{what} is nested more than {max_depth} levels deep.")

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(plain, parse_constant=refuse)
    except ValueError as reason:  # a number of thousands of digits among them
        raise error(f"{what} is not JSON ({reason}).") from None


def finite(value: Any) -> Any:
    """Plain values for JSON: numbers that are not finite become None.

    >>> finite({"a": (1, float("nan"))})
    {'a': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_toml(text: str) -> dict[str, Any]:
    """Values of a TOML file of bounded size.

    Raises:
        ValueError: if it is no TOML, or has a key of hundreds of parts, which takes the parser gigabytes.

    >>> read_toml("run.batch = 7")
    {'run': {'batch': 7}}
    """
    if any(piece[0].count(".") > _KEY_PARTS for piece in re.finditer(r"[^=,\[\]{}\n]+", text)):
        raise ValueError(f"a key of more than {_KEY_PARTS} parts")
    return tomllib.loads(text)


def toml(value: Any) -> str:
    """A value as TOML; text is quoted, so that a folder called 2024 stays text.

    >>> toml(("a", 1)), toml({"name": "road", "limit": 20}), toml(True)
    ('["a", 1]', '{ name = "road", limit = 20 }', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(v)}' for key, v in value.items())} }}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(toml(v) for v in value)}]"
    return repr(value)


def _depth(text: str) -> int:
    """How deep brackets lie in each other in a JSON text, those in strings left out."""
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
