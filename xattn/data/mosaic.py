"""Mosaics of a data set's own images: localisation can be measured without a single box."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.data.dataset import Dataset
from xattn.data.sample import Sample
from xattn.errors import DataError, ParameterError
from xattn.schema import Range, check_fields
from xattn.spec import ModelSpec

LARGEST = 8192  # pixels of a side, 200 MB


@dataclass(frozen=True, eq=False)
class Mosaic(Dataset):
    """Images of different classes on a grid, one of which is to be found (Böhle et al. 2021, arXiv:2104.00032).

    Sample `i` holds image `i` of the data set in a random cell and images of other classes, all different, in the
    other cells. Its label is the class of image `i`, its box and mask are the cell. The authors keep to images that the
    model classifies with confidence: pass a subset of those. They show every image at the size that the model was made
    for; `mosaic_spec` makes the model's input larger to that end.

    Args:
        dataset: whose images are taken; images that are not square lose their longer ends.
        grid: cells on each side.
        cell_px: side of a cell in pixels.
        seed: of all choices; sample `i` depends on nothing else.

    Raises:
        DataError: if there are fewer classes than cells.
        ParameterError: if the grid has one cell or a cell no pixels.
    """

    dataset: Dataset
    grid: Annotated[int, Range(2)] = 2
    cell_px: Annotated[int, Range(1)] = 224
    seed: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_fields(self, "mosaic")
        if self.grid * self.cell_px > LARGEST:
            raise ParameterError(f"mosaic: {self.grid} cells of {self.cell_px} pixels are more than {LARGEST:,}.")
        classes = len(np.unique(self.dataset.labels))
        if classes < self.grid**2:
            raise DataError(
                f"mosaic: {self.grid**2} cells need as many classes but the data set has images of {classes}; "
                "use a smaller grid or more images."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices."""
        return self.dataset.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of the image to be found, of every sample (n,)."""
        return self.dataset.labels

    def cells(self, index: int) -> tuple[NDArray[np.int64], int]:
        """Places in the data set of the images of a mosaic, row by row, and the cell that holds the one to be found."""
        labels = self.dataset.labels
        rng = np.random.default_rng([self.seed, index])
        other = rng.permutation(np.setdiff1d(labels, labels[index]))[: self.grid**2 - 1]
        places = [int(rng.choice(np.flatnonzero(labels == label))) for label in other]
        cell = int(rng.integers(self.grid**2))
        places.insert(cell, index)
        return np.array(places, np.int64), cell

    def sample(self, index: int) -> Sample:
        """Read the images of one mosaic, 0 <= index < len(self)."""
        places, cell = self.cells(index)
        side = self.cell_px
        image = np.zeros((self.grid * side, self.grid * side, 3), np.uint8)
        name = ""
        for position, place in enumerate(places):
            part = self.dataset[int(place)]
            if position == cell:
                name = part.id
            row, column = divmod(position, self.grid)
            image[row * side : (row + 1) * side, column * side : (column + 1) * side] = _square(part.image, side)
        row, column = divmod(cell, self.grid)
        mask = np.zeros(image.shape[:2], np.bool_)
        mask[row * side : (row + 1) * side, column * side : (column + 1) * side] = True
        box = np.array([[column, row, column + 1, row + 1]], np.float32) * side
        return Sample(f"{name}#mosaic", image, int(self.labels[index]), mask=mask, boxes=box)


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of an image (H, W, 3) as (side, side, 3)."""
    height, width = image.shape[:2]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    if short == side:
        return image[round(top) : round(top) + side, round(left) : round(left) + side]
    box = (left, top, left + short, top + short)
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=None)
    return np.asarray(picture, np.uint8)


def mosaic_spec(spec: ModelSpec, grid: int = 2) -> ModelSpec:
    """Facts about a model that is fed with whole mosaics: `grid` times its input on each side, and nothing cropped.

    The model must take images of any size, as one with global pooling does. `Mosaic(cell_px=...)` should be the
    model's own size.

    >>> mosaic_spec(ModelSpec(feature_layer="features", input_size=(64, 64))).input_size
    (128, 128)
    """
    height, width = spec.input_size
    return dataclasses.replace(spec, input_size=(grid * height, grid * width), crop=1.0)
