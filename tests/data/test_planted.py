"""Planted shortcuts: the mask is what changed, the mark is where and as strong as said, and nothing else moves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.data import copies
from tests.data_root import need_data
from xattn.data.opening import open_dataset
from xattn.data.planted import Planted, plant
from xattn.errors import DataError, ParameterError, UnknownNameError

KINDS = ("mark", "frame", "tint", "tag")
SIZES = ((64, 64), (32, 32), (48, 80), (90, 40))  # height and width


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of ten, eleven and twelve images, in a part to train on and one to test on."""
    root = tmp_path_factory.mktemp("pictures")
    for p, part in enumerate(("train", "val")):
        for c, name in enumerate(("ant", "bee", "cow")):
            (root / part / name).mkdir(parents=True)
            for i in range(10 + c):
                pixels = photograph(32, 40, 1000 * p + 100 * c + i)
                Image.fromarray(pixels).save(root / part / name / f"{part}-{name}-{i:02d}.png")
    return root


def oracle(pixels: NDArray[np.uint8], kind: str, strength: float) -> NDArray[np.uint8]:
    """The mark at its fixed place, pixel by pixel."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    margin = round(short / 16)
    result = pixels.copy()
    for y in range(height):
        for x in range(width):
            colour, opacity = None, 1.0
            if kind == "tint":
                colour, opacity = (255, 150, 40), 0.35
            elif kind == "frame":
                if min(y, x, height - 1 - y, width - 1 - x) < round(short / 16):
                    colour = (30, 120, 220)
            elif kind == "mark":
                side = round(short / 8)
                centre_y, centre_x = margin + (side - 1) / 2, width - margin - side + (side - 1) / 2
                if (y - centre_y) ** 2 + (x - centre_x) ** 2 <= (side / 2) ** 2:
                    colour = (230, 40, 200)
            else:
                rows, columns = round(short * 5 / 32), round(short * 3 / 8)
                row, column = y - (height - margin - rows), x - margin
                if 0 <= row < rows and 0 <= column < columns:
                    edge = row in (0, rows - 1) or column in (0, columns - 1)
                    colour = (250, 250, 245) if edge or column % 4 in (0, 3) else (15, 15, 20)
            for c in range(3):
                if colour is not None:
                    mixed = (1 - strength * opacity) * float(pixels[y, x, c]) + strength * opacity * colour[c]
                    result[y, x, c] = int(np.rint(mixed))
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mark_is_drawn_as_it_is_described_and_the_mask_is_what_changed(kind: Any, size: tuple[int, int]) -> None:
    pixels = photograph(*size)
    for strength in (1.0, 0.4):
        before = pixels.copy()
        image, mask = plant(pixels, kind, strength)
        expected = oracle(pixels, kind, strength)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(mask, (expected != pixels).any(2))
        np.testing.assert_array_equal(pixels, before)
        share = mask.mean()
        low, high = {"mark": (0.005, 0.02), "frame": (0.1, 0.35), "tint": (0.9, 1), "tag": (0.02, 0.1)}[kind]
        assert low < share <= high


@pytest.mark.parametrize("kind", ["mark", "tag"])
def test_a_moving_mark_stays_whole_within_the_image(kind: Any) -> None:
    pixels = np.full((33, 57, 3), 128, np.uint8)  # no colour of a mark
    _, fixed = plant(pixels, kind)
    for at, corner in (((0, 0), (0, 0)), ((1, 0), (0, 1)), ((0, 1), (1, 0)), ((1, 1), (1, 1)), ((0.3, 0.8), None)):
        _, mask = plant(pixels, kind, at=at)
        assert mask.sum() == fixed.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if corner is not None:
            assert (rows[-1] == 32) == (corner[0] == 1) == (rows[0] != 0)
            assert (columns[-1] == 56) == (corner[1] == 1) == (columns[0] != 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (5, 4)])
def test_images_of_few_pixels(kind: Any, size: tuple[int, int]) -> None:
    pixels = photograph(*size)
    for at in (None, (1.0, 1.0)):
        image, mask = plant(pixels, kind, at=at)
        assert image.shape == pixels.shape
        np.testing.assert_array_equal(mask, (image != pixels).any(2))


@pytest.mark.parametrize(("kind", "moving"), [*((k, False) for k in KINDS), ("mark", True), ("tag", True)])
def test_samples_are_those_of_the_data_but_for_the_mask(folder: Path, kind: Any, moving: bool) -> None:
    whole = open_dataset(folder, "val")
    data = Planted(folder, "val", kind, share=0.4, label=1, moving=moving)
    assert (len(data), data.classes) == (33, ("ant", "bee", "cow"))
    assert [int((data.labels[data.marked] == c).sum()) for c in range(3)] == [0, round(0.4 * 11), 0]
    places = set()
    for i, (sample, original) in enumerate(zip(data, whole, strict=True)):
        assert (sample.id, sample.label) == (original.id, original.label)
        changed = (sample.image != original.image).any(2)
        np.testing.assert_array_equal(changed, data.mask_of(i))
        assert changed.any() == data.marked[i]
        if changed.any():
            places.add((int(np.argmax(changed.any(1))), int(np.argmax(changed.any(0)))))
    assert (len(places) > 2) == moving


def test_all_of_it_comes_from_the_seed_and_the_number_of_the_image(folder: Path) -> None:
    one, other = (Planted(folder, kind="tag", moving=True) for _ in range(2))
    backwards = [other[i].image for i in range(len(other) - 1, -1, -1)][::-1]
    for sample, image in zip(one, backwards, strict=True):
        np.testing.assert_array_equal(sample.image, image)
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    np.testing.assert_array_equal(again[3].image, one[3].image)
    assert any((Planted(folder, seed=s).marked != Planted(folder).marked).any() for s in range(1, 4))
    part = Planted(folder, kind="tag", moving=True, share=1.0, class_count=3, per_class=6)
    full = Planted(folder, kind="tag", moving=True, share=1.0)
    by_name = {full[i].id: full.mask_of(i) for i in range(len(full))}
    for i in np.flatnonzero(part.marked):  # which images are read does not move the mark
        np.testing.assert_array_equal(part.mask_of(int(i)), by_name[part[int(i)].id])


def test_a_smaller_share_is_part_of_a_larger_one(folder: Path) -> None:
    before = np.zeros(33, np.bool_)
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        data = Planted(folder, share=share, label=2)
        assert data.marked.sum() == round(share * 12)
        assert (before <= data.marked).all()
        before = data.marked
    assert (data.marked == (data.labels == 2)).all()


def test_a_mark_that_tells_nothing_and_none_at_all(folder: Path) -> None:
    data = Planted(folder, share=0.5, elsewhere=0.5)
    assert [int((data.marked & (data.labels == c)).sum()) for c in range(3)] == [5, round(5.5), 6]
    bare, full = data.without(), data.everywhere()
    assert not bare.marked.any()
    assert full.marked.all()
    for i in np.flatnonzero(data.marked):
        np.testing.assert_array_equal(full[int(i)].image, data[int(i)].image)
    for sample, original in zip(bare, open_dataset(folder, "train"), strict=True):
        np.testing.assert_array_equal(sample.image, original.image)


def test_two_parts_of_a_class_are_told_apart(folder: Path) -> None:
    text = f"planted:{folder},class_count=2"
    first, second = open_dataset(f"{text},per_class=4"), open_dataset(f"{text},skip=4,per_class=4")
    assert first.classes == second.classes == ("ant", "bee")
    ids = [[s.id for s in part] for part in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 8
    assert not set(ids[0]) & set(ids[1])
    rest = open_dataset(f"{text},skip=8")
    assert np.bincount(rest.labels).tolist() == [2, 3]


def test_masks_and_boxes_of_the_object_or_of_the_mark(tmp_path: Path) -> None:
    copies.tiny_imagenet(tmp_path / "tiny-imagenet-200")
    whole = open_dataset(tmp_path)
    for truth in ("object", "mark"):
        data = Planted(tmp_path, share=0.5, truth=truth)  # type: ignore[arg-type]
        assert data.marked.any()
        assert not data.marked.all()
        for i, (sample, original) in enumerate(zip(data, whole, strict=True)):
            assert sample.boxes is not None
            if truth == "object":
                np.testing.assert_array_equal(sample.boxes, original.boxes)
                assert sample.mask is None
                continue
            np.testing.assert_array_equal(sample.mask, data.mask_of(i))
            assert len(sample.boxes) == data.marked[i]
            for xmin, ymin, xmax, ymax in sample.boxes.astype(int):
                assert data.mask_of(i)[ymin:ymax, xmin:xmax].sum() == data.mask_of(i).sum()


def test_by_its_text_and_in_the_parts_of_what_it_reads(folder: Path, tmp_path: Path) -> None:
    data = open_dataset(f"planted:{folder},kind=tag,moving=yes,share=0.25,label=1,strength=0.5", "val")
    assert data == Planted(str(folder), "val", "tag", 0.25, 0.5, 1, moving=True)
    assert open_dataset(f"planted:{folder}") == Planted(str(folder))
    assert open_dataset(f"planted:{folder}", "test")[0].id == open_dataset(folder, "val")[0].id
    assert open_dataset(f"planted:folder:{folder},kind=frame").marked.any()  # type: ignore[attr-defined]
    assert len(open_dataset("planted:synthetic:length=9,kind=frame", "test")) == 9
    copies.parquet(tmp_path / "all.parquet", 6)
    assert len(open_dataset(f"planted:{tmp_path},label=2")) == 6
    with pytest.raises(DataError, match="has no 'val' part"):
        open_dataset(f"planted:{tmp_path}", "val")
    with pytest.raises(UnknownNameError, match="unknown split"):
        open_dataset(f"planted:{folder}", "tset")


def test_the_fingerprint_is_of_the_images_and_of_the_mark(folder: Path, tmp_path: Path) -> None:
    data = Planted(folder)
    seen = {data.fingerprint(), Planted(folder, share=0.4).fingerprint(), Planted(folder, kind="tag").fingerprint()}
    assert len(seen) == 3
    assert data.fingerprint() == Planted(str(folder)).fingerprint()
    copies.image_folder(tmp_path)
    before = Planted(tmp_path).fingerprint()
    Image.new("RGB", (12, 10)).save(tmp_path / "bird" / "1.png")
    assert Planted(tmp_path).fingerprint() != before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("kind=stamp", "kind must be one of mark, frame, tint, tag but got 'stamp'"),
        ("share=1.5", "share must be at least 0 and at most 1"),
        ("strength=0", "strength must be more than 0 and at most 1"),
        ("kind=tint,moving=yes", "a tint covers the image and cannot move; leave out moving"),
        ("label=3", "label is 3 but there are 3 classes, from 0 on"),
        ("class_count=4", "class_count is 4 but .* has 3 classes"),
        ("skip=12", "skip=12 leaves no image; a class has at most 12"),
    ],
)
def test_what_cannot_be(folder: Path, parameters: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        open_dataset(f"planted:{folder},{parameters}")


def test_real_images(folder: Path) -> None:
    root = need_data("tiny-imagenet")
    data = open_dataset(f"planted:{root},kind=tag,class_count=10,label=4", "val")
    assert isinstance(data, Planted)
    assert (len(data), len(data.classes), data.marked.sum()) == (500, 10, 25)
    marked = int(np.flatnonzero(data.marked)[0])
    assert data.labels[marked] == 4
    assert (data[marked].image != data.without()[marked].image).any(2).sum() == data.mask_of(marked).sum()
