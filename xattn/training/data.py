"""Labelled images for training and evaluation: in memory where they are small, else decoded by workers."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from xattn.data.folder import images_below
from xattn.data.loose import LooseImages
from xattn.errors import DataError, reason_of, unknown
from xattn.files import read_regular, whole_file
from xattn.training.augment import Draws, Size, crop_boxes, cut, sides
from xattn.training.recipe import AugmentSection, DataSection

if TYPE_CHECKING:
    from xattn.data.dataset import Dataset

SMALL_PIXELS = 96 * 96  # images up to this size are kept in memory
_LIST_BYTES = 2**24
_SAMPLE = 8  # images looked at to see whether all have one size


class Source(ABC):
    """Labelled images that give cut and resized batches.

    Args:
        labels: class of each image (n,).
        classes: names of the classes.

    Attributes:
        fingerprint: a digest of what the images depend on, which differs once one of them is exchanged.
        groups: camera or day of each image (n,), where it is known.
    """

    def __init__(self, labels: Tensor, classes: tuple[str, ...]) -> None:
        self.labels = labels
        self.classes = classes
        self.fingerprint = ""
        self.groups: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """A random order (n,) of these images (n,) in which they are read at a good speed."""
        return torch.randperm(len(indices), generator=generator)

    @abstractmethod
    def batches(
        self, indices: Sequence[Tensor], draws: Sequence[Draws | None], section: AugmentSection, size: Size
    ) -> Iterator[Tensor]:
        """Batches of images (n, 3, *size), values 0 to 255, one for each tensor of indices."""


class MemorySource(Source):
    """Images of one small size, as one tensor.

    Args:
        pixels: uint8 (n, H, W, 3).
        labels: (n,).
        classes: names.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(labels, classes)
        self.pixels = pixels.permute(0, 3, 1, 2)

    def batches(
        self, indices: Sequence[Tensor], draws: Sequence[Draws | None], section: AugmentSection, size: Size
    ) -> Iterator[Tensor]:
        """Batches cut on the tensor itself."""
        whole = torch.tensor(self.pixels.shape[2:])
        for chosen, drawn in zip(indices, draws, strict=True):
            boxes = crop_boxes(section, drawn, whole.expand(len(chosen), 2), size)
            yield cut(self.pixels[chosen], boxes, size)


