"""Parquet files: rows are read lazily, by row group, within a limit of memory; damage is told."""

from __future__ import annotations

import itertools
import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.data import copies
from tests.data_root import need_data
from xattn.data import open_dataset
from xattn.data.parquet import Parquet
from xattn.errors import DataError, UnknownNameError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for k in range(2):
        copies.parquet(tmp_path / f"train-{k:05d}-of-00002.parquet", 10, first=10 * k)
    copies.parquet(tmp_path / "val-00000-of-00001.parquet", 3, first=50)
    (tmp_path / "classes.csv").write_text('label,wnid,name\n0,n0,"tabby, cat"\n1,n1,dog\n2,n2,fox\n')
    return tmp_path


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def check(dataset: Parquet, first: int = 0) -> None:
    for i, sample in enumerate(dataset):
        number = first + i
        assert sample.label == number % 3 == dataset.labels[i]
        np.testing.assert_array_equal(sample.image, np.asarray(copies.picture(9 + number % 3, 8, number)))
        np.testing.assert_array_equal(sample.boxes, [[1, 2, 5 + number % 3, 7]])


def test_files_of_a_part_are_one_data_set(root: Path) -> None:
    train, val = Parquet(root), Parquet(root, "val")
    assert (len(train), len(val)) == (20, 3)
    assert train.classes == val.classes == ("tabby, cat", "dog", "fox")
    assert [s.id for s in train][9:11] == ["img_9.png", "img_10.png"]
    check(train)
    check(val, 50)


