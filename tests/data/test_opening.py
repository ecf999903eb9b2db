"""What a user writes becomes the data set that is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.data import copies
from tests.data.test_datasets import BUILDERS
from xattn.data import datasets, open_dataset
from xattn.data.folder import ImageFolder
from xattn.data.parquet import Parquet
from xattn.data.synthetic import Synthetic
from xattn.errors import DataError, ParameterError, UnknownNameError


def test_class_folders(tmp_path: Path) -> None:
    copies.image_folder(tmp_path)
    for split in (None, "train", "all"):
        assert open_dataset(tmp_path, split) == ImageFolder(tmp_path, "all")
    assert open_dataset(f"folder:{tmp_path}") == ImageFolder(str(tmp_path), "all")
    with pytest.raises(DataError, match=r"has no 'val' part; hold some images out"):
        open_dataset(tmp_path, "val")


def test_parts_of_class_folders(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "valid"))
    assert open_dataset(tmp_path) == ImageFolder(tmp_path, "train")
    for split in ("val", "test", "valid", "validation"):
        assert open_dataset(str(tmp_path), split) == ImageFolder(tmp_path, "valid")
    with pytest.raises(UnknownNameError, match="unknown split"):
        open_dataset(tmp_path, "holdout")


def test_val_is_preferred_to_test_only_where_it_is_there(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "val", "test"))
    for split in ("val", "test"):
        assert open_dataset(tmp_path, split).split == split  # type: ignore[attr-defined]


def test_parquet_folders_and_files(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "train-0.parquet", 4)
    copies.parquet(tmp_path / "validation-0.parquet", 2)
    assert open_dataset(tmp_path) == Parquet(tmp_path, "train")
    assert len(open_dataset(tmp_path, "test")) == 2
    assert len(open_dataset(tmp_path / "train-0.parquet")) == 4
    assert len(open_dataset(f"parquet:{tmp_path},cache_mb=1", "val")) == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_known_data_sets_by_name_and_by_their_files(tmp_path: Path, name: str) -> None:
    truth = BUILDERS[name](tmp_path)
    kind: Any = datasets.get(name)
    for text in (f"{name}:{tmp_path}", tmp_path, f"{name}:root={tmp_path}"):
        dataset = open_dataset(text)
        assert isinstance(dataset, kind)
        assert len(dataset) == len(truth[kind.training])
        assert len(open_dataset(text, "train")) == len(truth["train" if "train" in truth else kind.training])
        if kind.evaluation is None:
            with pytest.raises(DataError, match="has no 'test' part"):
                open_dataset(text, "test")
        else:
            assert len(open_dataset(text, "test")) == len(truth[kind.evaluation])
    assert isinstance(open_dataset(kind(tmp_path, kind.training).home), kind)


def test_parameters(tmp_path: Path) -> None:
    copies.aircraft(tmp_path)
    dataset: Any = open_dataset(f"Aircraft:{tmp_path},level=manufacturer,banner=yes", "val")
    assert (dataset.split, dataset.level, dataset.banner) == ("val", "manufacturer", True)
    assert open_dataset(f"aircraft:{tmp_path},split=test", "val").split == "test"  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match=r"unknown parameter .*'levle'\. Did you mean 'level'"):
        open_dataset(f"aircraft:{tmp_path},levle=family")
    with pytest.raises(ParameterError, match="level must be one of"):
        open_dataset(f"aircraft:{tmp_path},level=engine")


def test_a_folder_with_a_comma(tmp_path: Path) -> None:
    copies.image_folder(tmp_path / "cats, dogs")
    assert len(open_dataset(f"folder:{tmp_path}/cats, dogs")) == 6
    assert len(open_dataset(f"{tmp_path}/cats, dogs")) == 6


def test_synthetic() -> None:
    assert open_dataset("synthetic") == Synthetic()
    assert open_dataset("synthetic:length=5,decides=colour", "test") == Synthetic(5, decides="colour", split="test")


def test_a_folder_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies.image_folder(tmp_path / "pets-at-home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("~/pets-at-home")) == 6
    assert len(open_dataset("folder:~/pets-at-home")) == 6


def test_what_is_not_there(tmp_path: Path) -> None:
    copies.image_folder(tmp_path / "photos")
    with pytest.raises(DataError, match=rf"does not exist\. Did you mean '{re.escape(str(tmp_path / 'photos'))}'"):
        open_dataset(tmp_path / "photo")
    with pytest.raises(UnknownNameError, match=r"unknown data set 'cubs'\. Did you mean 'cub'"):
        open_dataset(f"cubs:{tmp_path}")
    with pytest.raises(ParameterError, match="needs the folder that it is in; write cub:/path/to/folder"):
        open_dataset("cub")
    with pytest.raises(DataError, match="there is no folder"):
        open_dataset(f"folder:{tmp_path}/nowhere")


def test_folders_and_files_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found an empty folder"):
        open_dataset(tmp_path)
    copies.save(tmp_path / "1.png", 8, 8, 0)
    with pytest.raises(DataError, match="holds 1 images but no class folders"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="is a file; expected class folders"):
        open_dataset(tmp_path / "1.png")
    (tmp_path / "cub.tgz").write_bytes(b"")
    with pytest.raises(DataError, match="is a file; unpack it first"):
        open_dataset(tmp_path / "cub.tgz")


def test_a_half_unpacked_data_set_is_known_by_what_is_there(tmp_path: Path) -> None:
    copies.cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "images.txt").unlink()
    with pytest.raises(DataError, match=r"CUB-200-2011: expected '.*images\.txt' but found .*Get it from"):
        open_dataset(tmp_path)
