"""What a data set is: a sequence of samples that is read lazily, batches of it, and parts of it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from xattn.data.finding import nearest_path
from xattn.data.preprocessing import Fit, place, preprocess
from xattn.data.reading import read_image
from xattn.errors import DataError, ParameterError, XattnError, unknown
from xattn.spec import ModelSpec

Transform = Callable[[Image.Image], Tensor]
"""From an RGB image to what the model takes, (3, H, W): augmentation and normalization in one, for training."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image with what is known of it.

    Coordinates are pixels of the image: x to the right, y down, 0 the outer edge of the first pixel. A box is
    (xmin, ymin, xmax, ymax) with xmax and ymax the outer edge too, so that xmax - xmin is its width.

    Args:
        id: name of the image, unique in its data set.
        image: uint8 (H, W, 3).
        label: index of the class.
        mask: bool (H, W), True on the object.
        boxes: float32 (B, 4), the boxes of the object.
        parts: name of a part -> its point (x, y), for the parts that can be seen.
    """

    id: str
    image: NDArray[np.uint8]
    label: int
    mask: NDArray[np.bool_] | None = None
    boxes: NDArray[np.float32] | None = None
    parts: Mapping[str, tuple[float, float]] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as a model sees them; masks and boxes went through the same resizing and cropping as the images.

    Args:
        x: normalized images (N, 3, H, W).
        target: labels, int64 (N,).
        ids: names of the images, N of them.
        masks: bool (N, 1, H, W), True on the object; None if no image of the batch has one, all False for one without.
        boxes: for each image float32 (B, 4) in pixels of `x`; None if no image of the batch has one.
    """

    x: Tensor
    target: Tensor
    ids: tuple[str, ...]
    masks: Tensor | None = None
    boxes: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> Batch:
        """Some of the images, as a batch."""
        return Batch(
            x=self.x[index],
            target=self.target[index],
            ids=self.ids[index],
            masks=None if self.masks is None else self.masks[index],
            boxes=None if self.boxes is None else self.boxes[index],
        )

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """The batch on a device; options as of `Tensor.to`."""
        return dataclasses.replace(
            self,
            x=self.x.to(device, **options),
            target=self.target.to(device, **options),
            masks=None if self.masks is None else self.masks.to(device, **options),
            boxes=None if self.boxes is None else tuple(b.to(device, **options) for b in self.boxes),
        )

    def object_masks(self) -> Tensor | None:
        """`masks`, else the filled boxes, as bool (N, 1, H, W); None if there is neither."""
        if self.masks is not None or self.boxes is None:
            return self.masks
        return box_masks(self.boxes, (self.x.shape[-2], self.x.shape[-1]))


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Masks of filled boxes.

    Args:
        boxes: for each image (B, 4) of xmin, ymin, xmax, ymax in pixels.
        size: height and width of the masks.

    Returns:
        bool (N, 1, H, W), True where the centre of a pixel is inside a box.

    >>> box_masks([torch.tensor([[1.0, 0.0, 3.0, 1.0]])], (2, 4)).int().tolist()
    [[[[0, 1, 1, 0], [0, 0, 0, 0]]]]
    """
    masks = torch.zeros(len(boxes), 1, *size, dtype=torch.bool)
    for i, rows in enumerate(boxes):
        y = torch.arange(size[0], device=rows.device) + 0.5
        x = torch.arange(size[1], device=rows.device) + 0.5
        for xmin, ymin, xmax, ymax in rows:
            inside = ((y >= ymin) & (y < ymax))[:, None] & ((x >= xmin) & (x < xmax))[None, :]
            masks[i, 0] |= inside.to(masks.device)
    return masks.to(boxes[0].device) if len(boxes) else masks


def collate(
    samples: Sequence[Sample], spec: ModelSpec, *, fit: Fit = "crop", transform: Transform | None = None
) -> Batch:
    """Samples as one batch.

    Args:
        samples: at least one.
        spec: how images are preprocessed.
        fit: as in `preprocess`.
        transform: replaces `preprocess`. Masks and boxes are left out then: the transform does not move them.
    """
    if not samples:
        raise DataError("collate: there is no sample; pass at least one.")
    target = torch.tensor([s.label for s in samples], dtype=torch.int64)
    ids = tuple(s.id for s in samples)
    if transform is not None:
        return Batch(torch.stack([transform(Image.fromarray(s.image)) for s in samples]), target, ids)
    x = torch.stack([preprocess(s.image, spec, fit=fit) for s in samples])
    places = [place((s.image.shape[1], s.image.shape[0]), spec, fit) for s in samples]
    masks = boxes = None
    if any(s.mask is not None for s in samples):
        empty = np.zeros(x.shape[-2:], np.bool_)
        rows = [empty if s.mask is None else p.mask(s.mask) for s, p in zip(samples, places, strict=True)]
        masks = torch.from_numpy(np.stack(rows)[:, None].copy())
    if any(s.boxes is not None for s in samples):
        none = np.zeros((0, 4), np.float32)
        moved = [p.boxes(none if s.boxes is None else s.boxes) for s, p in zip(samples, places, strict=True)]
        boxes = tuple(torch.from_numpy(m.copy()) for m in moved)
    return Batch(x, target, ids, masks, boxes)


@dataclass(frozen=True)
class _Collate:
    """`collate` with its parameters; an object, since workers need to pickle it."""

    spec: ModelSpec
    fit: Fit
    transform: Transform | None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.spec, fit=self.fit, transform=self.transform)


class Dataset(Sequence[Sample], ABC):
    """A sequence of samples that is read when asked for. Nothing is downloaded."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""

    @property
    @abstractmethod
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,), without reading an image."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Read one sample, 0 <= index < len(self)."""

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Sample | Subset:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.sample(position)

    def __iter__(self) -> Iterator[Sample]:
        return (self.sample(i) for i in range(len(self)))

    def subset(self, indices: Iterable[int]) -> Subset:
        """The samples at these places, in this order."""
        return Subset(self, tuple(int(i) for i in indices))

    def order(self, generator: torch.Generator) -> list[int]:
        """All places in a random order that can be read at a good speed."""
        return torch.randperm(len(self), generator=generator).tolist()

    def batch(self, indices: Iterable[int], spec: ModelSpec, *, fit: Fit = "crop") -> Batch:
        """The samples at these places as one batch."""
        return collate([self[int(i)] for i in indices], spec, fit=fit)

    def loader(
        self,
        spec: ModelSpec,
        *,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        fit: Fit = "crop",
        transform: Transform | None = None,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        """A loader of batches.

        Args:
            spec: how images are preprocessed.
            batch_size: images in a batch; the last one may have fewer unless `drop_last`.
            shuffle: another order in each pass, the same for the same `seed`. `loader.sampler.set_epoch(n)` chooses
                the pass; without it passes are counted.
            seed: of the order.
            workers: processes that read.
            fit: as in `preprocess`.
            transform: replaces `preprocess`, as in `collate`.
            drop_last: leave out a last batch that is not full.
        """
        return DataLoader(
            self,  # type: ignore[arg-type]  # a Sequence is what DataLoader needs
            batch_size=batch_size,
            sampler=RandomOrder(self, seed) if shuffle else None,
            num_workers=workers,
            collate_fn=_Collate(spec, fit, transform),
            drop_last=drop_last,
            persistent_workers=workers > 0,
        )


class RandomOrder(Sampler[int]):
    """A random order for each pass over a data set, from a seed and the number of the pass.

    Args:
        dataset: whose `order` is asked for.
        seed: of all passes.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the next pass, as after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        # Mixed as numpy does it: seed + epoch would give one order to (0, 1) and (1, 0)
        state = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        self.epoch += 1
        return iter(self.dataset.order(torch.Generator().manual_seed(state)))


@dataclass(frozen=True, eq=False)
class Subset(Dataset):
    """Some samples of a data set, with all its classes.

    Args:
        dataset: the whole.
        indices: places in it.
    """

    dataset: Dataset
    indices: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Subset({self.dataset!r}, {len(self.indices)} of {len(self.dataset)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the whole."""
        return self.dataset.classes

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return self.dataset.labels[np.array(self.indices, np.int64)]

    def sample(self, index: int) -> Sample:
        """Read one sample of the whole."""
        return self.dataset[self.indices[index]]

    def order(self, generator: torch.Generator) -> list[int]:
        """Places in the order that the whole prefers."""
        positions: dict[int, list[int]] = {}
        for position, index in enumerate(self.indices):
            positions.setdefault(index, []).append(position)
        return [p for index in self.dataset.order(generator) for p in positions.get(index, ())]


def split(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Subset, Subset]:
    """Divide a data set in one to train on and one to hold out, each class in the same proportion.

    Args:
        dataset: at least two samples.
        fraction: share that is held out, in (0, 1); `round(fraction * n)` samples, at least one.
        seed: of the choice, which does not depend on the order of classes.

    Returns:
        The training part and the held-out part, both in the order of `dataset`. A class keeps at least one sample to
        train on.

    Raises:
        ParameterError: if `fraction` is out of range or nothing could be held out.
    """
    if not 0 < fraction < 1:
        raise ParameterError(f"split: fraction must be between 0 and 1 but is {fraction}.")
    labels = dataset.labels
    total = max(1, round(fraction * len(labels)))
    members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    room = {c: len(m) - 1 for c, m in members.items()}
    if sum(room.values()) < total:
        raise ParameterError(
            f"split: cannot hold out {total} of {len(labels)} samples and leave one of each of {len(members)} classes; "
            "lower the fraction."
        )
    counts = {c: min(int(fraction * len(m)), room[c]) for c, m in members.items()}
    rest = {c: fraction * len(m) - counts[c] for c, m in members.items()}
    while sum(counts.values()) < total:  # largest remainders first, the lower label where they are equal
        c = max((c for c in counts if counts[c] < room[c]), key=lambda c: (rest[c], -c))
        counts[c] += 1
        rest[c] -= 1
    held: set[int] = set()
    for c, m in members.items():
        generator = np.random.default_rng([seed, c])
        held.update(int(i) for i in generator.permutation(m)[: counts[c]])
    train = [i for i in range(len(labels)) if i not in held]
    return dataset.subset(train), dataset.subset(sorted(held))


@dataclass(frozen=True, eq=False)
class Index:
    """What a data set lists.

    Args:
        paths: image files.
        labels: int64, a class for each.
        classes: names in the order of the labels.
        ids: a name for each image; None: its path below the folder of the data set.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    ids: Sequence[str] | None = None


@dataclass(frozen=True)
class FileDataset(Dataset):
    """A data set in a folder. It is checked when it is made, as far as can be seen without opening images.

    Args:
        root: the folder. The one that an archive unpacks to may be inside it.
        split: which part, one of `splits`.
    """

    root: str | Path
    split: str = "train"

    title: ClassVar[str] = "data set"
    source: ClassVar[str] = ""
    """Where to get it."""
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    training: ClassVar[str] = "train"
    """The part to train on."""
    evaluation: ClassVar[str | None] = "test"
    """The part to test on; None if the authors defined none."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Names of the folder that the archive unpacks to."""
    required: ClassVar[tuple[str, ...]] = ()
    """What has to be there, relative to that folder."""
    sign: ClassVar[tuple[str, ...]] = ()
    """By which files, and folders ending in `/`, a folder is known as this data set; empty if by none."""
    upright: ClassVar[bool] = False
    """Whether the EXIF orientation is applied: not where boxes or masks were drawn on the stored pixels."""

    def __post_init__(self) -> None:
        if self.split not in self.splits:
            raise unknown(f"split of {self.title}", self.split, self.splits)
        self._check()
        self._check_files(self._index.paths)

    @cached_property
    def home(self) -> Path:
        """The folder that holds the files: the root or the unpacked folder in it."""
        root = Path(self.root).expanduser()
        if not root.exists():
            guess = nearest_path(root)
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise self._error(f"there is no folder '{root}'.{hint}")
        if not root.is_dir():
            raise self._error(f"'{root}' is a file; expected the folder of the data set.")
        places = [root, *(root / name for name in self.folders)]
        return max(places, key=lambda place: sum((place / name).exists() for name in self.required))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""
        return self._index.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return self._index.labels

    def sample(self, index: int) -> Sample:
        """Read one sample."""
        path = self._index.paths[index]
        name = path.relative_to(self.home).as_posix() if self._index.ids is None else self._index.ids[index]
        image = np.array(read_image(path, upright=self.upright), dtype=np.uint8)
        return self._annotated(index, Sample(name, image, int(self.labels[index])))

    def _annotated(self, index: int, sample: Sample) -> Sample:
        """The sample with its mask, boxes and parts."""
        return sample

    @abstractmethod
    def _list(self) -> Index:
        """Read the lists of the data set."""

    @cached_property
    def _index(self) -> Index:
        try:
            index = self._list()
        except XattnError:
            raise
        except (ValueError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise self._error(f"the lists in '{self.home}' are damaged or do not fit together ({reason}).") from None
        if not len(index.labels):
            raise self._error(f"the {self.split} part in '{self.home}' lists no image.")
        if index.labels.min() < 0 or index.labels.max() >= len(index.classes):
            raise self._error(
                f"labels go from {index.labels.min()} to {index.labels.max()} but there are {len(index.classes)} "
                f"classes in '{self.home}'."
            )
        return index

    def _check(self) -> None:
        """Raise a DataError if something required is missing."""
        missing = [name for name in self.required if not (self.home / name).exists()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self._error(f"expected '{self.home / missing[0]}'{more} but found {listing(self.home)}.")

    def _check_files(self, paths: Sequence[Path]) -> None:
        """Raise a DataError if some of these files are missing; folders are listed, files not touched."""
        there: dict[Path, set[str]] = {}
        for folder in {p.parent for p in paths}:
            there[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        missing = [p for p in paths if p.name not in there[p.parent]]
        if missing:
            raise self._error(
                f"{len(missing):,} of {len(paths):,} images of the {self.split} part are missing, the first is "
                f"'{missing[0]}' (its folder holds: {listing(missing[0].parent, 3)}); the data set is not complete."
            )

    def _error(self, text: str) -> DataError:
        where = f" Get it from {self.source} and pass the unpacked folder." if self.source else ""
        return DataError(f"{self.title}: {text}{where}")

    def _rows(self, name: str, fields: int, separator: str | None = None) -> list[list[str]]:
        """Rows of a text file, cut in `fields` pieces; the last piece keeps its separators.

        Raises:
            DataError: with file and line, if a row is shorter.
        """
        path = self.home / name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"'{path}' cannot be read ({error}).") from None
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            row = [piece.strip() for piece in line.split(separator, fields - 1)]
            if len(row) < fields:
                raise self._error(
                    f"line {number} of '{path}' has {len(row)} fields, expected {fields}; the file is damaged or cut."
                )
            rows.append(row)
        return rows


def listing(folder: Path, limit: int = 6) -> str:
    """What a folder holds, for messages.

    >>> listing(Path("/nowhere"))
    'no such folder'
    """
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    more = f" … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The smallest box around a mask (H, W), as float32 (1, 4); (0, 4) where the mask is empty.

    >>> tight_box(np.array([[False, True, True], [False, True, False]])).tolist()
    [[1.0, 0.0, 3.0, 2.0]]
    """
    if not mask.any():
        return np.zeros((0, 4), np.float32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
