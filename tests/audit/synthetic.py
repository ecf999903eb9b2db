"""A network whose evidence is known to the last digit, and images for it: red is a mark, green and blue are classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from xattn.data.dataset import Dataset
from xattn.data.sample import Sample
from xattn.errors import DataError
from xattn.spec import ModelSpec

SIDE, CELLS = 32, 4
CELL = SIDE // CELLS
WEIGHTS = ((60.0, 8.0, 0.0), (0.0, 0.0, 8.0))
"""Of red, green and blue for the classes green and blue: red speaks for green, which is the shortcut."""
CLASSES = ("green thing", "blue thing")
CORNER = (0, 3)
"""Row and column of the cell of the mark."""


class Known(nn.Module):
    """Means of the colours over cells of 8 x 8 pixels, the mean over cells, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(CELL)
        self.fc = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(WEIGHTS))
        self.spec = ModelSpec(
            feature_layer="features", classifier="fc", input_size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3,
            classes=CLASSES, name="known", crop=1.0,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def build() -> nn.Module:
    return Known().eval()


@dataclass(frozen=True, eq=False)
class Pictures(Dataset):
    """Images in memory; `broken` are those that cannot be read."""

    pixels: NDArray[np.uint8]
    given: NDArray[np.int64]
    marked: NDArray[np.bool_]
    masks: NDArray[np.bool_] | None = None
    broken: tuple[int, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.given

    def fingerprint(self, *, content: bool = False) -> str:
        return f"{hash(self.pixels.tobytes())}-{self.broken}"

    def sample(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"image {index} is damaged.")
        mask = None if self.masks is None else self.masks[index]
        return Sample(f"{index:03d}.png", self.pixels[index], int(self.given[index]), mask)


def pictures(
    count: int = 60, share: float = 0.4, seed: int = 0, *, corner: bool = True, broken: tuple[int, ...] = ()
) -> Pictures:
    """Images of both classes: cells of its colour at random places, and a red cell in a share of the green ones.

    The object, as the mask has it, is where the class's colour is strong; a mark is beside it.
    """
    rng = np.random.default_rng(seed)
    pixels = np.zeros((2 * count, SIDE, SIDE, 3), np.uint8)
    masks = np.zeros((2 * count, SIDE, SIDE), np.bool_)
    marked = np.zeros(2 * count, np.bool_)
    for i in range(2 * count):
        label = i % 2
        cells = rng.integers(20, 60, (CELLS, CELLS, 3))
        cells[:, :, 0] = 0
        rows, columns = rng.integers(0, CELLS, 3), rng.integers(0, CELLS, 3)
        cells[rows, columns, 1 + label] = rng.integers(150, 250, 3)
        on = np.zeros((CELLS, CELLS), np.bool_)
        on[rows, columns] = True
        marked[i] = label == 0 and rng.random() < share
        if marked[i]:
            place = CORNER if corner else tuple(rng.integers(0, CELLS, 2))
            cells[place] = (255, 0, 0)
            on[place] = False
        pixels[i] = np.kron(cells, np.ones((CELL, CELL, 1))).astype(np.uint8)
        masks[i] = np.kron(on, np.ones((CELL, CELL))).astype(np.bool_)
    return Pictures(pixels, np.arange(2 * count) % 2, marked, masks, broken)


def folder_of(place: Path, images: Pictures) -> Path:
    """The images as a folder of class folders."""
    for i, (picture, label) in enumerate(zip(images.pixels, images.given, strict=True)):
        home = place / CLASSES[label]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / f"{i:03d}.png")
    return place


def cells_of(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Colours (4, 4, 3) of the cells of an image (32, 32, 3), by loops."""
    cells = np.zeros((CELLS, CELLS, 3))
    for i in range(CELLS):
        for j in range(CELLS):
            block = picture[i * CELL : (i + 1) * CELL, j * CELL : (j + 1) * CELL]
            cells[i, j] = block.astype(np.float64).sum((0, 1)) / 255 / CELL**2
    return cells


def logit(cells: NDArray[np.float64], label: int) -> float:
    """Score of a class for an image of these cells."""
    total = 0.0
    for row in cells.tolist():
        for colour in row:
            total += sum(w * c for w, c in zip(WEIGHTS[label], colour, strict=True))
    return total / CELLS**2
