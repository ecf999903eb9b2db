"""Parquet files of any content are read rightly or refused in one line, in bounded memory and time."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import copies
from xattn.data import open_dataset
from xattn.data.parquet import Parquet
from xattn.errors import DataError, XattnError

PNG = copies.encoded(9, 8, 0)
PATHS = pa.array([{"bytes": PNG, "path": p} for p in ("a.png", "b.png", "a.png")])


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        list(Parquet(root, "all"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("image", pa.array(["text"] * 3), "holds string; expected the contents of image files"),
        ("image", pa.array([1, 2, 3]), "holds int64; expected the contents"),
        ("image", pa.array([[PNG]] * 3), "holds list<.*binary>; expected the contents"),
        ("image", pa.array([{"path": "a"}] * 3), "expected the contents of image files"),
        ("image", pa.array([{"bytes": "text"}] * 3), "expected the contents of image files"),
        ("image", pa.array([{"bytes": PNG, "path": 7}] * 3), "expected the contents of image files"),
        ("box", pa.array([[1, 2, 3]] * 3), r"row 0 of .*must hold four finite numbers a box but holds \[1, 2, 3\]"),
        ("box", pa.array([[1, 2, 3, None]] * 3), "must hold four finite numbers"),
        ("box", pa.array([[1.0, 2.0, 3.0, float("nan")]] * 3), "must hold four finite numbers"),
        ("box", pa.array(["1 2 3 4"] * 3), "holds string; expected lists of numbers"),
        ("box", pa.array([5, 6, 7]), "holds int64; expected lists of numbers"),
        ("box", pa.array([["a"]] * 3), "expected lists of numbers"),
        ("mask", pa.array([[1, 0]] * 3), "column 'mask' of .* holds list<.*expected the contents of image files"),
        ("mask", pa.array([b"no image"] * 3), "the mask of 'img_0.png'"),
        ("mask", pa.array([PNG[:60]] * 3), "the mask of 'img_0.png'"),
        (
            "mask",
            pa.array([copies.encoded(8, 9, 0)] * 3),
            "the mask and the image of 'img_0.png' have other sizes: 9 x 8",
        ),
        ("label", pa.array([0, 1, 10**12]), "labels go up to 1000000000000; classes are numbered"),
        ("label", pa.array([0, 1, 2**63 - 1]), "labels go up to 9223372036854775807"),
        ("label", pa.array([0, 1, 2**64 - 1], pa.uint64()), "the labels of .* are damaged"),
        ("label", pa.array([0, -(2**63), 1]), "labels go from -9223372036854775808"),
        ("label", pa.array([0.0, 1.0, 2.0]), "holds double; expected integers"),
    ],
)
def test_columns_of_other_kinds(tmp_path: Path, column: str, values: Any, match: str) -> None:
    copies.parquet(tmp_path / "a.parquet", 3, **{column: values})
    refused(tmp_path, match)


def test_rows_of_one_path_are_different_images(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "train-0.parquet", 3, image=PATHS)
    copies.parquet(tmp_path / "train-1.parquet", 3, image=PATHS.take([0, 1, 1]).slice(0, 3))
    copies.parquet(tmp_path / "data" / "train-1.parquet", 1, image=pa.array([{"bytes": PNG, "path": "c.png"}]))
    ids = [sample.id for sample in Parquet(tmp_path)]
    assert ids == [
        *("a.png#train-0:0", "b.png#train-0:1", "a.png#train-0:2", "a.png#train-1:0", "b.png#train-1:1"),
        *("b.png#train-1:2", "c.png"),
    ]
    copies.parquet(tmp_path / "data" / "train-1.parquet", 1, image=PATHS.slice(0, 1))
    assert len({sample.id for sample in Parquet(tmp_path)}) == 7


def test_paths_that_are_empty_or_no_text(tmp_path: Path) -> None:
    raw = pa.array([b"", b"\xff\xfe.png", None])
    for kind in (pa.binary(), pa.string()):
        paths = raw if kind == pa.binary() else pa.Array.from_buffers(kind, 3, raw.buffers())  # not checked
        image = pa.StructArray.from_arrays([pa.array([PNG] * 3), paths], ["bytes", "path"])
        copies.parquet(tmp_path / "a.parquet", 3, image=image)
        assert [s.id for s in Parquet(tmp_path, "all")] == ["a:0", "\ufffd\ufffd.png", "a:2"]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train-00000-of-00000"], "1 of 0 files"),
        (["train-00000-of-99999999999"], "1 of 99999999999 files .* number 1 is missing"),
        (["train-00005-of-00001"], "number 0 is missing"),
        (["train-00000-of-00001", "train-00000-of-00002"], "1 of 2 files"),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, names: list[str], match: str) -> None:
    for name in names:
        copies.parquet(tmp_path / f"{name}.parquet", 2)
    with pytest.raises(DataError, match=match):
        Parquet(tmp_path)


def write_metadata(path: Path, text: str) -> None:
    copies.parquet(path, 3)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": text}), path)


@pytest.mark.parametrize(
    "text",
    [
        "[]", "no json", "[" * 100_000, '{"info": []}', '{"info": {"features": null}}', '{"info": {"features": []}}',
        '{"info": {"features": {"label": []}}}', '{"info": {"features": {"label": {"names": null}}}}', "NaN",
        '{"info": {"features": {"label": {"names": [1, 2]}}}}', '{"info": {"features": {"label": {"names": "abc"}}}}',
    ],
)  # fmt: skip
def test_metadata_of_other_kinds(tmp_path: Path, text: str) -> None:
    write_metadata(tmp_path / "a.parquet", text)
    refused(tmp_path, "metadata 'huggingface'")


def test_metadata_that_says_nothing_of_classes(tmp_path: Path) -> None:
    for value in ({}, {"info": {}}, {"info": {"features": {}}}, {"info": {"features": {"label": {"dtype": "int64"}}}}):
        write_metadata(tmp_path / "a.parquet", json.dumps(value))
        assert Parquet(tmp_path, "all").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("label,name\n1000000000,a\n", "line 2 .*classes are numbered from 0 on"),
        ("label,name\n0," + "x" * 200_000 + "\n", "field larger"),
        ("label,name\nzero,a\n", "line 2 .*'zero', expected the number"),
        ("label,name\n\u00b2,a\n", "line 2 .*expected the number"),
        ("label,name\n" + "9" * 5000 + ",a\n", "classes are numbered"),
        ("number,title\n0,a\n", "must have columns label and name but has number, title"),
        ("", "must have columns"),
    ],
)
def test_lists_of_classes(tmp_path: Path, text: str, match: str) -> None:
    copies.parquet(tmp_path / "a.parquet", 3)
    (tmp_path / "classes.csv").write_text(text, encoding="utf-8")
    refused(tmp_path, match)


def test_lists_that_are_no_text_or_no_file(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "a.parquet", 3)
    (tmp_path / "classes.csv").write_bytes(b"label,name\n0,\xff\n")
    refused(tmp_path, "not UTF-8 text")
    (tmp_path / "classes.csv").unlink()
    os.mkfifo(tmp_path / "classes.csv")
    refused(tmp_path, "no regular file")
    (tmp_path / "classes.csv").unlink()
    os.mkfifo(tmp_path / "b.parquet")
    refused(tmp_path, "no regular file")
    for text in (tmp_path / "b.parquet", f"parquet:{tmp_path / 'b.parquet'}"):
        with pytest.raises(XattnError):
            open_dataset(text)


def test_few_bytes_that_become_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, large = tmp_path / "a.parquet", PNG + bytes(2**16)
    pq.write_table(pa.table({"image": [large] * 4000, "label": [0] * 4000}), path)  # one value, kept once in the file
    assert path.stat().st_size < 1e5
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size < 2**20  # nor does the footer tell
    monkeypatch.setattr("xattn.data.parquet.GROUP_LIMIT", 2**24)
    with pytest.raises(
        DataError, match=r"row group 0 of .* takes more than 16,777,216 bytes in memory; write the file"
    ):
        _ = Parquet(path, "all", cache_mb=1)[0]
    assert Parquet(path, "all", cache_mb=300)[0].image.shape == (8, 9, 3)
    pq.write_table(pa.table({"image": [PNG + bytes([i]) * 2**20 for i in range(20)], "label": [0] * 20}), path)
    with pytest.raises(DataError, match="takes more than 16,777,216 bytes"):
        _ = Parquet(path, "all", cache_mb=1)[0]


def test_seeded_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    copies.parquet(path, 12)
    whole = path.read_bytes()
    generator = np.random.default_rng(11)
    results: set[str] = set()
    for _ in range(150):
        data = bytearray(whole)
        near = 900 if generator.integers(2) else len(data)  # the footer as often as all the rest
        for _ in range(generator.integers(1, 4)):
            data[-1 - int(generator.integers(near))] ^= 1 << generator.integers(8)
        path.write_bytes(data if generator.integers(4) else data[: generator.integers(len(data))])
        try:
            samples = list(Parquet(tmp_path, "all"))
        except XattnError as error:
            results.add(re.sub(r"[0-9]+", "0", str(error)))
        else:
            results.add("read")
            assert all(s.image.dtype == np.uint8 and s.image.ndim == 3 for s in samples)
    assert len(results) > 5
    assert not any("\n" in message for message in results)
