"""FunnyBirds: rendered birds whose parts can be taken away for real (Hesse et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.data import datasets
from xattn.data.file_dataset import FileDataset, Index
from xattn.data.parquet import Parquet
from xattn.data.reading import decode_image
from xattn.data.sample import Sample, tight_box
from xattn.data.scene import Scene
from xattn.errors import DataError
from xattn.files import read_regular
from xattn.schema import check, read_json

_LARGEST = 2**24  # bytes of classes.json


@datasets.register("funnybirds", "funnybirds-mini")
@dataclass(frozen=True)
class FunnyBirds(FileDataset):
    """Rendered birds of combined parts, with the image that is left without each part (Hesse et al. 2023).

    Read from `train.parquet`, `test.parquet` (`image`, `part_map`, `label`, `index`), `interventions.parquet` (`image`,
    `label`, `index`, `kind`, `keep`, `removed`) and `classes.json`, which tells the parts of each class. A test image
    comes with its `Scene`: masks of its parts and of the objects behind it, and images without some of them. The mask
    is the bird. A background object is where the image without it differs from the image (arXiv:2308.06248).

    Args:
        root: the folder.
        split: `train` (half of the images lack parts) or `test`.
    """

    title: ClassVar[str] = "FunnyBirds"
    source: ClassVar[str] = "https://github.com/visinf/funnybirds (rendered at 128 pixels)"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    evaluation: ClassVar[str | None] = "test"
    folders: ClassVar[tuple[str, ...]] = ("funnybirds-mini", "funnybirds")
    required: ClassVar[tuple[str, ...]] = (
        "train.parquet", "test.parquet", "interventions.parquet", "classes.json",
    )  # fmt: skip
    sign: ClassVar[tuple[str, ...]] = required
    annotations: ClassVar[tuple[str, ...]] = ("classes.json", "interventions.parquet")

    @cached_property
    def parquet(self) -> Parquet:
        """The file of this part."""
        return self._part(self.split)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a bird."""
        return tuple(self._fact("parts", list[str]))

    @cached_property
    def shared(self) -> list[dict[int, frozenset[str]]]:
        """For each class the parts that it has in common with each other one."""
        made = self._fact("classes", list[dict[str, int]])

        def same(a: int, b: int) -> frozenset[str]:
            return frozenset(part for part in self.parts if made[a].get(part) == made[b].get(part))

        return [{b: same(a, b) for b in range(len(made)) if b != a} for a in range(len(made))]

    def order(self, indices: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """A random order."""
        return self.parquet.order(indices, generator)

    def sample(self, index: int) -> Sample:
        """Read one sample; one to test on has its scene and the mask of the bird."""
        sample = self.parquet.sample(index)
        if self.split != "test":
            return sample
        name = f"{sample.label}/{self._numbers[index]}"
        part_map = self._pixels(self._maps[index], f"part map of {name}")[..., 0]
        values = self._fact("map_values", dict[str, int])
        if absent := [part for part in (*self.parts, "background", "object") if part not in values]:
            raise self._error(f"map_values of 'classes.json' lacks {', '.join(absent)}.")
        masks = {part: part_map == values[part] for part in self.parts}
        everything, lacking = frozenset(self.parts), {}
        for row in self._interventions.get((sample.label, self._numbers[index]), ()):
            if row["kind"] == "keep":
                lacking[everything - frozenset(row["keep"])] = self._pixels(row["image"], name)
            elif row["kind"] == "bg":
                thing = f"object {row['removed']}"
                lacking[frozenset([thing])] = image = self._pixels(row["image"], name)
                masks[thing] = (image != sample.image).any(axis=2)
        bird = (part_map != values["background"]) & (part_map != values["object"])
        scene = Scene(self.parts, masks, lacking, self.shared[sample.label])
        return replace(sample, id=name, mask=bird, boxes=tight_box(bird), scene=scene)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        path = self.home / "classes.json"
        value = read_json(read_regular(path, _LARGEST), str(path), max_bytes=_LARGEST)
        return check(value, dict[str, Any], f"{self.title}: '{path}'", DataError)

    def _fact(self, key: str, kind: Any) -> Any:
        return check(self._facts.get(key), kind, f"{self.title}: {key} of 'classes.json'", DataError)

    @cached_property
    def _numbers(self) -> list[int]:
        return [int(number) for number in self.parquet.column("index")]

    @cached_property
    def _maps(self) -> list[Any]:
        return self.parquet.column("part_map")

    @cached_property
    def _interventions(self) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """The images without something, by label and number of the image that they are of."""
        part = self._part("interventions")
        names = ("image", "index", "kind", "keep", "removed")
        rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
        columns = [part.column(name) for name in names]
        for label, *values in zip(part.labels.tolist(), *columns, strict=True):
            row = dict(zip(names, values, strict=True))
            rows.setdefault((label, int(row["index"])), []).append(row)
        return rows

    def _pixels(self, content: Any, name: str) -> NDArray[np.uint8]:
        """An image in a column, as pixels (H, W, 3)."""
        data = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(data, bytes):
            raise self._error(f"{name} has no image bytes.")
        return np.array(decode_image(data, f"{self.title}: {name}", upright=False), dtype=np.uint8)

    def _part(self, name: str) -> Parquet:
        return Parquet(self.home / f"{name}.parquet", "all")

    def _files(self) -> Sequence[Path]:
        return self.parquet.files

    def _list(self) -> Index:
        return Index((), self.parquet.labels, self.parquet.classes)
