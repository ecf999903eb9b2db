"""Data sets with one thing wrong: parquet files, tables and folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.robustness import stock
from benchmarks.robustness.cases import ANY, HOSTILE_TEXTS, Call, Outcome, case, damage, deep, mutate, write_toml
from benchmarks.robustness.weights import QUICK

FEATURES = {
    "info": {"features": {"label": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
}


def attempt(rng: random.Random, home: Path, name: str, statuses: frozenset[int] = ANY, source: str = "data") -> Call:
    """Benchmark, evaluate or train on the data set in the folder `data`."""
    how = rng.choice(["benchmark", "benchmark", "benchmark", "evaluate", "train"])
    if how == "evaluate":
        words = ("evaluate", str(stock.folder() / "four.safetensors"), "--data", source)
        return Call(words, statuses, name=f"evaluate {name}")
    if how == "train":
        return Call(("train", "--data", source, "--backbone", "tiny-cnn", *QUICK), statuses, name=f"train {name}")
    write_toml(home / "c.toml", stock.configuration(source, methods=["activation"], metrics=["sparsity"]))
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), statuses, name=f"benchmark {name}")


def write(
    home: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, name: str = "val.parquet"
) -> None:
    """Write both parts."""
    stock.parquet(home / "data" / "train.parquet", stock.rows(), metadata)
    stock.parquet(home / "data" / name, columns, metadata)


@case("datasets", 4)
def image_column(rng: random.Random, home: Path) -> Call:
    """Images of another type, without bytes, or damaged."""
    import pyarrow as pa

    columns = stock.rows()
    count = len(columns["image"])
    choices: dict[str, Any] = {
        "text": ["a.png"] * count,
        "number": [5] * count,
        "list": [[1, 2]] * count,
        "null": pa.nulls(count),
        "bytes null": [{"bytes": None, "path": "a.png"}] * count,
        "path number": [{"bytes": stock.encoded(i), "path": i} for i in range(count)],
        "path hard": [{"bytes": stock.encoded(i), "path": f"\x1b[2J{i}\u202e"} for i in range(count)],
        "bytes text": [{"bytes": "x", "path": "a.png"}] * count,
        "other struct": [{"data": b"x"}] * count,
        "plain bytes": [stock.encoded(i) for i in range(count)],
        "damaged": [{"bytes": damage(rng, stock.encoded(i))[0], "path": f"{i}.png"} for i in range(count)],
        "floats": [0.5] * count,
        "bool": [True] * count,
        "long": [{"bytes": b"x" * 1_000_000, "path": "y" * 100_000}] * count,
    }
    what = rng.choice(list(choices))
    columns["image"] = choices[what]
    write(home, columns)
    return attempt(rng, home, f"image {what}")


@case("datasets", 3)
def label_column(rng: random.Random, home: Path) -> Call:
    """Labels that are huge, negative, of another type, or missing."""
    import pyarrow as pa

    columns = stock.rows()
    count = len(columns["label"])
    label = rng.choice([10**12, 2**63 - 1, -1, 10**7, "cat", 1.5, True, None, [1], 2**64 - 1, 255])
    kinds = {2**64 - 1: pa.uint64()}
    values = [label] if rng.random() < 0.5 else [*columns["label"][: count - 1], label]
    try:
        columns["label"] = pa.array((values * count)[:count], kinds.get(label) if isinstance(label, int) else None)
    except (pa.ArrowException, OverflowError):
        columns["label"] = pa.array([str(v) for v in (values * count)[:count]])
    if rng.random() < 0.2:
        columns["labels"] = columns.pop("label")
    write(home, columns)
    return attempt(rng, home, f"label {label!r}")


@case("datasets", 2)
def box_column(rng: random.Random, home: Path) -> Call:
    """Boxes that are none."""
    columns = stock.rows()
    box = rng.choice(
        [
            [1, 2, 3],
            "x",
            5,
            [],
            None,
            [30, 30, 5, 5],
            [-9, -9, 99, 99],
            [0, 0, 10**9, 10**9],
            [1e308] * 4,
            [float("nan")] * 4,
            [[1, 2, 3, 4]],
            [0] * 40_000,
            [True] * 4,
            ["a"] * 4,
            {"x": 1},
        ]
    )
    columns["box"] = [box] * len(columns["box"])
    write(home, columns)
    call = attempt(rng, home, f"box {str(box)[:30]}")
    if call.argv[0] == "benchmark":
        write_toml(home / "c.toml", stock.configuration("data", methods=["activation"], metrics=["pointing_game"]))
    return call


@case("datasets", 3)
def features(rng: random.Random, home: Path) -> Call:
    """The metadata that Hugging Face writes, changed."""
    if rng.random() < 0.6:
        values, what = mutate(rng, FEATURES)
        text = json.dumps(values)
    else:
        text = rng.choice(
            [
                "[]",
                "null",
                "5",
                "{",
                deep(100_000),
                deep(100_000, objects=True),
                '{"info": []}',
                '{"info": null}',
                '{"info": {"features": {"label": {"names": null}}}}',
                '{"info": {"features": {"label": {"names": "abcd"}}}}',
                '{"a": ' + "9" * 5_000 + "}",
                '{"info": {"features": {"label": {"names": [1, null, {}]}}}}',
            ]
        )
        what = text[:40]
    write(home, stock.rows(), {"huggingface": text})
    return attempt(rng, home, f"huggingface {what}")


@case("datasets", 2)
def class_names(rng: random.Random, home: Path) -> Call:
    """`classes.csv` that is damaged, huge or hostile."""
    write(home, stock.rows())
    text = rng.choice(
        [
            "label,name\n1000000000000,x\n",
            "label,name\n999999999,x\n",
            "label,name\nx,y\n",
            "label,name\n-1,y\n",
            "",
            "a,b\n1,2\n",
            "label,name\n0," + "x" * 200_000 + "\n",
            "label,name\n" + "".join(f"{i},n{i}\n" for i in range(200_000)),
            "label\n0\n",
            "\0",
            "label,name\n0,\x1b[2J\n1,=cmd()\n2,[/bold]\n3,<script>\n",
            'label,name\n0,"open\n',
            "label,name\n²,x\n",
            "label,name\n" + "9" * 5_000 + ",x\n",
            "label,name\n0,a\n0,b\n",
        ]
    )
    data = text.encode() if rng.random() < 0.9 else b"label,name\n0,\xff\xfe\n"
    (home / "data" / "classes.csv").write_bytes(data)
    return attempt(rng, home, f"classes.csv {data[:40]!r}")


@case("datasets", 3)
def damaged(rng: random.Random, home: Path) -> Call:
    """A parquet file with its bytes damaged: never the training part in its place."""
    write(home, stock.rows())
    path = home / "data" / "val.parquet"
    data, what = damage(rng, path.read_bytes())
    path.write_bytes(rng.choice([data, data, data, b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1"]))
    return attempt(rng, home, f"parquet {what}")


@case("datasets", 2)
def no_validation(rng: random.Random, home: Path) -> Call:
    """A validation part that is no parquet file at all is an error."""
    write(home, stock.rows())
    path = home / "data" / "val.parquet"
    path.write_bytes(rng.choice([path.read_bytes()[:200], b"", b"x" * 500, path.read_bytes()[:-30]]))
    write_toml(home / "c.toml", stock.configuration("data", methods=["activation"], metrics=["sparsity"]))
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), frozenset({2}), name="validation part damaged")


@case("datasets", 2)
def shards(rng: random.Random, home: Path) -> Call:
    """Files that name parts which are not there, or other columns."""
    stock.parquet(home / "data" / "train.parquet", stock.rows())
    of = rng.choice(
        ["00000-of-00000", "00001-of-00001", "00000-of-99999", "0-of-1", "00000-of-" + "9" * 30, "00005-of-00002"]
    )
    stock.parquet(home / "data" / f"val-{of}.parquet", stock.rows())
    if rng.random() < 0.3:
        stock.parquet(home / "data" / "val-00001-of-00002.parquet", {"other": [1]})
    return attempt(rng, home, f"shards {of[:20]}")


@case("datasets", 2)
def repeated(rng: random.Random, home: Path) -> Call:
    """Rows that share a path, or have none, are different images."""
    columns = stock.rows()
    path = rng.choice(["image.png", "", None, "\x1b[2J", "a/b.png"])
    columns["image"] = [{"bytes": stock.encoded(i), "path": path} for i in range(len(columns["label"]))]
    write(home, columns)
    write_toml(home / "c.toml", stock.configuration("data", methods=["activation"], metrics=["sparsity"]))
    return Call(("benchmark", "c.toml", "--out", "run", "-q"), frozenset({0}), two_images, name=f"path {path!r}")


def two_images(home: Path, outcome: Outcome) -> str:
    """Both images of the sample have rows of their own."""
    import pyarrow.parquet as pq

    parts = [pq.read_table(path, partitioning=None) for path in (home / "run").glob("parts/*/block-*.parquet")]
    images = {image for table in parts for image in table["image"].to_pylist()}
    return "" if len(images) == 2 else f"SILENT LOSS: {len(images)} of 2 images"


@case("datasets", 3)
def folders(rng: random.Random, home: Path) -> Call:
    """Folders of classes with hard names, odd files, loops, or nothing inside."""
    what = rng.choice(["hard", "empty", "bytes", "loop", "one", "text", "mixed", "parts"])
    names = {
        "hard": ["\x1b[2J", "[red]", "$\\frac{$", "=cmd()"],
        "one": ["a"],
        "bytes": [b"\xe9\xff", b"\xe9", b"c", b"d"],
    }
    data = home / "data"
    data.mkdir()
    for number, name in enumerate(names.get(what, ["a", "b", "c", "d"])):
        inner = data / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
        inner.mkdir()
        for image in range(0 if what == "empty" else 2):
            path = inner / ("\udce9.png" if what == "bytes" else f"{image}.png")
            path.write_bytes(b"text" if what == "text" or (what == "mixed" and image) else stock.encoded(number))
    if what == "loop":
        (data / "e").symlink_to(".")
        (data / "a" / "l.png").symlink_to("l.png")
    if what == "parts":
        (data / "train").mkdir()
        (data / "val").mkdir()
    return attempt(rng, home, f"folders {what}")


@case("datasets", 2)
def sources(rng: random.Random, home: Path) -> Call:
    """Texts that name no data set, or one with parameters that it cannot have."""
    names = [
        "csv:data,table=x",
        "csv:data",
        "parquet:",
        ":",
        "nope:data",
        "synthetic:",
        "parquet:data,cache_mb=-1",
        "parquet:data,cache_mb=x",
        "synthetic:length=9999999999999",
        "parquet:data,split=nope",
        "parquet:data,image=nope",
        "parquet:data,label=\x1b[2J",
        "/dev/null",
        "folder:/proc/self",
        "csv:data,class_count=10000000000",
    ]
    write(home, stock.rows())
    (home / "data" / "x.csv").write_text("path,label\n/etc/passwd,0\n../../x.png,1\n")
    source = rng.choice([*names, *HOSTILE_TEXTS])
    return attempt(rng, home, f"source {source[:40]!r}", ANY, source)