def test_reading_is_lazy_and_by_row_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Parquet(root)
    reads: list[int] = []
    read = pq.ParquetFile.iter_batches

    def count(self: Any, rows: int, **options: Any) -> Any:
        reads.extend(options["row_groups"])
        return read(self, rows, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    assert reads == []
    _ = dataset[9], dataset[8], dataset[9]
    assert reads == [2]
    _ = dataset[10], dataset[9]
    assert reads == [2, 0]


def test_memory_is_bounded(root: Path) -> None:
    dataset = Parquet(root, cache_mb=0)
    check(dataset)
    assert len(dataset._cache) == 1
    full = Parquet(root)
    check(full)
    assert len(full._cache) == 6


def test_order_stays_within_what_memory_holds(root: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    everything, small = np.arange(20), Parquet(root, cache_mb=0)
    far, near = (d.order(everything, generator).tolist() for d in (Parquet(root), small))
    assert sorted(far) == sorted(near) == list(range(20))
    groups = [(i // 10, i % 10 // 4) for i in near]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == 5  # six groups, each read once
    assert near != sorted(near)
    assert small.order(everything, generator).tolist() != near


def test_workers_get_no_images(root: Path) -> None:
    dataset = Parquet(root)
    _ = dataset[0]
    assert "_cache" in vars(dataset)
    again = pickle.loads(pickle.dumps(dataset))
    assert "_cache" not in vars(again)
    check(again)


def test_bytes_without_a_struct_and_no_boxes(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "rows.parquet", 3, struct=False, boxes=False)
    dataset = Parquet(tmp_path, "all")
    assert [s.id for s in dataset] == ["rows:0", "rows:1", "rows:2"]
    assert dataset[0].boxes is None
    assert dataset.classes == ("0", "1", "2")


def test_one_file_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    copies.parquet(path, 2, box2=pa.array([[0, 0, 1, 1, 2, 2, 3, 3], []], pa.list_(pa.int32())), y=pa.array([0, 0]))
    dataset = Parquet(path, "all", box="box2", label="y")
    np.testing.assert_array_equal(dataset[0].boxes, [[0, 0, 2, 2], [2, 2, 4, 4]])
    assert dataset[1].boxes.shape == (0, 4)
    assert dataset.classes == ("0",)


@pytest.mark.parametrize("struct", [True, False])
def test_masks(tmp_path: Path, struct: bool) -> None:
    drawn = np.zeros((8, 10, 3), np.uint8)
    drawn[2:5, 3:9] = (0, 0, 1)  # not black, in one channel and barely
    drawn[7, 0] = 255
    data = [png(drawn[:, :9]), None, png(np.zeros((8, 11, 3), np.uint8))]
    values = [{"bytes": d, "path": "m.png"} if d else None for d in data] if struct else data
    copies.parquet(tmp_path / "x.parquet", 3, boxes=False, mask=pa.array(values))
    dataset = Parquet(tmp_path, "all")
    np.testing.assert_array_equal(dataset[0].mask, drawn[:, :9].any(2))
    assert dataset[1].mask is None
    assert not dataset[2].mask.any()
    assert Parquet(tmp_path, "all", mask="")[0].mask is None


def test_names_from_hugging_face_metadata(tmp_path: Path) -> None:
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    copies.parquet(path, 3)
    info = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    table = pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)
    assert Parquet(tmp_path).classes == ("a", "b", "c")


def test_folders_called_like_parts(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "train" / "0.parquet", 4)
    copies.parquet(tmp_path / "test" / "0.parquet", 2)
    assert len(Parquet(tmp_path, "train")) == 4
    assert len(Parquet(tmp_path, "test")) == 2


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_missing_shard(root: Path) -> None:
    (root / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of 2 files of the train part are there, number 0 is missing.*train-00001"):
        Parquet(root)


def test_a_file_cut_while_downloading(root: Path) -> None:
    path = root / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        DataError, match=r"train-00001-of-00002\.parquet' \([\d,]+ bytes\) is not a complete parquet file"
    ):
        Parquet(root)


def test_a_damaged_row_group(root: Path) -> None:
    path = root / "train-00000-of-00002.parquet"
    intact = path.read_bytes()
    meta = pq.ParquetFile(path).metadata.row_group(1)
    for column, message in ((0, "row group 1 of .* is damaged"), (2, "the labels of .* are damaged")):
        start = meta.column(column).dictionary_page_offset or meta.column(column).data_page_offset
        data = bytearray(intact)
        data[start : start + 30] = b"\xff" * 30
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            list(Parquet(root))


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"expected parquet files in .* but found notes\.txt"):
        Parquet(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        Parquet(tmp_path / "nowhere")


def test_unknown_part_and_columns(root: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown split .*'test'.* Known: train, val"):
        Parquet(root, "test")
    with pytest.raises(UnknownNameError, match=r"unknown column .*'labels'\. Did you mean 'label'\?"):
        Parquet(root, label="labels")


def test_labels_that_are_none(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "a.parquet", 2, label=pa.array(["cat", "dog"]))
    with pytest.raises(DataError, match="holds string; expected integers"):
        Parquet(tmp_path, "all")
    copies.parquet(tmp_path / "a.parquet", 2, label=pa.array([0, -1]))
    with pytest.raises(DataError, match="labels go from -1 to 0"):
        Parquet(tmp_path, "all")
    copies.parquet(tmp_path / "a.parquet", 2, label=pa.array([0, None], pa.int64()))
    with pytest.raises(DataError, match="expected integers"):
        Parquet(tmp_path, "all")
    copies.parquet(tmp_path / "a.parquet", 0)
    with pytest.raises(DataError, match="lists no image"):
        Parquet(tmp_path, "all")


def test_an_image_that_is_none_or_broken(tmp_path: Path) -> None:
    image = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": b"not a picture", "path": "b.png"}])
    copies.parquet(tmp_path / "a.parquet", 2, image=image)
    dataset = Parquet(tmp_path, "all")
    with pytest.raises(DataError, match="row 0 has no image bytes"):
        _ = dataset[0]
    with pytest.raises(DataError, match=r"b\.png: is not an image"):
        _ = dataset[1]


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("split", "count", "of_each"), [("train", 100_000, 500), ("val", 10_000, 50)])
def test_the_real_tiny_imagenet(split: str, count: int, of_each: int) -> None:
    dataset = open_dataset(f"tiny-imagenet:{need_data('tiny-imagenet')}", split)
    assert len(dataset) == count
    assert np.bincount(dataset.labels).tolist() == [of_each] * 200
    assert dataset.classes[0] == "goldfish, Carassius auratus"
    for i in (0, count // 2, count - 1):
        sample = dataset[i]
        assert sample.image.shape == (64, 64, 3)
        assert sample.boxes is not None
        xmin, ymin, xmax, ymax = sample.boxes[0]
        assert 0 <= xmin < xmax <= 64
        assert 0 <= ymin < ymax <= 64


def test_the_folder_of_the_real_tiny_imagenet_is_known() -> None:
    dataset = open_dataset(need_data("tiny-imagenet"), "test")
    assert len(dataset) == 10_000
