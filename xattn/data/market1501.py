"""Market-1501: persons seen by six cameras, and other sets of photographs in its layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.finding import SUFFIXES, natural_key

_NAME = re.compile(r"(-?\d{1,9})_c(\d{1,6})")
_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


@datasets.register("market1501", "market-1501")
@dataclass(frozen=True)
class Market1501(FileDataset):
    """Market-1501 (Zheng et al. 2015, Scalable Person Re-identification, ICCV): 751 persons to train on, 750 others.

    The parts are `train`, `query` and `gallery`, the folders `bounding_box_train`, `query` and `bounding_box_test`. A
    name such as `0002_c1s1_000451_03.jpg` gives the person and the camera, which is the group of the image. Images of
    the person -1 (junk) are not listed, because the protocol ignores them; those of 0 are distractors of the gallery,
    which match no query. Sets in this layout are read too, with names that begin with PERSON_cCAMERA.
    """

    title: ClassVar[str] = "Market-1501"
    source: ClassVar[str] = "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html"
    splits: ClassVar[tuple[str, ...]] = ("train", "query", "gallery")
    evaluation: ClassVar[str | None] = "query"
    folders: ClassVar[tuple[str, ...]] = ("Market-1501-v15.09.15",)
    required: ClassVar[tuple[str, ...]] = tuple(_FOLDERS.values())
    sign: ClassVar[tuple[str, ...]] = tuple(f"{name}/" for name in _FOLDERS.values())

    def _list(self) -> Index:
        files = self._listed(self.split)
        parts = ("train",) if self.split == "train" else ("query", "gallery")
        persons = sorted({person for part in parts for _, person, _ in self._listed(part)})
        label = {person: i for i, person in enumerate(persons)}
        labels = np.array([label[person] for _, person, _ in files], np.int64)
        return Index([path for path, _, _ in files], labels, tuple(f"{person:04d}" for person in persons))

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Camera of every image (n,)."""
        return np.array([camera for _, _, camera in self._listed(self.split)], np.int64)

    def _listed(self, split: str) -> list[tuple[Path, int, int]]:
        """File, person and camera of the images of a part, without junk."""
        folder = self.home / _FOLDERS[split]
        listed = []
        try:
            files = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=natural_key)
        except OSError as error:
            raise self._error(f"'{folder}' cannot be read ({error.strerror or error}).") from None
        for path in files:
            match = _NAME.match(path.name)
            if match is None:
                raise self._error(f"'{path}': expected a name such as 0002_c1s1_000451_03.jpg, person and camera.")
            if int(match[1]) >= 0:
                listed.append((path, int(match[1]), int(match[2])))
        return listed
