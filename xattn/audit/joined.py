"""Several data sets as one that remembers where each image is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xattn.data.dataset import Dataset
from xattn.data.sample import Sample
from xattn.errors import DataError


@dataclass(frozen=True, eq=False)
class Joined(Dataset):
    """Data sets of the same classes, one after the other; the name of an image begins with that of its data set.

    Args:
        datasets: by name, such as `train` and `test`.
    """

    datasets: Mapping[str, Dataset]

    def __post_init__(self) -> None:
        found = {name: d.classes for name, d in self.datasets.items()}
        first = next(iter(found))
        for name, classes in found.items():
            if classes != found[first]:
                raise DataError(
                    f"audit: '{first}' has the classes {_some(found[first])} and '{name}' has {_some(classes)}; pass "
                    "data of the same classes."
                )

    def __repr__(self) -> str:
        return " + ".join(f"{name}: {dataset!r}" for name, dataset in self.datasets.items())

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that all share."""
        return next(iter(self.datasets.values())).classes

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class of every sample (n,)."""
        return np.concatenate([d.labels for d in self.datasets.values()])

    @property
    def sources(self) -> tuple[str, ...]:
        """Name of the data set of every sample, n of them."""
        return tuple(name for name, dataset in self.datasets.items() for _ in range(len(dataset)))

    def fingerprint(self, *, content: bool = False) -> str:
        """A digest of all of them."""
        return "+".join(f"{name}:{d.fingerprint(content=content)}" for name, d in self.datasets.items())

    def sample(self, index: int) -> Sample:
        """Read one sample."""
        for name, dataset in self.datasets.items():
            if index < len(dataset):
                sample = dataset[index]
                return replace(sample, id=f"{name}/{sample.id}")
            index -= len(dataset)
        raise IndexError(f"sample {index} of {len(self)}")


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")
