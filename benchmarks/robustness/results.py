"""Result folders of a benchmark with one thing wrong, read by a report and by a benchmark that goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from benchmarks.robustness import stock
from benchmarks.robustness.cases import (
    ANY,
    HOSTILE_TEXTS,
    NOT_FINITE,
    REFUSED,
    Call,
    Outcome,
    case,
    damage,
    deep,
    flip_bits,
    mutate,
    nasty,
    write_toml,
)  # fmt: skip

RIGHT = ANY - {3}
PAYLOADS = ("<script>document.title='OWNED'", "<img src=x onerror")


def copied(home: Path) -> Path:
    """A copy of the good result folder, with the configuration that it came of."""
    shutil.copytree(stock.folder() / "run", home / "run")
    shutil.copy(stock.folder() / "c.toml", home / "c.toml")
    return home / "run"


def attempt(rng: random.Random, home: Path, name: str, statuses: frozenset[int] = RIGHT, check: Any = None) -> Call:
    """Report the folder, or go on with the benchmark."""
    if rng.random() < 0.65:
        return Call(("report", "run", "--out", "rep", *stock.BRIEF), statuses, check or harmless, name=name)
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), ANY, inside, name=f"resume {name}")


def inside(home: Path, outcome: Outcome) -> str:
    """Nothing was written outside of the folders of the case."""
    others = {path.name for path in home.iterdir()} - {"run", "rep", "c.toml", "target", "more.parquet"}
    return f"wrote {sorted(others)}" if others else ""


def harmless(home: Path, outcome: Outcome) -> str:
    """No page of the report, and no table, holds what a browser or a spreadsheet would run."""
    for path in (home / "rep").rglob("*"):
        if path.suffix in (".html", ".svg", ".md"):
            text = path.read_text("utf-8", "replace")
            if found := [p for p in PAYLOADS if p in text]:
                return f"{path.name} holds {found[0]}"
        if path.suffix == ".csv" and any(
            cell.lstrip('"').startswith("=HYP")
            for line in path.read_text("utf-8").splitlines()
            for cell in line.split(",")
        ):
            return f"{path.name} holds a formula"
    return inside(home, outcome)


def tables_of(home: Path) -> dict[str, bytes]:
    """All tables that a report wrote."""
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*.csv"))}


def same_tables(home: Path, outcome: Outcome) -> str:
    """The report's tables are those of the undamaged folder, or there are none."""
    if outcome.status != 0:
        return ""
    return "" if tables_of(home / "rep") == tables_of(stock.folder() / "report") else "ANOTHER TABLE, silently"


def part(rng: random.Random, run: Path) -> Path:
    """One of the part files."""
    return rng.choice(sorted(run.glob("parts/*/block-*.parquet")))


@case("results", 6)
def one_bit(rng: random.Random, home: Path) -> Call:
    """One bit of a part file or the manifest turned over: noticed, or without effect."""
    run = copied(home)
    files = sorted(run.glob("parts/*/block-*.parquet")) * 3 + [run / "manifest.json"]
    path = rng.choice(files)
    path.write_bytes(flip_bits(rng, path.read_bytes()))
    words = ("report", "run", "--out", "rep", *stock.BRIEF)
    return Call(words, RIGHT, same_tables, name=f"one bit of {path.name}")


@case("results", 3)
def manifest(rng: random.Random, home: Path) -> Call:
    """The manifest with one value replaced, removed or added."""
    run = copied(home)
    values, what = mutate(rng, json.loads((run / "manifest.json").read_text()))
    (run / "manifest.json").write_text(stock.signed(values))
    return attempt(rng, home, f"manifest {what}")


@case("results", 2)
def json_text(rng: random.Random, home: Path) -> Call:
    """The manifest or the costs are no JSON, deep, long, a list, a folder or a pipe."""
    run = copied(home)
    path = run / "manifest.json" if rng.random() < 0.6 else costs_file(run)
    kind = rng.choice(["text", "text", "text", "folder", "pipe", "link", "damage"])
    good = path.read_bytes()
    path.unlink()
    text = rng.choice(
        [
            "",
            "[]",
            "null",
            "5",
            '"x"',
            "{",
            deep(100_000),
            deep(100_000, objects=True),
            "9" * 5_000,
            "NaN",
            "{}",
            "\ud800",
        ]
    )
    if kind == "text":
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(damage(rng, good)[0])
    return attempt(rng, home, f"{path.name} {kind} {text[:10] if kind == 'text' else ''}")


def costs_file(run: Path) -> Path:
    """The costs, where they are kept; made by hand if the benchmark measured none."""
    found = sorted((run / "costs").glob("*.json"))
    if found:
        return found[0]
    cell = next((run / "parts").iterdir()).name
    (run / "costs").mkdir(exist_ok=True)
    one = {"seconds": 0.01, "forwards": 1.0, "backwards": 1.0, "peak_mb": None}
    about = {"dataset": "shapes", "model": "tiny-cnn", "threads": 1, "device": "cpu", "digest": ""}
    path = run / "costs" / f"{cell}.json"
    path.write_text(stock.signed({**about, "methods": {"gradcam": one, "activation": dict(one)}}))
    return path


