"""Data sets of individuals and of few-shot classes, from small copies that are true to their formats."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data import copies
from tests.data_root import need_data
from xattn.data import datasets, open_dataset
from xattn.errors import DataError, UnknownNameError

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg", "0007_c3s3_077419_03.jpg"],
    "query": ["0003_c1s1_000001_00.jpg.jpg", "0005_c4s6_021191_00.jpg"],
    "bounding_box_test": [
        *("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0003_c5s2_000001_01.jpg", "0009_c6s1_000001_01.jpg"),
    ],
}


def market(root: Path) -> None:
    for folder, names in MARKET.items():
        for i, name in enumerate(names):
            copies.save(root / "Market-1501-v15.09.15" / folder / name, 16, 32, i)
        (root / "Market-1501-v15.09.15" / folder / "Thumbs.db").write_bytes(b"\0")


def cows(root: Path) -> None:
    import pyarrow as pa

    for first, (part, pids, days) in enumerate(
        [
            ("train", [0, 0, 1, 1], ["0402", "", "0402", "0403"]),
            ("query", [2, 3], ["0402", "0414"]),
            ("gallery", [2, 2, 3, 4], ["0402", "0403", "0414", "open"]),
        ]
    ):
        columns = {"pid": pa.array(pids, pa.int16()), "session": pa.array(days)}
        copies.parquet(root / f"{part}.parquet", len(pids), first=10 * first, boxes=False, **columns)


def cifar_folders(root: Path) -> None:
    parts = {"train": ["bear", "apple"], "val": ["cup"], "test": ["bed"]}
    for part, names in parts.items():
        path = root / "cifar100" / "splits" / "bertinetto" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
        for name in names:
            for i in range(3):
                copies.save(root / "cifar100" / "data" / name / f"{name}_s_{i:06d}.png", 32, 32, i)


def mini(root: Path) -> None:
    for part, name in (("train", "n01532829"), ("val", "n01855672"), ("test", "n01930112")):
        rows = [f"{name}{i:08d}.jpg" for i in range(2)]
        for i, row in enumerate(rows):
            copies.save(root / "mini-imagenet" / "images" / row, 84, 84, i)
        path = root / "mini-imagenet" / f"{part}.csv"
        path.write_text("filename,label\n" + "".join(f"{row},{name}\n" for row in rows))


def test_market_gives_persons_and_cameras_without_junk(tmp_path: Path) -> None:
    market(tmp_path)
    train, query, gallery = (open_dataset(tmp_path, part) for part in ("train", "query", "gallery"))
    assert type(train).__name__ == "Market1501"  # known by its folders
    assert train.classes == ("0002", "0007")
    assert train.labels.tolist() == [0, 0, 1]
    assert train.groups is not None
    assert train.groups.tolist() == [1, 2, 3]
    assert query.classes == gallery.classes == ("0000", "0003", "0005", "0009")
    assert query.labels.tolist() == [1, 2]
    assert [s.id.rpartition("/")[2] for s in gallery] == MARKET["bounding_box_test"][1:]
    assert gallery[1].label == query[0].label
    part = gallery.subset([2, 0])
    assert part.groups is not None
    assert part.groups.tolist() == [6, 1]


def test_a_name_that_tells_no_camera_is_told(tmp_path: Path) -> None:
    market(tmp_path)
    copies.save(tmp_path / "Market-1501-v15.09.15" / "query" / "holiday.jpg", 16, 32, 0)
    with pytest.raises(DataError, match=r"holiday\.jpg': expected a name such as 0002_c1s1_000451_03\.jpg"):
        open_dataset(tmp_path, "query")


def test_individuals_in_parquet_have_the_day_as_their_group(tmp_path: Path) -> None:
    cows(tmp_path)
    train, query, gallery = (open_dataset(tmp_path, part) for part in ("train", "query", "gallery"))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert query.classes == ("0", "1", "2", "3")
    assert gallery.labels.tolist() == [2, 2, 3, 4]
    assert query.groups is not None
    assert gallery.groups is not None
    assert query.groups[0] == gallery.groups[0] != gallery.groups[1]  # one number means one day in all parts
    np.testing.assert_array_equal(query[1].image, np.asarray(copies.picture(9 + 11 % 3, 8, 11)))
    with pytest.raises(UnknownNameError, match=r"unknown column of .* 'camera'.*Known: .*session"):
        _ = datasets.create("reid-parquet", root=tmp_path, split="query", group="camera").groups


def test_cifar_fs_has_the_classes_of_its_part(tmp_path: Path) -> None:
    cifar_folders(tmp_path)
    train = open_dataset(tmp_path, "train")
    assert train.classes == ("apple", "bear")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert open_dataset(tmp_path, "test").classes == ("bed",)
    assert open_dataset(tmp_path, "test").groups is None


def test_cifar_fs_in_parquet_takes_the_shards_that_are_there(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "classes.csv").write_text("label,name,split\n0,bear,train\n1,apple,train\n2,bed,test\n")
    copies.parquet(tmp_path / "train-00000-of-00008.parquet", 4, boxes=False, label=pa.array([1, 0, 0, 1], pa.int8()))
    copies.parquet(tmp_path / "test-00000-of-00004.parquet", 2, boxes=False, label=pa.array([2, 2], pa.int8()))
    train = datasets.create("cifar-fs", root=tmp_path, split="train")
    assert train.classes == ("apple", "bear")
    assert train.labels.tolist() == [0, 1, 1, 0] == [s.label for s in train]
    test = datasets.create("cifar-fs", root=tmp_path, split="test")
    assert (test.classes, test.labels.tolist()) == (("bed",), [0, 0])
    (tmp_path / "classes.csv").write_text("label,name,split\n0,bear,train\n1,apple,val\n")
    with pytest.raises(DataError, match=r"the train files hold class 1, which '.*classes\.csv' has in another part"):
        datasets.create("cifar-fs", root=tmp_path, split="train")


def test_mini_imagenet_follows_its_lists(tmp_path: Path) -> None:
    mini(tmp_path)
    val = open_dataset(tmp_path, "val")
    assert (val.classes, val.labels.tolist(), len(val)) == (("n01855672",), [0, 0], 2)


BUILDERS: dict[str, Any] = {
    "market1501": market,
    "reid-parquet": cows,
    "cifar-fs": cifar_folders,
    "mini-imagenet": mini,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_what_every_data_set_promises(tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    BUILDERS[name](root)
    kind: Any = datasets.get(name)
    dataset = kind(root, kind.training)
    again = pickle.loads(pickle.dumps(dataset))
    assert again == dataset
    np.testing.assert_array_equal(again[0].image, dataset[0].image)
    before = dataset.fingerprint(content=True)
    assert len({sample.id for sample in dataset}) == len(dataset)
    with pytest.raises(DataError, match=r"there is no folder '.*nowhere'.* Get it from http"):
        kind(tmp_path / "nowhere", kind.training)
    (tmp_path / "README").write_text("")
    with pytest.raises(DataError, match=r"expected '.*' .*but found .*README.*Get it from http"):
        kind(tmp_path, kind.training)
    with pytest.raises(UnknownNameError, match=r"unknown split of .* 'tset'.*Known: "):
        kind(root, "tset")
    if name != "reid-parquet":
        image = next(root.rglob(dataset[0].id.rpartition("/")[2]))
        image.write_bytes(image.read_bytes() + b"\0")
        assert kind(root, kind.training).fingerprint(content=True) != before


def test_the_data_here_is_read() -> None:
    cows = need_data("holstein-reid")
    train, query, gallery = (open_dataset(cows, part) for part in ("train", "query", "gallery"))
    assert (len(train), len(query), len(gallery)) == (1893, 322, 1561)
    assert query.classes == gallery.classes
    few = datasets.create("cifar-fs", root=need_data("cifar-fs"), split="test")
    assert (len(few), len(few.classes), set(np.bincount(few.labels).tolist())) == (3000, 20, {150})
