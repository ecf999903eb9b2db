"""What a data set is: a sequence of samples that is read lazily, and parts of it."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data.preprocessing import Fit
from xattn.data.sample import Batch, Sample, collate
from xattn.errors import ParameterError
from xattn.spec import ModelSpec

_ELSEWHERE = ("root", "cache_mb")  # where files are and what is kept in memory: neither changes a sample


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

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Under what circumstances every sample was taken (n,), its camera or its day; None where it is not known."""
        return None

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

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order, int64 (n,), of the samples at these places, such that they are read at a good speed."""
        return torch.randperm(len(indices), generator=generator)

    def fingerprint(self, *, content: bool = False) -> str:
        """A digest of what the samples depend on, 32 hexadecimal digits, found without decoding an image.

        Here: the class, the parameters, the labels and the names of the classes, which is all there is to a data set
        that draws its images. One that reads files adds each of them (`FileDataset`). A field that was added later
        (metadata `later`) counts where it is not its default, so that what was run before it was there goes on.

        Args:
            content: digest the contents of files instead of their sizes and times, so that a copy on another machine
                has the same fingerprint; every file is read once.
        """
        fields = dataclasses.fields(cast(Any, self)) if hasattr(self, "__dataclass_fields__") else ()
        counts = [f for f in fields if not ("later" in f.metadata and getattr(self, f.name) == f.default)]
        parameters = {f.name: getattr(self, f.name) for f in counts if f.name not in _ELSEWHERE}
        of_whole = [v.fingerprint(content=content) for v in parameters.values() if isinstance(v, Dataset)]
        plain = {k: v for k, v in parameters.items() if not isinstance(v, Dataset)}
        facts = (type(self).__qualname__, plain, of_whole, self.classes)
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()

    def batch(self, indices: Iterable[int], spec: ModelSpec, *, fit: Fit | None = None) -> Batch:
        """The samples at these places as one batch."""
        return collate([self[int(i)] for i in indices], spec, fit=fit)


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

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Those of the whole."""
        groups = self.dataset.groups
        return None if groups is None else groups[np.array(self.indices, np.int64)]

    def sample(self, index: int) -> Sample:
        """Read one sample of the whole."""
        return self.dataset[self.indices[index]]

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order that suits the whole."""
        return self.dataset.order(np.array(self.indices, np.int64)[indices], generator)


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
