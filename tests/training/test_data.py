"""Images for training: the same from memory and from workers, and splits that are fair."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import copies
from tests.training.colours import COLOURS, write_images
from xattn.data.sample import Sample
from xattn.errors import DataError
from xattn.training.augment import draw
from xattn.training.data import LazySource, MemorySource, cache_folder, hold_out, open_source
from xattn.training.recipe import AugmentSection, DataSection


def test_a_folder_of_small_images_is_kept_in_memory_and_cached(colours: Path) -> None:
    source = open_source(DataSection(source=str(colours)), "train")
    assert isinstance(source, MemorySource)
    assert source.classes == tuple(COLOURS)
    assert source.labels.bincount().tolist() == [14, 14, 14]
    (batch,) = source.batches([torch.tensor([0, 41])], [None], AugmentSection(crop="none"), 32)
    expected = np.array(Image.open(colours / "red" / "013.png"))
    assert np.array_equal(batch[1].permute(1, 2, 0).numpy(), expected)
    files = list(cache_folder().glob("images-*.npy"))
    again = open_source(DataSection(source=str(colours)), "train")
    assert list(cache_folder().glob("images-*.npy")) == files
    assert torch.equal(again.labels, source.labels)


def test_a_changed_folder_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    root = write_images(tmp_path / "a", 3, 16, seed=1)
    open_source(DataSection(source=str(root)), None)
    for file in root.glob("*/*.png"):
        Image.new("RGB", (16, 16), (1, 2, 3)).save(file)
    source = open_source(DataSection(source=str(root)), None)
    (batch,) = source.batches([torch.tensor([0])], [None], AugmentSection(crop="none"), 16)
    assert batch[0, :, 5, 5].tolist() == [1, 2, 3]


def test_one_exchanged_image_and_a_damaged_cache_are_noticed(tmp_path: Path) -> None:
    root = write_images(tmp_path / "small", 20, 16, seed=0)
    before = cast("MemorySource", open_source(DataSection(source=str(root)), None)).pixels.clone()
    cached = set(cache_folder().glob("images-*.npy"))
    (file,) = root.glob("red/013.png")  # none of the few that are probed
    Image.new("RGB", (16, 16), (1, 2, 3)).save(file)
    source = cast("MemorySource", open_source(DataSection(source=str(root)), None))
    assert (source.pixels != before).flatten(1).any(1).sum() == 1
    (new,) = set(cache_folder().glob("images-*.npy")) - cached
    whole = new.read_bytes()
    for damage in (b"", whole[:-1], b"no array at all", whole.replace(b"16, 16", b"16, 99")):
        new.unlink()  # the old file stays mapped
        new.write_bytes(damage)
        again = cast("MemorySource", open_source(DataSection(source=str(root)), None))
        assert torch.equal(again.pixels, source.pixels)


def test_large_images_are_decoded_when_needed_and_agree_with_memory(tmp_path: Path) -> None:
    root = write_images(tmp_path / "large", 2, 128, seed=0)
    source = open_source(DataSection(source=str(root)), None)
    assert isinstance(source, LazySource)
    pixels = torch.from_numpy(np.stack([sample.image for sample in source.samples]))
    memory = MemorySource(pixels, source.labels, source.classes)
    section = AugmentSection(scale=(0.3, 0.5))
    indices = [torch.tensor([3, 1]), torch.tensor([5])]
    draws = [draw(section, len(i), torch.Generator().manual_seed(0)) for i in indices]
    lazy = list(source.batches(indices, draws, section, 64))
    for a, b in zip(lazy, memory.batches(indices, draws, section, 64), strict=True):
        assert a.shape == b.shape == (len(a), 3, 64, 64)
        # Pillow has a low-pass filter and rounds; where images are, and how large, is the same.
        assert (a.float() - b).abs().mean() < 8
        assert (a.float().mean((2, 3)) - b.mean((2, 3))).abs().max() < 2


def test_images_beyond_the_cache_are_read_by_row_group(tmp_path: Path) -> None:
    copies.parquet(tmp_path / "a.parquet", 24)  # six row groups, images of three sizes
    section = DataSection(source=f"parquet:{tmp_path},cache_mb=0", per_class=6)
    source = open_source(section, None)
    chosen = torch.arange(18)
    order = source.order(chosen, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == chosen.tolist()
    groups = [int(sample.id.removeprefix("img_").removesuffix(".png")) // 4 for sample in _read(source, order)]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == 4  # 18 images lie in five groups, each read once
    assert groups != sorted(groups)


def _read(source: Any, order: torch.Tensor) -> list[Sample]:
    return [source.source.samples[int(i)] for i in source.chosen[order]]


@pytest.mark.slow
def test_workers_give_the_same_batches_and_leave_ctrl_c_to_the_main_process(tmp_path: Path) -> None:
    source = open_source(DataSection(source=str(write_images(tmp_path / "large", 2, 128, seed=0))), None)
    assert isinstance(source, LazySource)
    section = AugmentSection()
    indices = [torch.tensor([i % 6, 5 - i % 6]) for i in range(12)]  # more than are fetched ahead
    draws = [draw(section, 2, torch.Generator().manual_seed(i)) for i in range(12)]
    alone = list(source.batches(indices, draws, section, 32))
    source.workers = 1
    batches = source.batches(indices, draws, section, 32)
    first = next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGINT)
    for a, b in zip(alone, [first, *batches], strict=True):
        assert torch.equal(a, b)


def test_some_classes_and_some_images_of_each(colours: Path) -> None:
    part = open_source(DataSection(source=str(colours), classes=2, per_class=5), None)
    assert part.classes == ("blue", "green")
    assert part.labels.tolist() == [0] * 5 + [1] * 5
    whole = open_source(DataSection(source=str(colours)), None)
    section = AugmentSection(crop="none")
    (a,) = part.batches([torch.tensor([7])], [None], section, 32)
    (b,) = whole.batches([torch.tensor([16])], [None], section, 32)
    assert torch.equal(a, b)
    with pytest.raises(DataError, match="3 classes but 4"):
        open_source(DataSection(source=str(colours), classes=4), None)


def test_variables_in_the_source_are_replaced(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XATTN_DATA", str(colours.parent))
    assert len(open_source(DataSection(source=f"$XATTN_DATA/{colours.name}"), None)) == 42
    monkeypatch.delenv("XATTN_DATA")
    with pytest.raises(DataError, match="set the variable"):
        open_source(DataSection(source="$XATTN_DATA/x"), None)
    with pytest.raises(DataError, match=r"data\.source is empty"):
        open_source(DataSection(), None)


def test_held_out_images_are_apart_and_a_fair_share_of_each_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 1)
    train, held = hold_out(labels, 0.1, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(61))
    assert labels[held].bincount(minlength=3).tolist() == [4, 2, 0]  # the only image of a class is trained with
    assert torch.equal(held, hold_out(labels, 0.1, seed=0)[1])
    assert not torch.equal(held, hold_out(labels, 0.1, seed=1)[1])
    with pytest.raises(DataError, match="no class has two images"):
        hold_out(torch.tensor([0, 1]), 0.5, 0)
