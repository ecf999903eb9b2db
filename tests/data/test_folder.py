"""Image folders: classes, parts, and what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import images_zoo as zoo
from tests.data import copies
from xattn.data.folder import ImageFolder
from xattn.errors import DataError, UnknownNameError


def test_class_folders(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, classes=("zebra", "ant"))
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ("ant", "zebra")
    assert [s.id for s in dataset] == [f"{c}/{i}.png" for c in ("ant", "zebra") for i in (1, 2, 10)]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(dataset[0].image, np.asarray(copies.picture(13, 10, 3)))


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder as Witness

    copies.image_folder(tmp_path, classes=("b", "A", "a10", "a9"))
    copies.save(tmp_path / "a9" / "deep" / "x.jpg", 8, 8, 1)
    dataset, expected = ImageFolder(tmp_path), Witness(tmp_path)
    assert list(dataset.classes) == expected.classes
    mine = {str(tmp_path / s.id): s.label for s in dataset}
    assert mine == dict(expected.samples)


def test_parts_share_the_classes_of_training(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "val"), classes=("ant", "bee", "cat"))
    for path in (tmp_path / "val" / "ant").iterdir():
        path.unlink()
    val = ImageFolder(tmp_path, "val")
    assert val.classes == ("ant", "bee", "cat")
    assert set(val.labels.tolist()) == {1, 2}
    assert len(ImageFolder(tmp_path, "train")) == 9


def test_a_class_that_training_lacks(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "val"))
    copies.save(tmp_path / "val" / "dog" / "1.png", 8, 8, 0)
    with pytest.raises(DataError, match="has the class 'dog', which the training part does not have"):
        ImageFolder(tmp_path, "val")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, classes=("car", "train"))
    assert ImageFolder(tmp_path).classes == ("car", "train")


def test_unknown_part(tmp_path: Path) -> None:
    copies.image_folder(tmp_path, parts=("train", "val"))
    with pytest.raises(UnknownNameError, match=r"unknown split .*'vall'\. Did you mean 'val'\? Known: train, val"):
        ImageFolder(tmp_path, "vall")
    with pytest.raises(UnknownNameError, match="Known: train, val"):
        ImageFolder(tmp_path)


def test_hidden_and_empty_folders_are_no_classes(tmp_path: Path) -> None:
    copies.image_folder(tmp_path)
    copies.save(tmp_path / ".cache" / "1.png", 8, 8, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("")
    assert ImageFolder(tmp_path).classes == ("bird", "cat")


def test_images_are_upright_as_when_explained(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    zoo.exif(tmp_path / "a" / "1.jpg", 6)
    assert ImageFolder(tmp_path)[0].image.shape == (zoo.HEIGHT, zoo.WIDTH, 3)


def test_no_class_folders(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"expected folders of images, one for each class, in .* but found 1\.png"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        ImageFolder(tmp_path / "1.png")


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    dataset = ImageFolder(tmp_path)
    assert dataset.classes == ("caf\\xe9",)
    assert dataset[0].id == "caf\\xe9/\\xff.png"
    assert dataset.fingerprint().encode()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    copies.image_folder(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        ImageFolder(tmp_path)
