"""Samples become batches with their masks and boxes in place; data sets are divided fairly and repeatably."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.data import copies
from xattn.data import Batch, Dataset, Sample, collate, datasets, split
from xattn.data.finding import listing
from xattn.data.preprocessing import place, to_batch
from xattn.data.sample import box_masks, tight_box
from xattn.data.synthetic import Synthetic
from xattn.errors import DataError, ParameterError
from xattn.spec import ModelSpec

SPEC = ModelSpec(feature_layer="", input_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@dataclasses.dataclass(frozen=True)
class Labels(Dataset):
    """Labels without images, for what does not read any."""

    values: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(i) for i in range(max(self.values) + 1))

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.array(self.values, np.int64)

    def sample(self, index: int) -> Sample:
        return Sample(str(index), np.full((4, 4, 3), index, np.uint8), self.values[index])


# ------------------------------------------------------------------------------------------------- masks and boxes


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(20, 120),
    height=st.integers(20, 120),
    fit=st.sampled_from(["crop", "squash", "whole"]),
    size=st.sampled_from([(32, 32), (24, 40)]),
    crop=st.sampled_from([0.8, 1.0]),
    corner=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)),
)
def test_mask_box_and_image_stay_together(
    width: int, height: int, fit: Any, size: tuple[int, int], crop: float, corner: tuple[float, float]
) -> None:
    """An object that is white on black: its mask, its box and its pixels come to lie on the same place."""
    spec = dataclasses.replace(SPEC, input_size=size, crop=crop, mean=None, std=None)
    left, top = int(corner[0] * width), int(corner[1] * height)
    right, bottom = left + width // 4 + 1, top + height // 4 + 1
    image = np.zeros((height, width, 3), np.uint8)
    image[top:bottom, left:right] = 255
    mask = image[:, :, 0] > 0
    batch = collate([Sample("a", image, 0, mask, np.array([[left, top, right, bottom]], np.float32))], spec, fit=fit)
    assert batch.masks is not None
    assert batch.boxes is not None
    seen = batch.x[0, 0] >= 127.5 / 255
    assert (batch.masks[0, 0] != seen).float().mean() <= 0.01
    filled = box_masks(batch.boxes, (batch.x.shape[2], batch.x.shape[3]))[0, 0]
    edge = 2 * (batch.x.shape[2] + batch.x.shape[3])
    assert (filled != seen).sum() <= edge  # at most a pixel all around
    xmin, ymin, xmax, ymax = batch.boxes[0][0].tolist()
    assert 0 <= xmin <= xmax <= batch.x.shape[3]
    assert 0 <= ymin <= ymax <= batch.x.shape[2]


def test_boxes_by_hand() -> None:
    """A 200 x 100 image, shorter side to 40, centre 32: x' = 0.4 x - 24, y' = 0.4 y - 4."""
    where = place((200, 100), dataclasses.replace(SPEC, crop=0.8))
    boxes = where.boxes(np.array([[100, 50, 110, 60], [0, 0, 200, 100], [0, 0, 10, 10]], np.float32))
    np.testing.assert_allclose(boxes, [[16, 16, 20, 20], [0, 0, 32, 32], [0, 0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(
        where.points(np.array([[0, 0], [100, 50]], np.float32)), [[-24, -4], [16, 16]], atol=1e-5
    )


def test_a_mask_at_its_own_size_is_untouched() -> None:
    mask = np.random.default_rng(0).random((32, 32)) > 0.5
    assert (place((32, 32), dataclasses.replace(SPEC, crop=1.0)).mask(mask) == mask).all()


def test_half_covered_cells_belong_to_the_object() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[:, :33] = True
    spec = dataclasses.replace(SPEC, crop=1.0)
    got = place((64, 64), spec).mask(mask)
    assert (got == got[0]).all()
    assert got[0].tolist() == [True] * 17 + [False] * 15 or got[0].tolist() == [True] * 16 + [False] * 16


def test_tight_box_and_filled_box_are_inverse() -> None:
    box = np.array([[3, 5, 9, 6]], np.float32)
    mask = box_masks([torch.from_numpy(box)], (8, 12))
    np.testing.assert_array_equal(tight_box(mask[0, 0].numpy()), box)
    assert tight_box(np.zeros((3, 3), np.bool_)).shape == (0, 4)


# ------------------------------------------------------------------------------------------------------------ batches


def test_collate() -> None:
    dataset = Synthetic(6)
    batch = collate([dataset[i] for i in (4, 1)], SPEC)
    assert batch.x.shape == (2, 3, 32, 32)
    assert batch.x.dtype == torch.float32
    assert batch.target.tolist() == [0, 1]
    assert batch.target.dtype == torch.int64
    assert batch.ids == ("synthetic-place-train-00004", "synthetic-place-train-00001")
    assert batch.masks is not None
    assert (batch.masks.shape, batch.masks.dtype) == ((2, 1, 32, 32), torch.bool)
    torch.testing.assert_close(batch.x, to_batch([dataset[4].image, dataset[1].image], SPEC), rtol=0, atol=0)
    with pytest.raises(DataError, match="no sample"):
        collate([], SPEC)


def test_a_batch_without_and_with_some_annotations() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    plain = Sample("a", image, 0)
    full = Sample("b", image, 1, np.ones((32, 32), np.bool_), np.array([[0, 0, 32, 32]], np.float32))
    none = collate([plain, plain], SPEC)
    assert none.masks is None
    assert none.boxes is None
    assert none.object_masks() is None
    mixed = collate([plain, full], SPEC)
    assert mixed.masks is not None
    assert mixed.boxes is not None
    assert mixed.masks.flatten(1).sum(1).tolist() == [0, 32 * 32]
    assert [len(b) for b in mixed.boxes] == [0, 1]


def test_boxes_stand_in_for_masks() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    spec = dataclasses.replace(SPEC, crop=1.0)
    batch = collate([Sample("a", image, 0, boxes=np.array([[2, 3, 5, 7]], np.float32))], spec)
    masks = batch.object_masks()
    assert masks is not None
    assert masks.sum() == 12
    assert masks[0, 0, 3:7, 2:5].all()


def test_a_part_of_a_batch_and_a_move() -> None:
    batch = Synthetic(5).batch(range(5), SPEC)
    assert len(batch) == 5
    part = batch[1:3]
    assert part.ids == batch.ids[1:3]
    assert part.boxes is not None
    assert len(part.boxes) == len(part) == 2
    moved = batch.to("meta")
    assert moved.x.device.type == moved.target.device.type == "meta"
    assert moved.masks is not None
    assert moved.masks.device.type == "meta"
    assert isinstance(moved, Batch)


# ---------------------------------------------------------------------------------------------------------- sequence


def test_sequence_protocol() -> None:
    dataset = Labels((0, 1, 0, 2))
    assert len(dataset) == 4
    assert dataset[-1].id == "3"
    assert [s.id for s in dataset] == ["0", "1", "2", "3"]
    assert [s.id for s in dataset[1:3]] == ["1", "2"]
    assert [s.id for s in dataset[::-1]] == ["3", "2", "1", "0"]
    for index in (4, -5):
        with pytest.raises(IndexError):
            _ = dataset[index]
    part = dataset.subset([3, 0])
    assert part.labels.tolist() == [2, 0]
    assert part.classes == dataset.classes
    assert [s.id for s in part.subset([1])] == ["0"]
    assert "2 of 4" in repr(part)


def test_subsets_keep_a_good_reading_order(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "a.parquet", 12)
    whole = datasets.create("parquet", root=tmp_path, split="all", cache_mb=0)
    part = whole.subset([0, 11, 5, 1, 6, 10])
    order = part.order(np.arange(6), torch.Generator().manual_seed(0)).tolist()
    assert sorted(order) == list(range(6))
    groups = [(0, 11, 5, 1, 6, 10)[i] // 4 for i in order]
    assert len({g for i, g in enumerate(groups) if i == 0 or g != groups[i - 1]}) == 3
    assert sum(a != b for a, b in itertools.pairwise(groups)) == 2


# -------------------------------------------------------------------------------------------------------------- split


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6), fraction=st.floats(0.05, 0.5), seed=st.integers(0, 99)
)
def test_split_is_a_fair_partition(counts: list[int], fraction: float, seed: int) -> None:
    values = [c for c, n in enumerate(counts) for _ in range(n)]
    np.random.default_rng(0).shuffle(values)
    dataset = Labels(tuple(values))
    train, held = split(dataset, fraction, seed)
    assert sorted(train.indices + held.indices) == list(range(len(values)))
    assert len(held) == max(1, round(fraction * len(values)))
    kept = Counter(held.labels.tolist())
    assert set(train.labels.tolist()) == set(values)
    for c, n in enumerate(counts):
        assert abs(kept[c] - fraction * n) < 1 + len(counts) / 2
    assert split(dataset, fraction, seed)[1].indices == held.indices


def test_split_by_hand() -> None:
    dataset = Labels((0,) * 10 + (1,) * 20 + (2,) * 30)
    train, held = split(dataset, 0.1)
    assert Counter(held.labels.tolist()) == {0: 1, 1: 2, 2: 3}
    assert list(held.indices) == sorted(held.indices)
    assert list(train.indices) == sorted(train.indices)
    assert split(dataset, 0.1, seed=1)[1].indices != held.indices


def test_a_class_keeps_its_split_when_another_grows() -> None:
    small, large = Labels((0,) * 10 + (1,) * 10), Labels((0,) * 10 + (1,) * 30)
    first = [[i for i in split(d, 0.2)[1].indices if i < 10] for d in (small, large)]
    assert first[0] == first[1]


def test_split_out_of_range() -> None:
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ParameterError, match="fraction must be between 0 and 1"):
            split(Labels((0, 1)), fraction)
    with pytest.raises(ParameterError, match="cannot hold out 1 of 3 samples and leave one of each of 3 classes"):
        split(Labels((0, 1, 2)), 0.3)


def test_listing(tmp_path: Path) -> None:
    assert listing(tmp_path) == "an empty folder"
    for i in range(8):
        (tmp_path / f"{i}").mkdir() if i % 2 else (tmp_path / f"{i}").write_text("")
    assert listing(tmp_path) == "0, 1/, 2, 3/, 4, 5/ … (8 in all)"


def test_batches_and_samples_are_pickled() -> None:
    batch = pickle.loads(pickle.dumps(Synthetic(2).batch([0, 1], SPEC)))
    assert batch.ids[1].endswith("1")
    assert isinstance(Image.fromarray(pickle.loads(pickle.dumps(Synthetic(1)[0])).image), Image.Image)
