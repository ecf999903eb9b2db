"""A fingerprint stands for every image and annotation: what changes a sample changes it, and nothing else does."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.data import copies
from tests.data.test_datasets import BUILDERS
from xattn.data import Dataset, open_dataset
from xattn.data.mosaic import Mosaic
from xattn.data.parquet import Parquet
from xattn.data.synthetic import Synthetic
from xattn.errors import DataError

ANNOTATIONS = {
    "tiny-imagenet": "tiny-imagenet-200/val/val_annotations.txt",
    "cub": "CUB_200_2011/bounding_boxes.txt",
    "aircraft": "fgvc-aircraft-2013b/data/images_box.txt",
    "cars": "stanford_cars/devkit/cars_meta.mat",
    "pets": "oxford-iiit-pet/annotations/trainval.txt",
}


def later(path: Path) -> None:
    """Change the time of a file and nothing else."""
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def fast(root: Path) -> str:
    return open_dataset(root).fingerprint()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_copy_has_the_same_content(tmp_path: Path, name: str) -> None:
    BUILDERS[name](tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    first, second = (open_dataset(f"{name}:{tmp_path / root}") for root in "ab")
    assert first.fingerprint(content=True) == second.fingerprint(content=True)
    assert first.fingerprint() == open_dataset(f"{name}:{tmp_path / 'a'}").fingerprint()
    assert first.fingerprint() != second.fingerprint()
    shutil.rmtree(tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the times
    assert first.fingerprint() == open_dataset(f"{name}:{tmp_path / 'b'}").fingerprint()


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_belong_to_it(tmp_path: Path, name: str) -> None:
    BUILDERS[name](tmp_path)
    (path,) = tmp_path.rglob(ANNOTATIONS[name].rpartition("/")[2])
    before = open_dataset(f"{name}:{tmp_path}").fingerprint()
    later(path)
    assert open_dataset(f"{name}:{tmp_path}").fingerprint() != before


def test_exchanged_images_are_noticed_even_where_size_and_time_are_equal(tmp_path: Path) -> None:
    copies.image_folder(tmp_path)
    files = sorted(tmp_path.rglob("*.png"))[:2]
    for colour, file in enumerate(files):
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "BMP")
        os.utime(file, ns=(5, 5))
    before, content = fast(tmp_path), open_dataset(tmp_path).fingerprint(content=True)
    files[0].rename(tmp_path / "x")
    files[1].rename(files[0])
    (tmp_path / "x").rename(files[1])
    assert files[0].stat().st_mtime_ns == files[1].stat().st_mtime_ns
    assert files[0].stat().st_size == files[1].stat().st_size
    assert fast(tmp_path) != before
    assert open_dataset(tmp_path).fingerprint(content=True) != content


def test_one_image_of_many(tmp_path: Path) -> None:
    copies.image_folder(tmp_path)
    seen = {fast(tmp_path)}
    for file in sorted(tmp_path.rglob("*.png")):
        later(file)
        assert fast(tmp_path) not in seen
        seen.add(fast(tmp_path))
    file.rename(file.with_stem("renamed"))
    assert fast(tmp_path) not in seen


def test_a_file_that_goes_away_is_one_line(tmp_path: Path) -> None:
    copies.image_folder(tmp_path)
    dataset = open_dataset(tmp_path)
    next(tmp_path.rglob("*.png")).unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\)"):
        dataset.fingerprint()


def test_parquet(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "train-0.parquet", 6)
    (tmp_path / "classes.csv").write_text("label,name\n0,a\n1,b\n2,c\n")
    before = Parquet(tmp_path).fingerprint()
    assert Parquet(tmp_path, cache_mb=1).fingerprint() == before
    assert Parquet(tmp_path, box="other").fingerprint() != before
    later(tmp_path / "train-0.parquet")
    after = Parquet(tmp_path).fingerprint()
    assert after != before
    (tmp_path / "classes.csv").write_text("label,name\n0,a\n1,b\n2,d\n")
    assert Parquet(tmp_path).fingerprint() != after


def test_parameters_and_parts() -> None:
    sets: list[Dataset] = [Synthetic(12), Synthetic(12, seed=1), Synthetic(12, split="test"), Synthetic(12)[2:6]]
    sets += [Synthetic(12)[3:7], Synthetic(12, seed=1)[2:6], Mosaic(Synthetic(12)), Mosaic(Synthetic(12), seed=2)]
    assert len({d.fingerprint() for d in sets}) == len(sets)
    assert Synthetic(12)[2:6].fingerprint() == Synthetic(12).subset([2, 3, 4, 5]).fingerprint()
    assert all(len(d.fingerprint(content=True)) == 32 for d in sets)


@dataclass(frozen=True, eq=False)
class Before(Synthetic):
    side: int = 3


@dataclass(frozen=True, eq=False)
class After(Before):
    mask: str = field(default="mask", metadata={"later": True})


def test_a_field_that_was_added_later_counts_where_it_is_not_its_default() -> None:
    After.__qualname__ = "Before"
    assert After(length=4).fingerprint() == Before(length=4).fingerprint()
    assert After(length=4, mask="other").fingerprint() != Before(length=4).fingerprint()
    assert After(length=4, side=5).fingerprint() != Before(length=4).fingerprint()
