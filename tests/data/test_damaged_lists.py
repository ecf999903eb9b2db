"""Lists and annotations of any content are read rightly or refused in one line."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data import copies
from tests.data.test_datasets import BUILDERS
from xattn.data import datasets, open_dataset
from xattn.data.mosaic import Mosaic
from xattn.data.opening import NoPartError
from xattn.data.synthetic import Synthetic
from xattn.errors import DataError, ParameterError, XattnError

LISTS = (".txt", ".csv", ".mat", ".xml", "")
TRICKS = (b"nan", b"1e999", b"-1", b"99999999999999999999", b"\xff", b"\0", b"", b"\xc2\xb2", b"../../x", b"x" * 5000)


@pytest.mark.parametrize("name", BUILDERS)
def test_seeded_damage_to_every_list(tmp_path: Path, name: str) -> None:
    BUILDERS[name](tmp_path)
    kind: Any = datasets.get(name)
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in LISTS)
    generator = np.random.default_rng(7)
    messages = []
    for _ in range(60):
        path = files[generator.integers(len(files))]
        whole = path.read_bytes()
        data = bytearray(whole)
        match generator.integers(3):
            case 0:
                for _ in range(generator.integers(1, 5)):
                    data[generator.integers(len(data))] ^= 1 << generator.integers(8)
            case 1:
                data = data[: generator.integers(len(data))]
            case _:
                pieces = re.split(rb"(\s+)", whole)
                pieces[generator.integers(len(pieces))] = TRICKS[generator.integers(len(TRICKS))]
                data = bytearray(b"".join(pieces))
        path.write_bytes(data)
        for split in kind.splits:
            try:
                for sample in kind(tmp_path, split):
                    assert sample.mask is None or sample.mask.shape == sample.image.shape[:2]
                    assert sample.boxes is None or np.isfinite(sample.boxes).all()
            except XattnError as error:
                messages.append(str(error))
        path.write_bytes(whole)
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1000000000\n", r"line 2 of '.*photos\.csv': the label is 1000000000; classes are numbered"),
        ("file,label\na.png,1\nb.png,one\n", "line 3 of .*'one'"),
        ("file,label\n,1\n", "line 2 of .* names no file"),
        ("file,label\na\0.png,1\n", "line 2 of .* names no file"),
        ("file,label\n" + "x" * 200_000 + ",1\n", "field larger"),
        ("file,label\na.png\n", "line 2 of .*the label is ''"),
    ],
)
def test_tables_of_images(tmp_path: Path, text: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "photos.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(f"csv:{tmp_path}")


def test_pipes_are_no_lists(tmp_path: Path) -> None:
    copies.cub(tmp_path)
    for name in ("images.txt", "bounding_boxes.txt"):
        (tmp_path / "CUB_200_2011" / name).unlink()
        os.mkfifo(tmp_path / "CUB_200_2011" / name)
        with pytest.raises(DataError, match="no regular file"):
            list(open_dataset(f"cub:{tmp_path}"))
        copies.cub(tmp_path / "again")
        (tmp_path / "CUB_200_2011" / name).unlink()
        (tmp_path / "again" / "CUB_200_2011" / name).rename(tmp_path / "CUB_200_2011" / name)


def test_a_pickle_of_numbers_may_neither_run_nor_grow(tmp_path: Path) -> None:
    copies.cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    nested: list[Any] = [1]
    for _ in range(40):
        nested = [nested, nested]
    wide = pickle.dumps({"data": np.zeros((2, 3072), np.float64), "labels": [0, 1]})
    grown = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftC\x01btR."
    for content in (pickle.dumps({"data": nested, "labels": nested}), wide, grown, pickle.dumps([os.getcwd])):
        batch.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged or not what|does not hold the"):
            open_dataset(f"cifar10:{tmp_path}", "test")


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    copies.pets(tmp_path)
    for path in tmp_path.rglob("trimaps/*.png"):
        Image.new("L", (5, 5), 1).save(path)
    with pytest.raises(DataError, match=r"the mask and the image of .* have other sizes: 5 x 5 and 28 x 32"):
        _ = open_dataset(tmp_path)[0]


def test_an_empty_part_is_never_replaced_by_another(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "val", "test"))
    for file in (tmp_path / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="its part 'val' holds no folders of images") as caught:
        open_dataset(tmp_path, "val")
    assert not isinstance(caught.value, NoPartError)
    assert open_dataset(tmp_path, "test").split == "test"  # type: ignore[attr-defined]


def test_sizes_from_outside_are_bounded() -> None:
    for text in ("length=1000000000000", "length=100000000000000000000", "size=1000000", "seed=-1", f"seed={2**70}"):
        with pytest.raises(ParameterError, match=f"synthetic: {text.partition('=')[0]} must be"):
            open_dataset(f"synthetic:{text}")
    with pytest.raises(ParameterError, match="mosaic: 2 cells of 1000000 pixels are more than"):
        Mosaic(Synthetic(8), cell_px=10**6)
