"""Images whose labels are in a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from xattn.data.opening import open_dataset
from xattn.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (8 + i, 6), (i, 0, 0)).save(tmp_path / "photos" / name)
    (tmp_path / "photos.csv").write_text("file,label,name\nb.png,3,dog\na.png,1,\n")
    return tmp_path


def test_labels_are_those_of_the_table(root: Path) -> None:
    dataset = open_dataset(f"csv:{root}", "val")
    assert dataset.labels.tolist() == [3, 1]
    assert dataset.classes == ("class 0", "class 1", "class 2", "dog")
    assert dataset[0].image.shape == (6, 9, 3)
    assert dataset[0].id == "photos/b.png"
    assert len(open_dataset(f"csv:{root},class_count=1000").classes) == 1000


def test_which_table(root: Path) -> None:
    (root / "other.csv").write_text("file,label\nphotos/a.png,0\n")
    with pytest.raises(DataError, match=r"expected one table .* found other, photos"):
        open_dataset(f"csv:{root}")
    assert open_dataset(f"csv:{root},table=other").labels.tolist() == [0]
    with pytest.raises(DataError, match=r"expected the table 'third\.csv'"):
        open_dataset(f"csv:{root},table=third")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na.png,1\n", "must have columns file and label but has file, class"),
        ("file,label\na.png,cat\n", "damaged"),
        ("file,label\nz.png,1\n", "1 of 2 images|1 of 1 images"),
        ("file,label\n", "lists no image"),
        ("file,label\na.png,-1\n", "labels go from -1"),
    ],
)
def test_bad_tables(root: Path, text: str, message: str) -> None:
    (root / "photos.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(f"csv:{root}")