@case("results", 3)
def costs(rng: random.Random, home: Path) -> Call:
    """The costs with one value replaced, removed or added."""
    path = costs_file(copied(home))
    values = json.loads(path.read_text())
    if rng.random() < 0.4 and isinstance(values.get("methods"), dict) and values["methods"]:
        method = rng.choice(list(values["methods"]))
        values["methods"][method] = {"seconds": rng.choice([nasty(rng), "x", None, -1, 1e308, {}])}
        what = f"{method} {values['methods'][method]!r}"
    else:
        values, what = mutate(rng, values)
    path.write_text(stock.signed(values))
    return attempt(rng, home, f"costs {what[:60]}")


@case("results", 3)
def footer(rng: random.Random, home: Path) -> Call:
    """What a part says of itself, with one value replaced."""
    import pyarrow.parquet as pq

    run = copied(home)
    path = part(rng, run)
    table = pq.read_table(path, partitioning=None)
    metadata = dict(table.schema.metadata)
    key = next(iter(metadata))
    if rng.random() < 0.7:
        values, what = mutate(rng, json.loads(metadata[key]))
        metadata[key] = json.dumps(values).encode()
    else:
        texts = ["", "[]", "null", "{", deep(50_000), "9" * 5_000, '{"block": 0}', '{"block": "x", "pairs": []}']
        metadata[key], what = rng.choice(texts).encode(), "text"
    stock.write_part(path, table, metadata, old=rng.random() < 0.3)
    return attempt(rng, home, f"footer {what}")


@case("results", 4)
def columns(rng: random.Random, home: Path) -> Call:
    """The rows of a part: other types, values or texts, columns missing or more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = copied(home)
    path = part(rng, run)
    table = pq.read_table(path, partitioning=None)
    metadata = table.schema.metadata
    name = rng.choice(table.column_names)
    place = table.column_names.index(name)
    what = rng.choice(["text", "text", "number", "type", "missing", "null", "more", "empty"])
    if what == "text":
        name = rng.choice(["dataset", "model", "image", "method", "metric", "column", "note"])
        text = rng.choice([*HOSTILE_TEXTS, "x" * 3_000_000, "deletion:steps=x", "a:b:c=d", "status", ""])
        values = [text] * table.num_rows if rng.random() < 0.5 else [text, *table[name].to_pylist()[1:]]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
        what = f"text {text[:20]!r}"
    elif what == "number":
        values = [rng.choice([*NOT_FINITE, 1e308, -1e308, 5e-324]), *table["value"].to_pylist()[1:]]
        table = table.set_column(table.column_names.index("value"), "value", pa.array(values, pa.float64()))
        name, what = "value", f"{values[0]}"
    elif what == "type":
        kinds = [pa.binary(), pa.int8(), pa.float32(), pa.list_(pa.int64()), pa.bool_(), pa.date32()]
        table = table.set_column(place, name, pa.nulls(table.num_rows, rng.choice(kinds)))
    elif what == "missing":
        table = table.drop_columns([name])
    elif what == "null":
        table = table.set_column(place, name, pa.nulls(table.num_rows, table.schema.field(name).type))
    elif what == "more":
        table = table.append_column("nope", pa.array([1] * table.num_rows))
    else:
        table = table.slice(0, 0)
    stock.write_part(path, table, metadata, old=rng.random() < 0.3)
    return attempt(rng, home, f"{name} {what}")


@case("results", 2)
def strange_files(rng: random.Random, home: Path) -> Call:
    """Pipes, links, folders and leftovers where parts are."""
    run = copied(home)
    path = part(rng, run)
    what = rng.choice(
        ["pipe", "folder", "zero", "nowhere", "empty", "copy", "big number", "leftover", "text", "missing"]
    )
    other = path.with_name("block-00001-deadbeef.parquet")
    if what == "pipe":
        os.mkfifo(path.with_name("block-1.parquet"))
    elif what == "folder":
        other.mkdir()
    elif what == "zero":
        other.symlink_to("/dev/zero")
    elif what == "nowhere":
        other.symlink_to("nowhere")
    elif what == "empty":
        other.write_bytes(b"")
    elif what == "copy":
        shutil.copy(path, other)
    elif what == "big number":
        shutil.copy(path, path.with_name(f"block-{'9' * 100}-deadbeef.parquet"))
    elif what == "leftover":
        (home / "target").write_text("kept")
        path.with_name(f".{path.name}.1234").symlink_to(home / "target")
    elif what == "text":
        other.write_text("no parquet" * 99)
    else:
        path.unlink()
    return attempt(rng, home, what)


@case("results")
def no_folder(rng: random.Random, home: Path) -> Call:
    """A report of a folder that is none."""
    text = rng.choice(["nowhere", "c.toml", "\x1b[2J", "x" * 5_000, "/dev/null", "/proc/self", "", "a\0b"])
    write_toml(home / "c.toml", {})
    return Call(("report", text, *stock.BRIEF), frozenset({REFUSED}), name=text[:20])
