"""Names of files that are hard to print, to write or to follow."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.robustness import stock
from benchmarks.robustness.cases import REFUSED, SOME_FAILED, Call, Outcome, case
from benchmarks.robustness.images import pictures

TAIL = ("-m", "gradcam", "--model", "tiny-cnn", "--out", "out")
WELL = frozenset({0})
HARD = (
    b"a\rb",
    b"a\nb",
    b"a\tb",
    b"a\x1b]0;owned\x07",
    b"\x1b[31mred\x1b[0m",
    b"a\x07",
    b"a\x7f",
    "a\u202egnp".encode(),
    "\u2066a\u2069".encode(),
    "\u200f".encode(),
    b"\xe9\xe9\xe9",
    b"\xe9" * 200,
    b"\xff\xfe",
    b"x" * 251,
    b"x" * 245,
    "ü".encode() * 125,
    "日本".encode() * 40,
    b"[bold]a[red]",
    b"[bold][",
    b"$\\frac{$",
    b"-m",
    b"--out",
    b"~",
    b"%s%n",
    b"a:b",
    b"CON",
    b" ",
    b"a*b?[c]",
    b"<script>alert(1)",
    b"\"'&lt;",
    b"=cmd()",
    "e\u0301".encode(),
    b"a\\b",
    b"a;b|c",
)


def all_there(count: int) -> Callable[[Path, Outcome], str]:
    """Every image has its picture, or is counted among the failed."""

    def check(home: Path, outcome: Outcome) -> str:
        failed = len(re.findall(r"^xattn: (?!warning)", outcome.stderr, re.M))
        found = pictures(home)
        return (
            "" if found + failed >= count else f"SILENT LOSS: {found} pictures and {failed} errors for {count} images"
        )

    return check


def copy(home: Path, name: bytes, number: int = 0) -> None:
    """Write a photograph under any name."""
    (home / os.fsdecode(name)).write_bytes((stock.folder() / f"photo-{number}.jpg").read_bytes())


@case("names", 8)
def hard(rng: random.Random, home: Path) -> Call:
    """One name that is hard to print, by itself, in a folder or compared."""
    name = rng.choice(HARD) + b".jpg"
    (home / "p").mkdir()
    copy(home / "p", name)
    how = rng.choice(["folder", "file", "compare", "json"])
    if how == "compare":
        return Call(("compare", "p", *TAIL[:4], "--no-curves", "--out", "page.html"), WELL, name=f"compare {name!r}")
    path = "p" if how != "file" else f"p/{os.fsdecode(name)}"
    extra = ("--json",) if how == "json" else ()
    return Call(("explain", path, *TAIL, *extra), WELL, all_there(1), name=f"{how} {name!r}")


@case("names", 2)
def hard_and_bad(rng: random.Random, home: Path) -> Call:
    """A name that is hard to print, of a file that is no image."""
    name = rng.choice(HARD) + b".jpg"
    (home / "p").mkdir()
    (home / "p" / os.fsdecode(name)).write_bytes(b"no picture")
    stock.photograph(home / "p")
    return Call(("explain", "p", *TAIL), frozenset({SOME_FAILED}), name=f"{name!r}")


@case("names", 2)
def hard_folder(rng: random.Random, home: Path) -> Call:
    """A hard name of a folder of images, or of the output."""
    name = rng.choice([n for n in HARD if n not in (b"-m", b"--out")])
    text = os.fsdecode(name)
    if rng.random() < 0.5:
        (home / text).mkdir()
        copy(home / text, b"a.jpg")
        return Call(("explain", f"./{text}", *TAIL), WELL, all_there(1), name=f"folder {name!r}")
    stock.photograph(home)
    return Call(("explain", "photo.jpg", *TAIL[:4], "--out", f"./{text}"), WELL, name=f"out {name!r}")


@case("names")
def missing(rng: random.Random, home: Path) -> Call:
    """A path that is not there, hard to print or long."""
    name = rng.choice(["x" * 5_000, "a/" * 2_500, os.fsdecode(rng.choice(HARD)) + ".jpg", "x" * 100_000, "a\0b", "\0"])
    word = rng.choice(["explain", "compare"])
    return Call(
        (word, "./" + name, "-m", "gradcam", "--model", "tiny-cnn"), frozenset({REFUSED}), name=f"{word} {name[:20]!r}"
    )


@case("names", 2)
def collisions(rng: random.Random, home: Path) -> Call:
    """Names that become one when endings or folders are left out, or when written on other systems."""
    sets = [
        ["a.jpg", "a.jpeg", "a.JPG"],
        ["x/a.jpg", "y/a.jpg", "x_a.jpg", "x-a.jpg"],
        ["a.jpg", "a-gradcam.jpg", "a_gradcam.jpg"],
        ["A.jpg", "a.jpg"],
        ["é.jpg", "e\u0301.jpg"],
        ["a b.jpg", "a_b.jpg", "a-b.jpg"],
        ["a/b.jpg", "a_b.jpg", "a-b.jpg", "a__b.jpg"],
        ["a.jpg", "a-1.jpg", "a-2.jpg", "x/a.jpg", "y/a.jpg", "z/a.jpg"],
        ["a:b.jpg", "a_b.jpg"],
        ["a.jpg", "a..jpg", "a .jpg", ".a.jpg"],
        ["x/a.jpg", "x/a.jpeg", "y/a.jpg", "a.jpg", "a-x.jpg", "x.a.jpg"],
        ["x" * 240 + "1.jpg", "x" * 240 + "2.jpg"],
    ]
    names = rng.choice(sets)
    for number, name in enumerate(names):
        (home / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(home / "p", name.encode(), number % 4)
    seen = [n for n in names if not n.startswith(".")]
    sources = ("p",) if rng.random() < 0.6 else tuple(f"p/{name}" for name in seen)
    sources = ("p/**/*",) if sources == ("p",) and any("/" in n for n in names) else sources
    save = ("--save-maps",) if rng.random() < 0.5 else ()
    return Call(("explain", *sources, *TAIL, *save), WELL, all_there(len(seen)), name=" ".join(n[-20:] for n in names))


@case("names", 2)
def links(rng: random.Random, home: Path) -> Call:
    """Links that go nowhere, round in circles, or to a device, and files that are none."""
    (home / "p").mkdir()
    stock.photograph(home / "p")
    what = rng.choice(["loop", "folder loop", "nowhere", "zero", "fifo", "deep", "socket", "absent name"])
    bad = home / "p" / "bad.jpg"
    if what == "loop":
        bad.symlink_to("bad.jpg")
    elif what == "folder loop":
        (home / "p" / "again").symlink_to("../p")
        bad.symlink_to("bad.jpg")
    elif what == "nowhere":
        bad.symlink_to("nowhere.jpg")
    elif what == "zero":
        bad.symlink_to("/dev/zero")
    elif what == "fifo":
        os.mkfifo(bad)
    elif what == "deep":
        deepest = home / "p" / "/".join(["d"] * 300)
        deepest.mkdir(parents=True)
        stock.photograph(deepest)
    elif what == "socket":
        import socket

        os.chdir(home / "p")
        socket.socket(socket.AF_UNIX).bind("bad.jpg")
        os.chdir(home)
    source = rng.choice(["p", "p/bad.jpg", "p/**/*.jpg"])
    statuses = frozenset({REFUSED}) if source == "p/bad.jpg" else frozenset({0, SOME_FAILED})
    return Call(("explain", source, *TAIL), statuses, name=f"{what}, {source}")


@case("names")
def patterns(rng: random.Random, home: Path) -> Call:
    """Patterns that no matcher takes."""
    stock.photograph(home)
    text = rng.choice(
        ["***/x", "**", "[", "[!", "*" * 500, "a**b/*.jpg", "{a,b}.jpg", "?" * 4000, "//**//", "../" * 300 + "*.xyz"]
    )
    return Call(("explain", text, *TAIL), frozenset({0, REFUSED}), name=text[:40])
