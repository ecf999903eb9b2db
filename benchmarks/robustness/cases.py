"""What a case of bad input is, the makers of cases by kind, and values that readers do not expect.

A maker writes its files into an empty folder and returns the call to try there. It draws everything from the generator
that it is given, so that kind, seed and number repeat a case.
"""

from __future__ import annotations

import copy
import importlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CANARY = "CANARY"  # a file of this name says that something ran which was only to be read
READ, REFUSED, SOME_FAILED = 0, 2, 3
ANY = frozenset({READ, REFUSED, SOME_FAILED})


@dataclass(frozen=True)
class Outcome:
    """What a call did: exit status, and what it printed."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Call:
    """A call to try.

    Args:
        argv: arguments of `xattn`; empty for a call of the Python interface.
        statuses: exit statuses that are right.
        check: looks at the folder and the outcome; returns what is wrong with them, or "".
        env: changes of the environment.
        function: called in place of the command line; `XattnError` counts as a refusal.
        name: what is tried, for people.
    """

    argv: tuple[str, ...] = ()
    statuses: frozenset[int] = ANY
    check: Callable[[Path, Outcome], str] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    function: Callable[[], object] | None = None
    name: str = ""


Maker = Callable[[random.Random, Path], Call]
MAKERS: dict[str, list[Maker]] = {}
KINDS = (
    "images",
    "names",
    "weights",
    "recipes",
    "configurations",
    "results",
    "datasets",
    "parameters",
    "options",
    "hostile",
)


def case(kind: str, times: int = 1) -> Callable[[Maker], Maker]:
    """Register a maker; one with `times` comes so often in a round over all makers of its kind."""

    def register(maker: Maker) -> Maker:
        MAKERS.setdefault(kind, []).extend([maker] * times)
        return maker

    return register


def makers(kind: str) -> list[Maker]:
    """The makers of a kind, each as often as it comes in a round, in a fixed mixed order."""
    importlib.import_module(f"benchmarks.robustness.{kind}")
    mixed = list(MAKERS[kind])
    random.Random(kind).shuffle(mixed)
    return mixed


HOSTILE_TEXTS = (
    "",
    " ",
    "²",
    "--5",
    "x" * 5_000,
    "\x1b]0;owned\x07\x1b[2J",
    "a\rb\nc",
    "\u202egnp.exe\u2066",
    "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "[/bold][red]rich[/red] [link=file:///etc/passwd]x[/link]",
    r"$\frac{$ math $x^",
    '=HYPERLINK("http://evil/","x")',
    "<script>document.title='OWNED'</script><img src=x onerror=alert(1)>",
    "{{7*7}}{% for x in y %}",
    "../../../../tmp/escape",
    "/etc/passwd",
    "os:abort",
    "evil:build",
    "NUL\x00byte",
    "%s%n{0}{}",
    "ﷺ" * 300,
)
NUMBERS = (0, -1, 1, 10**9, 2**31, 2**63, 10**18, 99999999999999999999, 2**70, -(2**63), 0.5, 1e308, 1e-320, -0.0)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def deep(levels: int, *, objects: bool = False) -> str:
    """JSON text of lists or objects in one another."""
    return '{"a":' * levels + "1" + "}" * levels if objects else "[" * levels + "]" * levels


def nasty(rng: random.Random, *, finite: bool = False) -> Any:
    """A value of a kind that few readers expect."""
    return copy.deepcopy(
        rng.choice(
            [
                rng.choice(HOSTILE_TEXTS),
                rng.choice(NUMBERS),
                rng.choice(NUMBERS),
                rng.choice((True, False)),
                rng.choice(([], [[]], ["a", "b", "c"], [0, 0], [-5, 5], [1e9, 1e9], list(range(5000)))),
                rng.choice(({}, {"nope": 1}, {"a": {"b": {"c": []}}}, {"": ""}, {"__class__": "str"})),
                1 if finite else rng.choice((None, *NOT_FINITE)),
            ]
        )
    )


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a tree of mappings and lists has values, inner nodes too."""
    found = [before] if before else []
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        found += paths(value, (*before, key))
    return found


def _walk(rng: random.Random, tree: Any) -> list[Any]:
    """A place in a tree, near its root as often as at its leaves."""
    way: list[Any] = []
    while isinstance(tree, dict | list) and tree and (not way or rng.random() < 0.7):
        way.append(rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree))))
        tree = tree[way[-1]]
    return way


def mutate(rng: random.Random, tree: Any, *, finite: bool = False) -> tuple[Any, str]:
    """A copy of a tree with one value replaced, removed, added or repeated, and what was done."""
    tree = copy.deepcopy(tree)
    *way, last = _walk(rng, tree)
    parent = tree
    for key in way:
        parent = parent[key]
    where = ".".join(str(key) for key in (*way, last))
    what = rng.choice(("replace",) * 6 + ("remove", "add", "wrap"))
    if what == "remove":
        del parent[last]
    elif what == "add" and isinstance(parent, dict):
        parent[rng.choice(("nope", "__class__", "forward", "x" * 300, *HOSTILE_TEXTS[4:9]))] = nasty(rng, finite=finite)
    elif what == "wrap":
        parent[last] = [parent[last]]
    else:
        parent[last] = nasty(rng, finite=finite)
        return tree, f"{where} = {str(parent[last])[:60]!r}"
    return tree, f"{what} {where}"


def toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return "''" if value is None else repr(value)


def write_toml(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree as a TOML file."""
    lines = [f"{json.dumps(key)} = {toml(value)}" for key, value in tree.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def flip_bits(rng: random.Random, data: bytes, count: int = 1, start: int = 0) -> bytes:
    """Turn bits over, anywhere from `start` on."""
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.randrange(start, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A file's contents cut short, with bits turned over, with bytes left out, or with some of them again."""
    what = rng.choice(("cut", "flip", "flip many", "leave out", "repeat", "zeros"))
    place = rng.randrange(len(data))
    if what == "cut":
        return data[:place], f"cut at {place}"
    if what.startswith("flip"):
        return flip_bits(rng, data, 1 if what == "flip" else 50), what
    length = rng.randrange(1, 64)
    middle = {"leave out": b"", "repeat": data[place : place + length] * 2, "zeros": bytes(length)}[what]
    return data[:place] + middle + data[place + length :], f"{what} {length} bytes at {place}"