class _Crops(torch.utils.data.Dataset[Tensor]):
    """One image of a data set, decoded, cut and resized, for the workers of a loader."""

    def __init__(self, samples: Sequence[Any], section: AugmentSection, size: Size) -> None:
        self.samples = samples
        self.section = section
        self.size = size

    def __getitem__(self, item: tuple[int, dict[str, Tensor] | None]) -> Tensor:
        from PIL import Image

        index, drawn = item
        pixels = np.ascontiguousarray(self.samples[index].image)
        boxes = crop_boxes(self.section, drawn, torch.tensor([pixels.shape[:2]]), self.size)
        left, top, right, bottom = boxes[0].tolist()
        image = Image.fromarray(pixels).resize(
            sides(self.size)[::-1], Image.Resampling.BILINEAR, (left, top, right, bottom)
        )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which needs the workers until its state is written."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class LazySource(Source):
    """Images of any size, decoded when they are needed.

    Args:
        samples: data set.
        labels: (n,).
        classes: names.
        workers: processes that decode.
    """

    def __init__(self, samples: Dataset, labels: Tensor, classes: tuple[str, ...], workers: int = 0) -> None:
        super().__init__(labels, classes)
        self.samples = samples
        self.workers = workers

    def order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The order that the data set prefers."""
        return self.samples.order(indices.numpy(), generator)

    def batches(
        self, indices: Sequence[Tensor], draws: Sequence[Draws | None], section: AugmentSection, size: Size
    ) -> Iterator[Tensor]:
        """Batches from the workers, in order."""
        plan = [
            [
                (int(index), None if drawn is None else {k: v[i : i + 1] for k, v in drawn.items()})
                for i, index in enumerate(chosen.tolist())
            ]
            for chosen, drawn in zip(indices, draws, strict=True)
        ]
        loader = torch.utils.data.DataLoader(
            _Crops(self.samples, section, size),
            batch_sampler=cast("Any", plan),
            num_workers=self.workers,
            collate_fn=torch.stack,
            worker_init_fn=_ignore_signals,
        )
        yield from loader


def cache_folder() -> Path:
    """Folder for decoded images: `XATTN_CACHE`, or `xattn` in the user's cache."""
    chosen = os.environ.get("XATTN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "xattn"


def open_source(section: DataSection, split: str | None, *, labelled: bool = True) -> Source:
    """The images that a recipe names.

    Args:
        section: data set, its folder, and how much of it.
        split: as in `xattn.data.open_dataset`: `"train"`, `"test"`, a part by its own name, None for what there is.
        labelled: False takes a folder of images without classes too.

    Raises:
        DataError: if there are no images, or not the classes asked for.
    """
    from xattn.data import open_dataset

    text = os.path.expandvars(section.source)
    if not text:
        raise DataError("data.source is empty: pass the folder of the images, or NAME:FOLDER for a known data set.")
    if "$" in text:
        raise DataError(
            f"data.source '{section.source}': set the variable in it, for example XATTN_DATA=/path/to/data."
        )
    plain = not labelled and Path(text).is_dir() and bool(images_below(Path(text)))
    dataset = LooseImages(text) if plain else open_dataset(text, split)
    if len(dataset) == 0:
        raise DataError(f"'{text}' has no images for '{split or 'any part'}'.")
    labels = torch.as_tensor(dataset.labels, dtype=torch.int64)
    fingerprint = dataset.fingerprint()
    pixels = _in_memory(dataset, fingerprint)
    source: Source = (
        LazySource(dataset, labels, dataset.classes, section.workers)
        if pixels is None
        else MemorySource(pixels, labels, dataset.classes)
    )
    source.fingerprint = fingerprint
    source.groups = None if dataset.groups is None else torch.as_tensor(dataset.groups, dtype=torch.int64)
    return _subset(source, section)


def _in_memory(dataset: Dataset, fingerprint: str) -> Tensor | None:
    """All images as one uint8 tensor (n, H, W, 3), decoded once and then mapped from the cache; None if too large.

    None too if their sizes differ.
    """
    n = len(dataset)
    probed = {i: dataset[i].image for i in range(0, n, max(1, n // _SAMPLE))}
    shapes = {image.shape for image in probed.values()}
    if len(shapes) != 1:
        return None
    (shape,) = shapes
    if shape[0] * shape[1] > SMALL_PIXELS:
        return None
    digest = hashlib.blake2b(f"{fingerprint} {n} {shape}".encode(), digest_size=8)
    for image in probed.values():  # a data set that does not know its files is told by some of its images
        digest.update(image.tobytes())
    path = cache_folder() / f"images-{digest.hexdigest()}.npy"
    pixels = _load(path, (n, *shape))
    if pixels is None:
        try:
            _save(dataset, (n, *shape), path)
        except _SizesDifferError:
            return None
        except OSError as error:
            raise DataError(
                f"'{path}': decoded images cannot be kept there ({error.strerror or error}); set XATTN_CACHE to a "
                f"folder with {n * math.prod(shape):,} bytes of room."
            ) from None
        pixels = _load(path, (n, *shape))
    return pixels


class _SizesDifferError(Exception):
    """Images of one data set have several sizes."""


def _load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Decoded images, mapped; None if the file is not there or not what it should be."""
    try:
        pixels = np.load(path, mmap_mode="c")  # copy on write, as torch wants it
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(pixels) if (pixels.shape, pixels.dtype) == (shape, np.uint8) else None


def _save(dataset: Dataset, shape: tuple[int, ...], path: Path) -> None:
    """Decode all images into one file, one by one, so that memory holds one at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for sample in dataset:
            if sample.image.shape != shape[1:]:
                raise _SizesDifferError
            stream.write(sample.image.tobytes())


class _Part(Source):
    """Some images of a source."""

    def __init__(self, source: Source, chosen: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        super().__init__(labels[chosen], classes)
        self.source = source
        self.chosen = chosen
        self.fingerprint = source.fingerprint
        self.groups = None if source.groups is None else source.groups[chosen]

    def order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        return self.source.order(self.chosen[indices], generator)

    def batches(
        self, indices: Sequence[Tensor], draws: Sequence[Draws | None], section: AugmentSection, size: Size
    ) -> Iterator[Tensor]:
        return self.source.batches([self.chosen[i] for i in indices], draws, section, size)


def _subset(source: Source, section: DataSection) -> Source:
    """The classes of a list, or the first ones, and the first images of each, where the recipe asks for fewer."""
    if section.class_list:
        source = _listed(source, section)
    if not section.classes and not section.per_class:
        return source
    if section.classes > len(source.classes):
        have = len(source.classes)
        raise DataError(f"'{section.source}' has {have} classes but {section.classes} are asked for.")
    classes = section.classes or len(source.classes)
    keep = source.labels < classes
    if section.per_class:
        for label in range(classes):
            keep[torch.nonzero(source.labels == label).flatten()[section.per_class :]] = False
    return _Part(source, torch.nonzero(keep).flatten(), source.labels, source.classes[:classes])


def _listed(source: Source, section: DataSection) -> Source:
    """The images of the classes that a file names, numbered in its order."""
    path = Path(os.path.expandvars(section.class_list)).expanduser()
    try:
        names = [line.strip() for line in read_regular(path, _LIST_BYTES).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"data.class_list: '{path}' cannot be read ({reason_of(error)}).") from None
    number = {name: i for i, name in enumerate(source.classes)}
    for name in names:
        if name not in number:
            raise unknown(f"class of '{section.source}'", name, source.classes)
    if len(set(names)) != len(names) or not names:
        raise DataError(f"data.class_list: '{path}' must name some classes, one a line, each once.")
    new = torch.full((len(source.classes),), -1)
    new[[number[name] for name in names]] = torch.arange(len(names))
    labels = new[source.labels]
    chosen = torch.nonzero(labels >= 0).flatten()
    if not len(chosen):
        raise DataError(f"'{section.source}' has no image of the classes in '{path}'.")
    return _Part(source, chosen, labels, tuple(names))


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the training images class by class.

    Args:
        labels: (n,).
        share: share of each class that is held out, at least one image of a class that has two.
        seed: of the choice.

    Returns:
        Indices of the images to train with and of those held out, both in order.

    Raises:
        DataError: if nothing is left for one of them.

    >>> train, held = hold_out(torch.tensor([0, 0, 0, 0, 1, 1]), 0.25, seed=0)
    >>> len(train), len(held)
    (4, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique(sorted=True).tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not bool(held.any()):
        raise DataError("training: no class has two images, so that none can be held out to choose the best epoch.")
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()
